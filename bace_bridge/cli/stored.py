"""What the commands on the store share: opening it, checking names, and tables."""

import sys
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path

import click
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bace_bridge.cloud.api import BaceCloud
from bace_bridge.config.models import Config
from bace_bridge.config.values import secrets_of
from bace_bridge.errors import StoreMissing
from bace_bridge.events.types import Token
from bace_bridge.redaction import Redaction
from bace_bridge.store.eventlog import DeadLetters, EventLog
from bace_bridge.store.facts import Facts
from bace_bridge.store.ownership import is_held
from bace_bridge.store.sqlite import SqliteFile

__all__ = ["Console", "Table", "Text", "console_of_stdout", "new_table", "print_table"]

_PIPE_WIDTH = 240
"""What is no terminal has no width: nothing is cut off there."""


def console_of_stdout() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def new_table(*, gap: int = 2) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")


def print_table(table: Table, console: Console) -> None:
    """As `click.echo` does: rich itself would end the process with 1 where the reader of a pipe has left."""
    with console.capture() as captured:
        console.print(table)
    click.echo(captured.get(), nl=False)


ROOM_FOR_IDS = 150
"""Terminal columns from which on ids get columns of their own."""


class NoStoreYet(click.ClickException):
    """There is no store at this place (yet); exit code 1."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no store at {path.absolute()} yet: bace-bridge run creates it (store.url)")


@asynccontextmanager
async def stored(path: Path, *, to_ask: bool = False) -> AsyncIterator[SqliteFile]:
    """The opened store, read-only unless something is `to_ask`. Raises NoStoreYet, or StoreError."""
    try:
        # Read-only where it only looks: a command of another user must leave no file that the service cannot write.
        async with SqliteFile(path, read_only=not to_ask, beside=to_ask) as file:
            yield file
    except StoreMissing:
        raise NoStoreYet(path) from None


@dataclass(frozen=True, slots=True)
class _BorrowedTokens:
    """The running bridge's token as long as it is valid; whatever a command gets is its own, and kept nowhere.

    A refresh would take the refresh token away from the bridge: clouds rotate or destroy it, and the bridge, which
    holds it in memory, would be refused. A login leaves the bridge's tokens as they are.
    """

    facts: Facts | None

    async def load_token(self, account: str) -> Token | None:
        token = None if self.facts is None else await self.facts.load_token(account)
        return None if token is None else replace(token, refresh=None)

    async def save_token(self, account: str, token: Token) -> None:
        """The store is the running bridge's."""


@asynccontextmanager
async def cloud_beside(config: Config) -> AsyncIterator[tuple[BaceCloud, SqliteFile | None]]:
    """The cloud, asked beside the running bridge; and the store, where there is one. Raises StoreError."""
    from bace_bridge.app.account import cloud_http  # noqa: PLC0415  # slow, and few commands need it

    async with AsyncExitStack() as stack:
        try:
            file: SqliteFile | None = await stack.enter_async_context(stored(config.store.path))
        except NoStoreYet:  # before the first start one asks the cloud to find out what to watch
            file = None
        tokens = _BorrowedTokens(None if file is None else Facts(file))
        redaction, version = Redaction(secrets_of(config)), metadata.version("bace-bridge")
        yield (
            BaceCloud(await stack.enter_async_context(cloud_http(config.cloud, tokens, redaction, version=version))),
            file,
        )


def ensure_sink(name: str, names: Collection[str]) -> None:
    """Raises a usage error that names the sinks there are."""
    if name not in names:
        there = f"there are: {', '.join(names)}" if names else "there are none"
        raise click.UsageError(f"there is no sink {name!r}; {there}")


async def ensure_session(file: SqliteFile, session: str) -> None:
    if not await EventLog(file).knows_session(session):
        raise click.ClickException(unknown_session(session))


def unknown_session(session: str) -> str:
    return f"unknown data session {session!r}: bace-bridge sessions lists the known ones"


async def refuse_disabled(file: SqliteFile, sink: str) -> None:
    if reason := await DeadLetters(file).disabled_reason(sink):
        raise click.ClickException(f"{sink} is disabled ({reason}): change its URL to enable it again")


def when_it_happens(path: Path) -> str:
    """When the bridge takes what was asked for, in words for people."""
    if is_held(path):
        return "the running bridge starts at once"
    return "the bridge is not running: delivery starts when it does"


def printable(text: str) -> str:
    """What people type as a label must not steer a terminal, break a line, or be too much for stdout's encoding."""
    # Escape sequences begin with a character that is not printable; the rest of one is harmless.
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "replace").decode(encoding)


def local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
