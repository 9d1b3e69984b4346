"""What each query of `run` takes with 100,000 sessions, 1,000,000 events and a webhook that is behind with all of them.

python -m bench.queries [--sessions N] [--events N]
"""

import argparse
import asyncio
import logging
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from bace_bridge.events.types import Claim, Event, Filter, LaneRecord, Share
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store import lanes
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import Schedules
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import deliver, lanes_of

NOON = 1_764_590_400.0
DEVICES = 20
HISTORY = 0.5
"""The share of the sessions whose datapoints are still to be fetched, as history."""

Work = Callable[[], Awaitable[Any]]


def known(number: int, sessions: int) -> KnownSession:
    active = number >= sessions - DEVICES
    end = None if active else NOON + number + 0.5
    session = DataSession(
        f"s{number:06}",
        f"g{number % DEVICES}",
        NOON + number,
        end=end,
        ingestion_finished=not active,
        updated_at=NOON + number,
    )
    history = number < sessions * HISTORY
    due = NOON if history else NOON + 15 if active else None
    return KnownSession(session=session, device_label="BaceGo", fetched_at=NOON, fetch_at=due, over_when_found=history)


def event(number: int, sessions: int) -> Event:
    session = None if number % 1000 == 0 else f"s{number * 7919 % sessions:06}"
    return Event(f"evt_{number:032x}", "session.updated", session, "g1", NOON, NOON + number, b"x" * 640)


async def fill(file: SqliteFile, sessions: int, events: int) -> None:
    journal, log = Journal(file), EventLog(file)
    for name in ("home", "hook", "left"):
        await log.open_sink(name, target="t")
    for first in range(0, sessions, 2000):
        some = tuple(known(number, sessions) for number in range(first, min(sessions, first + 2000)))
        await journal.commit(Changes(known=some))
    for first in range(0, events, 5000):
        await journal.commit(
            Changes(events=tuple(event(one, sessions) for one in range(first, min(events, first + 5000))))
        )
    await deliver(file, "home", through=10**9)
    await log.retire_others(["home", "hook"])


def questions(file: SqliteFile, sessions: int) -> dict[str, Work]:
    """Those that are asked often, each as its caller asks it."""
    journal, log, device_states = (
        Journal(file),
        EventLog(file),
        DeviceStates(file, csv_url=lambda one: one, clock=lambda: NOON),
    )
    near, nothing = Share(400, 1500, 3 * 2**20), Share(0, 0, 0)
    first = f"s{sessions - 1:06}"
    one = msgspec.structs.replace(known(sessions - 1, sessions), fetch_at=NOON + 30)

    async def record() -> None:
        claimed = await log.claim("hook", Filter(), Claim(frozenset(), (), Share(1, 1, 1), nothing), now=NOON)
        lane = claimed.begun[0].lane
        moved = msgspec.structs.replace(lane, seq=claimed.begun[0].events[0].seq + 1)
        record = (LaneRecord(moved),)
        await file.write(lambda connection: lanes.record_lanes(connection, "hook", record, now=NOON))

    return {
        "claim, nothing due": lambda: log.claim(
            "home", Filter(), Claim(frozenset(), (), near, Share(50, 500, 2**20)), now=NOON
        ),
        "commit of a session and an event": lambda: journal.commit(
            Changes(known=(one,), events=(event(time.perf_counter_ns() % 10**12 + 10**7, sessions),))
        ),
        "claim of one lane, and its record": record,
        "claim of 400 lanes of 100,000": lambda: log.claim(
            "hook", Filter(), Claim(frozenset(), (), near, nothing), now=NOON
        ),
        "waiting": lambda: log.waiting("hook"),
        "known": lambda: journal.known([first]),
        "unfinished_after": lambda: journal.known_after("unfinished", "", 40),
        "active_after": lambda: journal.known_after("active", "", 20),
        "finished_after": lambda: journal.known_after("finished", "s00100", 50),
        "overdue_ends": lambda: journal.overdue_ends(NOON),
        "due_fetches, live": lambda: journal.due_fetches(NOON + 60, 400, late=False),
        "due_fetches, history": lambda: journal.due_fetches(NOON + 60, 10, late=True),
        "next_fetch_at": lambda: journal.next_fetch_at(without=[first]),
        "device_labels": journal.device_labels,
        "windows": lambda: journal.windows([first]),
        "state of a device": lambda: device_states.devices(["g1"], available=True),
        "states of all devices": lambda: device_states.devices(None, available=True),
        "stale": device_states.stale,
        "replay of one session": lambda: log.replay("home", session=first, since=None),
    }


