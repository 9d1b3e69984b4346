"""`bace-bridge csv`: a data session's CSV as a file, and the key of CSV links."""

import asyncio
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from bace_bridge import logs, waiting
from bace_bridge.cli.main import config_option
from bace_bridge.cli.stored import cloud_beside, stored
from bace_bridge.config.load import Excerpt, load
from bace_bridge.config.models import Config
from bace_bridge.config.values import format_duration, secrets_of
from bace_bridge.csv.checks import CsvCheck
from bace_bridge.csv.links import KEY_BYTES
from bace_bridge.csv.serving import checked, least_datapoints
from bace_bridge.errors import CloudError, CloudGone
from bace_bridge.store.facts import Facts

_ROTATE_KEY = "rotate-key"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MB = 1_000_000


@click.command()
@config_option
@click.argument("session", metavar=f"SESSION|{_ROTATE_KEY}")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Where to; - is standard output. By default data-session-<id>.csv here.",
)
@click.option("--revoke", is_flag=True, help=f"With {_ROTATE_KEY}: links signed before stop working at once.")
def csv(config: Path, session: str, output: Path | None, revoke: bool) -> None:
    """Download the CSV of a data session, and check that it is whole.

    The file appears when it is complete; a download that fails leaves none. Works while the bridge is running.

    `bace-bridge csv rotate-key` makes a new key for CSV links (csv.link). Links signed before work until they expire.
    """
    if session == _ROTATE_KEY:
        if output is not None:
            raise click.UsageError(f"-o goes with a SESSION, not with {_ROTATE_KEY}")
        return asyncio.run(_rotate(config, revoke=revoke))
    if revoke:
        raise click.UsageError(f"--revoke goes with {_ROTATE_KEY}")
    if not _ID.fullmatch(session) or not session.strip("."):
        raise click.UsageError(f"{session!r} is not the id of a data session (see bace-bridge sessions)")
    loaded = load(config, os.environ)
    logs.configure(fmt=None, level="error", secrets=secrets_of(loaded))
    for one in (signal.SIGTERM, signal.SIGHUP):  # else what is half written would stay
        if signal.getsignal(one) is signal.SIG_DFL:
            signal.signal(one, signal.default_int_handler)
    try:
        return waiting.run(_download(loaded, session, output or Path(f"data-session-{session}.csv")))
    except CloudGone:
        raise click.ClickException(f"the cloud has no data session {session}") from None
    except CloudError as error:
        raise click.ClickException(str(error)) from None


async def _rotate(path: Path, *, revoke: bool) -> None:
    config = Excerpt(path, os.environ).config("store.url", "csv.link_expires")
    async with stored(config.store.path, to_ask=True) as file:
        now, life = time.time(), config.csv.link_expires
        await Facts(file).rotate_signing_keys(secrets.token_bytes(KEY_BYTES), now=now, life=life, revoke=revoke)
    until = f"work until they expire, for {format_duration(config.csv.link_expires)} at most"
    click.echo(f"There is a new key. Links signed before {'do not work any more' if revoke else until}.")


async def _download(config: Config, session_id: str, output: Path) -> None:
    check, begun = CsvCheck(), time.monotonic()
    async with cloud_beside(config) as (cloud, _):
        session = (await cloud.session(session_id)).session
        async with cloud.csv(session_id) as download:
            with _writing(output) as file, _progress(download.headers.get("Content-Length")) as advance:
                async for piece in checked(download, check, datapoints=least_datapoints(session)):
                    file.write(piece)
                    advance(len(piece))
    seconds = max(time.monotonic() - begun, 0.001)
    size = f"{check.size / _MB:.1f} MB in {seconds:.1f} s ({check.size / _MB / seconds:.1f} MB/s)"
    where = "standard output" if str(output) == "-" else output
    click.echo(f"{where}: {check.rows:,} rows, {size}", err=True)
    if session.state != "ingested":
        click.echo("bace-bridge: the cloud is not done with this data session: its CSV may grow", err=True)


@contextmanager
def _writing(output: Path) -> Iterator[BinaryIO]:
    """Where the CSV goes. A file gets its name when everything is in it."""
    if str(output) == "-":
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    try:
        if output.exists() and not output.is_file():  # a pipe, or a device: there is nothing to replace
            with output.open("wb") as file:
                yield file
            return
        target = Path(os.path.realpath(output))
        part = target.with_name(f".bace-bridge-{secrets.token_hex(6)}.part")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from None


@contextmanager
def _progress(length: str | None) -> Iterator[Callable[[int], None]]:
    """On a terminal a bar, or without a length what has come so far."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415  # slow
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn  # noqa: PLC0415  # slow

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=int(length) if length and length.isdecimal() else None)
        yield lambda size: shown.advance(task, size)
