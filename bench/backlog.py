"""What a backlog of a million events costs while the broker is away, and while it drains."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

from bace_bridge.events.types import Event
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from bench import machinery, processes
from bench.report import Row

EVENTS = int(os.environ.get("BENCH_BACKLOG", "1000000"))
SESSIONS = 2_000
AT_ONCE = 2_000
SETTLED = 12.0
"""Seconds after which a bridge has started, polled the cloud, and made its first tick."""


async def fill(path: Path, count: int) -> int:
    """A log with so many events after the cursor of the sink `home`; returns the bytes of the store."""
    (pattern,) = machinery.session_events(1, sessions=1)
    async with SqliteFile(path) as file:
        await EventLog(file).open_sink("home", target="")
        journal = Journal(file)
        for first in range(0, count, AT_ONCE):
            numbers = range(first, min(count, first + AT_ONCE))
            await journal.commit(Changes(events=tuple(numbered(pattern, number) for number in numbers)))
        return file.used


def numbered(pattern: Event, number: int) -> Event:
    session = f"86d70a1b-0000-4000-8000-{number % SESSIONS:012d}"
    device = f"4c1c81ca-0000-4000-8000-{number % SESSIONS % 20:012d}"
    now = time.time()
    return Event(f"evt_{number:032x}", pattern.type, session, device, now, now, pattern.data)


def backlog(_runs: int) -> list[Row]:
    """RSS beside a bridge with an empty log, both with their broker away; then the peak of the drain."""
    empty, started_empty = beside(0)
    with tempfile.TemporaryDirectory() as name, processes.cloud("0") as source:
        folder, port = Path(name), machinery.free_port()
        size = asyncio.run(fill(folder / "bridge.db", EVENTS))
        began = time.time()
        with processes.bridge(folder, source.about["url"], port, interval="1s", start_from="now") as process:
            first = first_request(source, began)
            time.sleep(SETTLED)
            waiting, peak = processes.resident_mb(process.pid), peak_mb(process.pid)
            with machinery.mosquitto(folder, port=port):
                begun = time.time()
                rate = EVENTS / drained(folder / "bridge.db", begun)
                draining = peak_mb(process.pid)
                time.sleep(3)
                after = processes.resident_mb(process.pid)
    return [
        Row(f"store with {EVENTS:,} events", [size / 1e6], unit=" MB"),
        Row("start -> first request with them, seconds", [first - began], [started_empty], "empty log", unit=" s"),
        Row("memory with them, broker away (RSS)", [waiting], [empty], "empty log", "growth <= 20 MB", " MB"),
        Row("peak up to then (VmHWM)", [peak], unit=" MB"),
        Row("peak while it drains (VmHWM)", [draining], [empty], "empty log, RSS", "growth <= 20 MB", " MB"),
        Row("memory after the drain (RSS)", [after], unit=" MB"),
        Row("drain of them, events/s", [rate]),
    ]


def beside(count: int) -> tuple[float, float]:
    """RSS, and the seconds to the first request, of a bridge with so many events."""
    with tempfile.TemporaryDirectory() as name, processes.cloud("0") as source:
        asyncio.run(fill(Path(name) / "bridge.db", count))
        began = time.time()
        port = machinery.free_port()
        with processes.bridge(Path(name), source.about["url"], port, interval="1s", start_from="now") as process:
            first = first_request(source, began)
            time.sleep(SETTLED)
            return processes.resident_mb(process.pid), first - began


def first_request(source: processes.Cloud, began: float) -> float:
    while not (found := [at for at, _ in source.ask("requests") if at >= began]):
        time.sleep(0.02)
    return float(found[0])


def drained(path: Path, begun: float) -> float:
    """Seconds until the cursor is at the end of the log."""

    async def left() -> int:
        async with SqliteFile(path, read_only=True) as file:
            log = EventLog(file)
            return sum([await log.backlog(name) for name in await log.sinks()])

    while asyncio.run(left()):
        time.sleep(0.25)
    return time.time() - begun


def peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
