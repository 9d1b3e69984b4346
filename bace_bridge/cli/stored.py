"""The store for the commands that look into it or ask for something, beside a running bridge; and text for people."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import click

from bace_bridge.config.models import Config
from bace_bridge.store.deadletters import DeadLetters
from bace_bridge.store.sqlite import SqliteFile, is_held


class NoStoreYet(click.ClickException):
    """There is no store at this place (yet); exit code 1."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no store at {path.absolute()} yet: bace-bridge run makes it (store.url)")


@asynccontextmanager
async def stored(path: Path, *, to_ask: bool = False) -> AsyncIterator[SqliteFile]:
    """The opened store, read-only unless something is `to_ask`. Raises NoStoreYet, or StoreError."""
    try:
        there = path.is_file()  # noqa: ASYNC240  # a moment, in a command that does nothing else
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    if not there:
        raise NoStoreYet(path)
    async with SqliteFile(path, read_only=not to_ask, beside=to_ask) as file:
        (version,) = await file.read(lambda connection: connection.execute("pragma user_version").fetchone())
        if not version:
            raise NoStoreYet(path)
        yield file


def configured_sink(name: str, config: Config) -> str:
    """The name, where the configuration has such a sink. Raises a usage error that names the others."""
    names = [*(one.name for one in config.mqtt), *(one.name for one in config.webhooks)]
    if name not in names:
        there = f"there are: {', '.join(names)}" if names else "the configuration has no sink"
        raise click.UsageError(f"there is no sink {name!r}; {there}")
    return name


async def refuse_disabled(file: SqliteFile, sink: str) -> None:
    if reason := await DeadLetters(file).disabled_reason(sink):
        raise click.ClickException(f"{sink} is disabled ({reason}): it is called again when its url is another one")


def when_it_happens(path: Path) -> str:
    """When the bridge takes what was asked for, in words for people."""
    if is_held(path):
        return "the running bridge begins at once"
    return "the bridge is not running: it begins when it is started"


def printable(text: str) -> str:
    """What people type as a label must not steer a terminal, break a line, or be too much for stdout's encoding."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "replace").decode(encoding)


def local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
