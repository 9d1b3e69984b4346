"""`bace-bridge events`: the event log, each event as a line of JSON for programs, or of text for people."""

import asyncio
import os
import select
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from bace_bridge.cli.main import config_option
from bace_bridge.cli.stored import (
    ROOM_FOR_IDS,
    NoStoreYet,
    ensure_session,
    local_time,
    printable,
    stored,
    unknown_session,
)
from bace_bridge.config.load import Excerpt
from bace_bridge.config.values import format_duration
from bace_bridge.errors import StoreError, StoreOlder, StoreUnusable
from bace_bridge.events import types
from bace_bridge.events.types import EVENT_TYPES, LoggedEvent, matches
from bace_bridge.formats import iso_utc
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.sqlite import SqliteFile
from bace_bridge.waiting import pause_until


class _JsonLine(msgspec.Struct, frozen=True):
    seq: int
    id: str
    type: str
    time: str
    observed_at: str
    session_id: str | None
    device_id: str | None
    data: msgspec.Raw


def show_json(logged: LoggedEvent) -> None:
    event = logged.event
    line = _JsonLine(
        seq=logged.seq,
        id=event.id,
        type=event.type,
        time=iso_utc(event.time),
        observed_at=iso_utc(event.observed_at),
        session_id=event.session_id,
        device_id=event.device_id,
        data=msgspec.Raw(event.data),
    )
    click.echo(msgspec.json.encode(line))


def show_line(logged: LoggedEvent, *, wide: bool) -> None:
    """With the ids of the data session and the event at the end where there is room: commands take them."""
    event = logged.event
    data = msgspec.json.decode(event.data, type=dict[str, Any])
    device = (data.get("device") or {}).get("label") or event.device_id or "-"
    session = (data.get("session") or {}).get("label") or event.session_id or "-"
    parts = [local_time(event.time), f"{event.type:<18}", f"{device:<20}", session, _detail(event.type, data)]
    if wide:
        parts += [event.session_id or "-", event.id]
    click.echo(printable("  ".join(part for part in parts if part)))


def _detail(event_type: str, data: dict[str, Any]) -> str:
    """What the event says beyond its type, in a few words."""
    detail = str(data.get("reason", ""))
    match event_type:
        case types.SESSION_DATAPOINTS:
            count = len(data["datapoints"])
            detail = f"{count} point{'' if count == 1 else 's'}"
        case types.SESSION_UPDATED:
            detail = f"changed: {', '.join(data['changed'])}"
        case types.SESSION_ENDED if lasted := data["session"]["duration_seconds"]:
            detail = f"lasted {format_duration(lasted)}"
        case types.SESSION_CSV_READY:
            again = f" (revision {data['csv']['revision']})" if data["csv"]["revision"] else ""
            detail = f"{data['csv']['url']}{again}"
        case types.CLOUD_RECOVERED:
            detail = f"after {format_duration(data['seconds'])}"
        case types.SINK_DISABLED:
            detail = f"{data['sink']}: {data['reason']}"
        case types.SINK_DEAD_LETTER:
            detail = f"{data['sink']} did not accept {data['event']['type']}: {data['reason']}"
    return detail


POLL = 0.5
"""Seconds between two readings of the log for new events."""

_AT_ONCE = 500
"""Events that are held in memory: each may have 64 KiB. A longer listing is read twice instead."""

Show = Callable[[LoggedEvent], None]


@click.command()
@config_option
@click.option("--type", "type_glob", metavar="GLOB", help='Only these event types, such as "session.*".')
@click.option("--session", metavar="ID", help="Only the events of this data session.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(min=0), help="Show the newest N; 0 = no limit."
)
@click.option("--follow", is_flag=True, help="Keep printing new events until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line; times in UTC.")
def events(
    *, config: Path, type_glob: str | None, session: str | None, limit: int, follow: bool, as_json: bool
) -> None:
    """Show the event log, newest last.

    Reads only the store; works while the bridge is running.
    """
    path = Excerpt(config, os.environ).config("store.url").store.path
    if type_glob is not None and not any(matches(known, (type_glob,)) for known in EVENT_TYPES):
        click.echo(f"{type_glob!r} matches no event type; there are {', '.join(EVENT_TYPES)}", err=True)
    wanted = _Wanted(type_glob, session)
    # Ids have room beside the rest there; what is no terminal has no width.
    wide = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= ROOM_FOR_IDS
    show = show_json if as_json else partial(show_line, wide=wide)
    asyncio.run(_follow(path, wanted, limit, show) if follow else _list(path, wanted, limit, show))


