"""Polling beside 50, 500 and 5,000 known sessions, behind an nginx: `python -m bench.known_sessions`.

Ten minutes of polls of the session list, by a clock that only moves when a poll is over.
"""

import asyncio
import logging
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from tests.integration.polling_line import Clock, Watching, simulated, watching

QUIRKS = ("header-limit 4096", "int4")
SIZES = (50, 500, 5000)
INTERVAL = 10.0
MINUTES = 10
WARM_UP_POLLS = 200
BAD = 400


class Figures(NamedTuple):
    """`polls`: how many polls made so many requests; `failed`: what was answered with an error, and how often."""

    known: int
    unfinished: int
    requests: int
    polls: Counter[int]
    failed: Counter[str]

    def lines(self) -> list[str]:
        idle = statistics.mode(self.polls.elements())
        figures = (
            f"{self.known:>6,} known, {self.unfinished:>5,} unfinished: {self.failed.total()} failed requests, "
            f"{idle} in an idle poll, at most {max(self.polls)}, {self.requests / MINUTES:.1f} a minute"
        )
        return [figures, *(f"{times:>8} x {request}" for request, times in self.failed.most_common(10))]


def fill(cloud: SimulatedCloud, clock: Clock, count: int, *, all_unfinished: bool) -> None:
    """Sessions of the last weeks; without `all_unfinished` every tenth is, and half of those are active."""
    devices = [cloud.add_device(f"BaceGo-{number:03}") for number in range(20)]
    now = clock.now
    every = 1 if all_unfinished else 10
    unfinished = range(0, count, every)
    for number in unfinished:
        clock.now = now - 600 * (count - number)
        session = cloud.open_session(devices[number % 20].id_group)
        clock.forward(300)
        if number // every % 2:
            cloud.end_session(session)
    clock.now = now
    finished = count - len(unfinished)
    cloud.add_history(finished, first_start=now - 600.0 * count, spacing=600.0, duration=300.0)


async def measure(count: int, *, all_unfinished: bool) -> Figures:
    clock = Clock()
    cloud = simulated(clock, *QUIRKS)
    fill(cloud, clock, count, all_unfinished=all_unfinished)
    with tempfile.TemporaryDirectory() as folder:
        async with watching(cloud, Path(folder) / "bridge.db", clock, start="all") as watch:
            failed = await know_all(watch, clock, count)
            polls: Counter[int] = Counter()
            for _ in range(int(MINUTES * 60 / INTERVAL)):
                made, bad = await poll(watch, clock)
                polls[made] += 1
                failed += bad
            unfinished = len(await watch.journal.known_after("unfinished", "", max(SIZES)))
    return Figures(count, unfinished, sum(made * times for made, times in polls.items()), polls, failed)


async def know_all(watch: Watching, clock: Clock, count: int) -> Counter[str]:
    """Polls until every session is known. Returns what failed meanwhile."""
    failed: Counter[str] = Counter()
    for _ in range(WARM_UP_POLLS):
        _, bad = await poll(watch, clock)
        failed += bad
        if await known(watch) == count:
            return failed
    raise RuntimeError(f"{await known(watch)} of {count} sessions are known after {WARM_UP_POLLS} polls")


async def known(watch: Watching) -> int:
    finished = await watch.journal.known_after("finished", "", max(SIZES))
    return len(finished) + len(await watch.journal.known_after("unfinished", "", max(SIZES)))


async def poll(watch: Watching, clock: Clock) -> tuple[int, Counter[str]]:
    """One poll, and the time until the next: its number of requests and those that failed."""
    watch.server.requests.clear()
    await watch.list_poll.poll()
    clock.forward(INTERVAL)
    seen = [one for one in watch.server.requests if one.path.startswith("/api/")]
    return len(seen), failures(seen)


def failures(seen: Sequence[RequestSeen]) -> Counter[str]:
    return Counter(
        f"{one.status} {one.path} {' '.join(sorted({name for name, _ in one.query}))} ({len(one.query)} parameters)"
        for one in seen
        if not 0 < one.status < BAD
    )


async def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"a poll every {INTERVAL:g} s for {MINUTES} minutes; quirks: {', '.join(QUIRKS)}\n")
    for count in SIZES:
        for all_unfinished in (False, True):
            figures = await measure(count, all_unfinished=all_unfinished)
            print(*figures.lines(), sep="\n", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
