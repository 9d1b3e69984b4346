"""The store for the commands that look into it: read-only, beside a running bridge; and text for people."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import click

from bace_bridge.store.sqlite import SqliteFile


class NoStoreYet(click.ClickException):
    """There is no store at this place (yet); exit code 1."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no store at {path.absolute()} yet: bace-bridge run makes it (store.url)")


@asynccontextmanager
async def stored(path: Path) -> AsyncIterator[SqliteFile]:
    """The opened store. Raises NoStoreYet, or StoreError where it cannot be read."""
    try:
        there = path.is_file()  # noqa: ASYNC240  # a moment, in a command that does nothing else
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    if not there:
        raise NoStoreYet(path)
    async with SqliteFile(path, read_only=True) as file:
        (version,) = await file.read(lambda connection: connection.execute("pragma user_version").fetchone())
        if not version:
            raise NoStoreYet(path)
        yield file


def printable(text: str) -> str:
    """What people type as a label must not steer a terminal, break a line, or be too much for stdout's encoding."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "replace").decode(encoding)


def local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