class _Wanted(msgspec.Struct, frozen=True):
    """Which events are to be shown."""

    type_glob: str | None
    session: str | None


@dataclass
class _Reader:
    """Walks the log forward in small readings; `after` is the seq up to which it has come."""

    log: EventLog
    wanted: _Wanted
    after: int = 0

    async def rest(self) -> AsyncIterator[LoggedEvent]:
        """What is wanted of the log from here to its end as it is now."""
        session, type_glob = self.wanted.session, self.wanted.type_glob
        while batch := await self.log.read(after=self.after, limit=_AT_ONCE):
            for logged in batch:
                self.after, event = logged.seq, logged.event
                if session not in (None, event.session_id):
                    continue
                if type_glob is None or matches(event.type, (type_glob,)):
                    yield logged


async def _list(path: Path, wanted: _Wanted, limit: int, show: Show) -> None:
    async with stored(path) as file:
        if wanted.session is not None:
            await ensure_session(file, wanted.session)
        log = EventLog(file)
        if 0 < limit <= _AT_ONCE:
            for logged in await log.search(type_glob=wanted.type_glob, session=wanted.session, limit=limit):
                show(logged)
        else:
            async for logged in _Reader(log, wanted, after=await _before_newest(log, wanted, limit)).rest():
                show(logged)


async def _before_newest(log: EventLog, wanted: _Wanted, limit: int) -> int:
    """The seq after which the newest `limit` wanted events begin; 0 means all of them."""
    if 0 < limit <= _AT_ONCE:
        found = await log.search(type_glob=wanted.type_glob, session=wanted.session, limit=limit)
        return found[0].seq - 1 if found else 0
    if not limit:
        return 0
    reader = _Reader(log, wanted)
    newest = deque([logged.seq async for logged in reader.rest()], maxlen=limit)
    return newest[0] - 1 if newest else reader.after


async def _follow(path: Path, wanted: _Wanted, limit: int, show: Show) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    following = _Following(path, wanted, limit, show)
    while not stop.is_set():
        await following.watch(stop)
        await _pause(stop)


@dataclass
class _Following:
    """Shows what is new while there is a store; survives that there is none, or another than before."""

    path: Path
    wanted: _Wanted
    limit: int
    show: Show
    _after: int | None = None
    _file_shown: int | None = None
    _warned: str = ""

    async def watch(self, stop: asyncio.Event) -> None:
        """Returns when it is to stop, or when the store has to be opened (again)."""
        try:
            async with stored(self.path) as file:
                # By its inode: a store that was deleted and made again has the same path, and other events.
                identity = self._identity()
                if identity != self._file_shown:
                    self._after, self._file_shown = None, identity
                await self._watch(file, stop)
        except NoStoreYet as missing:
            self._warn(f"{missing.message}; waiting for it")
        except StoreOlder as error:
            self._warn(f"{error}; waiting for it")
        except StoreUnusable:
            raise  # another kind of file, or not for this user: waiting does not help
        except StoreError as error:
            self._warn(f"{error}; trying again")

    async def _watch(self, file: SqliteFile, stop: asyncio.Event) -> None:
        log = EventLog(file)
        if self._after is not None and await log.end() < self._after:
            self._after = None  # the same file, and an earlier log: it was restored
        while not stop.is_set() and self._identity() == self._file_shown and not file.outdated:
            if self._after is None:
                session = self.wanted.session
                if session is not None and not await log.knows_session(session):
                    click.echo(f"bace-bridge: {unknown_session(session)}; waiting for it", err=True)
                self._after = await _before_newest(log, self.wanted, self.limit)
            reader = _Reader(log, self.wanted, after=self._after)
            async for logged in reader.rest():
                self.show(logged)
                self._after = logged.seq
                if stop.is_set():
                    return
            self._after = reader.after
            self._warned = ""
            await _pause(stop)

    def _identity(self) -> int | None:
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def _warn(self, problem: str) -> None:
        if problem != self._warned:
            click.echo(f"bace-bridge: {problem}", err=True)
        self._warned = problem


async def _pause(stop: asyncio.Event) -> None:
    """Raises BrokenPipeError when the reader has left: there may be nothing to print for long."""
    # Registered for nothing: POLLERR, which says that the reader has left, comes without being asked for.
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(0):
        raise BrokenPipeError
    await pause_until(stop, POLL)