async def timed(work: Work, runs: int = 21) -> tuple[float, float]:
    """Milliseconds: the median and the longest."""
    took = []
    for _ in range(runs):
        started = time.perf_counter()
        await work()
        took.append(1000 * (time.perf_counter() - started))
    return sorted(took)[runs // 2], max(took)


class Longest:
    """The longest transaction while something walks through everything in pieces, in milliseconds."""

    def __init__(self, file: SqliteFile) -> None:
        self.pieces, self.longest = 0, 0.0
        self._of = file._run  # noqa: SLF001  # nothing else sees each piece
        file._run = self._timed  # type: ignore[method-assign]  # noqa: SLF001

    async def _timed(self, work: Any, side: Any) -> Any:
        started = time.perf_counter()
        try:
            return await self._of(work, side)
        finally:
            self.pieces += 1
            self.longest = max(self.longest, 1000 * (time.perf_counter() - started))


async def walks(file: SqliteFile, log: EventLog) -> None:
    """Those that go through everything, in pieces."""
    upkeep = Upkeep(file, log, Cap(file, 2**40), retention=1.0, session_retention=1.0)

    async def prune() -> None:
        while await log.prune(observed_before=NOON + 5000):
            pass

    async def nothing_to_prune() -> None:
        await log.prune(observed_before=NOON + 5000)

    async def come_back() -> None:
        await log.open_sink("left", target="t")

    works: dict[str, Work] = {
        "replay of everything": lambda: log.replay("home", session=None, since=NOON + 1),
        "a backlog": lambda: log.backlog("home"),
        "the clock is set": lambda: Schedules(file).move(5.0),
        "the clock was behind": lambda: Schedules(file).bound(now=NOON, furthest=21600.0),
        "a sink comes back": come_back,
        "pruning, with 100,000 lanes waiting": nothing_to_prune,
    }
    for name, work in works.items():
        await report(file, name, work)
    for sink in ("home", "hook", "left"):
        await file.write(lambda one, sink=sink: one.execute("delete from lanes where sink = ?", (sink,)))  # type: ignore[misc]  # binds now
    await report(file, "pruning of 5,000 events", prune)
    await report(file, "a piece of upkeep", lambda: upkeep.piece(NOON))


async def report(file: SqliteFile, name: str, work: Work) -> None:
    watch, started = Longest(file), time.perf_counter()
    await work()
    seconds = time.perf_counter() - started
    print(f"  {name:40} {seconds:8.3f} s in {watch.pieces} pieces, the longest {watch.longest:8.2f} ms", flush=True)
    file._run = watch._of  # type: ignore[method-assign]  # noqa: SLF001


async def measure(sessions: int, events: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "b.db"
        async with SqliteFile(path) as file:
            await fill(file, sessions, events)
            print(f"{sessions:,} sessions, {events:,} events, {path.stat().st_size / 2**20:.0f} MiB")
            assert len(await lanes_of(file, "hook")) > sessions * 0.9 or events < sessions
            for title, work in questions(file, sessions).items():
                median, longest = await timed(work)
                print(f"  {title:40} {median:8.3f} ms, the longest {longest:8.3f} ms", flush=True)
            await walks(file, EventLog(file))


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(prog="python -m bench.queries")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    given = parser.parse_args()
    print(f"SQLite {sqlite3.sqlite_version}")
    asyncio.run(measure(given.sessions, given.events))


if __name__ == "__main__":
    main()
