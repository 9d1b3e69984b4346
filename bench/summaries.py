"""The summary of a data session of 30 days, 20 series, a point a minute: `python -m bench.summaries [DAYS SERIES]`.

The store is filled as polling fills it, an hour in a commit; then the session ends. While its summary is made the
session list is polled all the time.
"""

import asyncio
import logging
import resource
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import structlog

from bace_bridge.polling.rules.changes import Changes, WindowRead
from bace_bridge.polling.rules.datapoints import EmittedPoint, Series
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import SPAN, WindowState
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.polling_line import NOON, Clock, data, simulated, watching

T = TypeVar("T")

HOUR = range(0, SPAN, 60)


class Timed(Journal):
    """A journal that notes for how long each read holds the store's thread."""

    def __init__(self, file: SqliteFile) -> None:
        super().__init__(file)
        self.longest = self.total = 0.0
        read = file.read

        async def timed(work: Callable[[sqlite3.Connection], T]) -> T:
            def noted(connection: sqlite3.Connection) -> T:
                began = time.perf_counter()
                try:
                    return work(connection)
                finally:
                    took = time.perf_counter() - began
                    self.longest, self.total = max(self.longest, took), self.total + took

            return await read(noted)

        file.read = timed  # type: ignore[method-assign]  # what is measured is every use of it


async def fill(journal: Journal, known: KnownSession, *, days: int, series: list[Series]) -> None:
    first = int(NOON) // SPAN * SPAN
    for start in range(first, first + days * 86400, SPAN):
        emitted = {
            one.id: {float(start + at): _point(start + at, number) for at in HOUR} for number, one in enumerate(series)
        }
        state = WindowState(start, start + SPAN, 0, settled=True, samples=60 * 60 * len(series))
        read = WindowRead(known.session.id, state, emitted)
        await journal.commit(Changes(known=(known,), windows=(read,), series=tuple(series)))


def _point(at: int, number: int) -> EmittedPoint:
    middle = 60 + number + (at % 977) / 10
    return EmittedPoint(middle - 1.25, middle + 1.5, middle, 60, 0)


async def measure(path: Path, days: int, count: int) -> None:
    clock = Clock()
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1", datatypes=[*range(6000, 6000 + count)])
    session = cloud.open_session(device.id_group)
    made: list[Timed] = []

    def journal(file: SqliteFile) -> Timed:
        made.append(Timed(file))
        return made[-1]

    async with watching(cloud, path, clock, journal=journal) as watch:
        await watch.list_poll.poll()
        (known,) = (await watch.journal.known([session])).values()
        source = str(uuid.UUID(int=7))
        names = [Series(str(uuid.UUID(int=one)), source, 6000 + one) for one in range(count)]
        began = time.perf_counter()
        await fill(watch.journal, known, days=days, series=names)
        size = path.stat().st_size / 2**20
        print(f"{days} days, {count} series: filled in {time.perf_counter() - began:.0f} s, a store of {size:.0f} MiB")
        cloud.end_session(session)
        await watch.list_poll.poll()
        clock.forward(60)
        (known,) = (await watch.journal.known([session])).values()
        await polled_meanwhile(watch, made[0], known)
        event = (await watch.all_events())[-1].event
        summary = data((await watch.all_events())[-1])["summary"]
        assert event.type == "session.ended"
        assert summary["datapoints"] == days * 24 * 60 * count
        assert len(summary["series"]) == min(100, count)
        print(f"  an event of {len(event.data):,} bytes, {summary['datapoints']:,} datapoints")


async def polled_meanwhile(watch: Any, journal: Timed, known: KnownSession) -> None:
    """Makes the summary while the session list is polled and a task notes how long the event loop was busy."""
    journal.longest = journal.total = 0.0
    gap, last = 0.0, time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, began = time.process_time(), last
    end = asyncio.create_task(watch.fetch(known).emit_end())

    async def poll() -> int:
        many = 0
        while not end.done():
            await watch.list_poll.poll()
            many += 1
        return many

    polling = asyncio.create_task(poll())
    while not end.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        gap, last = max(gap, now - last), now
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    polls = await polling
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    await end
    print(
        f"  summary: {seconds:.2f} s ({cpu:.2f} s of CPU), {more:.1f} MiB more at the peak\n"
        f"  the store's thread: {journal.total:.2f} s in all, {1000 * journal.longest:.0f} ms at most at once\n"
        f"  the event loop: {1000 * gap:.0f} ms at most at once; {polls} polls of the session list meanwhile"
    )


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    days, count = (int(one) for one in (sys.argv[1:] or ["30", "20"]))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder) / "bridge.db", days, count))


if __name__ == "__main__":
    main()
