"""A fleet of active data sessions: `python -m bench.fleet --active 200 --series 3 --per-minute 120 --minutes 10`.

The real bridge with its default intervals beside a simulated cloud in another process. It measures how old a point is
when it arrives at a webhook, counted from when the cloud began to show it, and what that costs in requests. Every
session has a new point per series every 15 s; some come late, some get other values later.

The warm-up lasts until each session has had a point. Then it measures. Then no more points are made, and what has not
come within `--settle` seconds is missing; the sessions that miss some are ended, and what does not come even with
their final reading is lost.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench import processes
from bench.fleet_cloud import Asked
from bench.fleet_figures import Course, Figures, figures, table
from bench.fleet_oracle import judge, last_values
from bench.fleet_points import HOUR, Made, Plan
from bench.inbox import Inbox, inbox

FINAL_READINGS = 3600.0
"""Seconds for the final readings of the sessions that miss points; what has not come then counts as lost."""


class Used:
    """CPU seconds of the bridge and of the simulated cloud since this was made."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._before = self._now()

    def seconds(self) -> list[float]:
        return [now - before for now, before in zip(self._now(), self._before, strict=True)]

    def _now(self) -> list[float]:
        return [processes.cpu_seconds(pid) for pid in self._pids]


async def measure(given: argparse.Namespace) -> Figures:
    now = time.time()
    ahead = 0.0 if given.minute is None else (given.minute * 60 - now + HOUR / 2) % HOUR - HOUR / 2
    plan = Plan(
        "fleet",
        active=given.active,
        series=given.series,
        age=given.age * 60,
        pairs=given.pairs,
        late=given.late,
        revised=given.revised,
        touch=not given.untouched,
        ahead=ahead,
        quirks=tuple(given.quirk),
    )
    written = msgspec.json.encode(plan).decode()
    with tempfile.TemporaryDirectory() as name, processes.cloud(written, module="bench.fleet_cloud") as source:
        async with inbox() as box:
            with processes.bridge(
                Path(name),
                source.about["url"],
                None,
                start_from="now",
                datapoint_interval=given.datapoint_interval,
                per_minute=given.per_minute,
                webhooks=[box.webhook()],
            ) as process:
                course = await follow(given, source, box, process.pid)
        made = msgspec.convert(source.ask("made"), list[Made])
        requests = msgspec.convert(source.ask("requests"), list[Asked])
        if log := (Path(name) / "log").read_text():
            print(f"the bridge's log:\n{log[:2000]}", file=sys.stderr)
    verdict = judge(made, box.arrivals, since=course.measured_from, until=course.measured_until)
    return figures(vars(given), plan, course, made, requests, verdict)


async def follow(given: argparse.Namespace, source: processes.Cloud, box: Inbox, pid: int) -> Course:
    course = Course(begun=time.time())
    every = len(source.about["sessions"])
    await until(lambda: len(box.seen) >= every, within=given.warm_up)
    say(f"warm-up over: points of {len(box.seen)} of {every} sessions")
    used = Used(pid, source.pid)
    course.measured_from = time.time()
    await asyncio.sleep(given.minutes * 60)
    course.measured_until, course.cpu = time.time(), used.seconds()
    course.memory = processes.resident_mb(pid)
    await asyncio.to_thread(source.ask, "stop")
    made = msgspec.convert(await asyncio.to_thread(source.ask, "made"), list[Made])
    say(f"measured: {len(made):,} points made, {len(box.arrivals):,} have come")
    missing = await settle(box, last_values(made), within=given.settle)
    course.settled_after, course.missing = time.time() - course.measured_until, set(missing)
    if missing:
        incomplete = sorted({made[value].session for value in missing})
        say(f"{len(missing):,} points of {len(incomplete)} sessions have not come: ending these")
        course.ended, course.ended_at = set(incomplete), time.time()
        await asyncio.to_thread(source.ask, " ".join(("end", *incomplete)))
        await until(lambda: box.complete >= course.ended, within=FINAL_READINGS)
        course.final_until, course.unfinished = time.time(), len(course.ended - box.complete)
        say(f"final readings over after {course.final_until - course.ended_at:.0f} s (not over: {course.unfinished})")
    await asyncio.sleep(2)
    return course


async def settle(box: Inbox, wanted: set[int], *, within: float) -> set[int]:
    """What has not come in time."""
    left, through = set(wanted), 0

    def is_settled() -> bool:
        nonlocal through
        new, through = box.arrivals[through:], len(box.arrivals)
        left.difference_update(int(one.value) for one in new if one.value is not None)
        return not left

    await until(is_settled, within=within)
    return left


async def until(condition: Callable[[], bool], *, within: float) -> None:
    """Returns when the condition holds, or after so many seconds."""
    deadline = time.monotonic() + within
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.2)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--active", type=int, default=200, help="active data sessions")
    add("--series", type=int, default=3, help="series of each")
    add("--per-minute", type=int, default=120, help="cloud.requests_per_minute")
    add("--minutes", type=float, default=10.0, help="real minutes that are measured")
    add("--quirk", action="append", default=[], help="of the simulated cloud; may be given again")
    add("--datapoint-interval", default=None, help="such as 30s; the default one where it is not given")
    add("--age", type=float, default=2.0, help="minutes for which the sessions have been active at the start")
    add("--minute", type=float, default=45.0, help="minute of the hour at the start, by the cloud's clock")
    add("--pairs", type=int, default=1, help="pairs of active sessions that share a group")
    add("--late", type=float, default=0.02, help="share of points that come 1 to 5 minutes late")
    add("--revised", type=float, default=0.02, help="share of points that get other values later")
    add("--untouched", action="store_true", help="updated_at of a session stays when points come")
    add("--warm-up", type=float, default=600.0, help="seconds that it may take at most")
    add("--settle", type=float, default=300.0, help="seconds after which a point that has not come is missing")
    add("--json", type=Path, default=None, help="write the figures there, too")
    return parser.parse_args()


def main() -> None:
    given = options()
    found = asyncio.run(measure(given))
    print(table(found), flush=True)
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)) + b"\n")


if __name__ == "__main__":
    main()
