"""The figures of a fleet, and how they are shown."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Any

import msgspec

from bench.fleet_cloud import Asked
from bench.fleet_oracle import Verdict, percentile
from bench.fleet_points import HOUR, Made, Plan

KINDS = ("list", "view", "datapoints", "group", "other")
INTERVAL = 15.0
"""Seconds of the default `datapoint_interval`."""

AGES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


class Requests(msgspec.Struct, frozen=True):
    """Of a time: `a_minute` by endpoint; `failed` by status and endpoint; a round is from a session's turn to its next.

    `round_seconds` is None where no session had two turns.
    """

    seconds: float
    total: int
    a_minute: dict[str, float]
    failed: dict[str, int]
    round_seconds: float | None
    a_round: float | None
    an_interval: float
    names: float


class FinalReadings(msgspec.Struct, frozen=True):
    """Of the sessions that missed points and were ended: how long they took, all together, and their own requests.

    `unfinished` are those that were not over when the bench gave up; `others` are all other requests meanwhile.
    """

    sessions: int
    unfinished: int
    seconds: float
    requests: int
    others: int


class Figures(msgspec.Struct, frozen=True):
    """`ages` in seconds, by kind of point; `missing_until_end` came only when its session had been ended."""

    options: dict[str, Any]
    warm_up: Requests
    measured: Requests
    cloud_minutes: tuple[float, float]
    ages: dict[str, dict[str, float | None]]
    points: dict[str, int]
    settled_after: float
    missing_until_end: dict[str, int]
    final_readings: FinalReadings
    lost: dict[str, int]
    doubled: int
    misattributed: int
    unknown: int
    bridge_cpu_seconds: float
    cloud_cpu_seconds: float
    bridge_memory_mb: float


class Course(msgspec.Struct):
    """When what happened, by our clock."""

    begun: float
    measured_from: float = 0.0
    measured_until: float = 0.0
    settled_after: float = 0.0
    missing: set[int] = msgspec.field(default_factory=set)
    ended: set[str] = msgspec.field(default_factory=set)
    ended_at: float = 0.0
    final_until: float = 0.0
    unfinished: int = 0
    cpu: list[float] = msgspec.field(default_factory=list)
    memory: float = 0.0


def figures(
    options: dict[str, Any], plan: Plan, course: Course, made: Sequence[Made], requests: list[Asked], verdict: Verdict
) -> Figures:
    ages: dict[str, list[float]] = {kind: list(each) for kind, each in verdict.ages.items()}
    ages["all"] = [age for each in verdict.ages.values() for age in each]
    lost = {one.value for one in verdict.lost}
    return Figures(
        options=options,
        warm_up=counted(requests, course.begun, course.measured_from),
        measured=counted(requests, course.measured_from, course.measured_until),
        cloud_minutes=(minute(course.measured_from, plan), minute(course.measured_until, plan)),
        ages={kind: summary(each) for kind, each in ages.items()},
        points={kind: len(each) for kind, each in ages.items()},
        settled_after=course.settled_after,
        missing_until_end=Counter(made[value].kind for value in course.missing - lost),
        final_readings=final_readings(course, requests),
        lost=Counter(one.kind for one in verdict.lost),
        doubled=len(verdict.doubled),
        misattributed=len(verdict.misattributed),
        unknown=len(verdict.unknown),
        bridge_cpu_seconds=course.cpu[0],
        cloud_cpu_seconds=course.cpu[1],
        bridge_memory_mb=course.memory,
    )


def final_readings(course: Course, requests: Sequence[Asked]) -> FinalReadings:
    within = [one for one in requests if course.ended_at <= one.at < course.final_until]
    own = [one for one in within if one.kind == "datapoints" and len(one.names) == 1 and one.names[0] in course.ended]
    return FinalReadings(
        sessions=len(course.ended),
        unfinished=course.unfinished,
        seconds=course.final_until - course.ended_at,
        requests=len(own),
        others=len(within) - len(own),
    )


def minute(at: float, plan: Plan) -> float:
    return (at + plan.ahead) % HOUR / 60


def summary(ages: Sequence[float]) -> dict[str, float | None]:
    """None where so many have never come."""
    found = {name: percentile(ages, share) for name, share in AGES}
    return {name: None if age == inf else age for name, age in found.items()}


def counted(requests: Sequence[Asked], since: float, until: float) -> Requests:
    within = [one for one in requests if since <= one.at < until]
    minutes = max(until - since, 1.0) / 60
    kinds = Counter(one.kind for one in within)
    datapoints = [one for one in within if one.kind == "datapoints"]
    a_round = round_seconds(requests, since, until)
    return Requests(
        seconds=until - since,
        total=len(within),
        a_minute={kind: kinds[kind] / minutes for kind in KINDS},
        failed=Counter(f"{one.status} {one.kind}" for one in within if one.status != 200),
        round_seconds=a_round,
        a_round=None if a_round is None else kinds["datapoints"] / minutes / 60 * a_round,
        an_interval=kinds["datapoints"] / minutes / 60 * INTERVAL,
        names=statistics.fmean([len(one.names) for one in datapoints]) if datapoints else 0.0,
    )


def round_seconds(requests: Iterable[Asked], since: float = -inf, until: float = inf) -> float | None:
    """The median of the times from one reading of a session's newest points, in that time, to the next one."""
    turns: dict[str, list[float]] = defaultdict(list)
    for one in requests:
        if one.is_live and one.status == 200:
            for name in one.names:
                turns[name].append(one.at)
    gaps = [after - at for each in turns.values() for at, after in pairwise(each) if since <= at < until]
    return statistics.median(gaps) if gaps else None


def table(found: Figures) -> str:
    return "\n".join([heading(found), *of_ages(found), *of_requests(found), *of_points(found), of_costs(found)])


def heading(found: Figures) -> str:
    options, (first, last) = found.options, found.cloud_minutes
    quirks = "".join(f", {quirk}" for quirk in options["quirk"])
    return (
        f"{options['active']} x {options['series']} at {options['per_minute']}/min{quirks}: "
        f"{found.measured.seconds / 60:.1f} minutes (minute {first:.0f} to {last:.0f} of the hour)"
    )


def of_ages(found: Figures) -> Iterable[str]:
    yield f"  {'age of a point, s':<22}" + "".join(f"{name:>10}" for name, _ in AGES) + f"{'points':>10}"
    for kind in ("live", "late", "revised", "all"):
        if kind in found.ages:
            ages = "".join(f"{digits(found.ages[kind][name]):>10}" for name, _ in AGES)
            yield f"    {kind:<20}{ages}{found.points[kind]:>10,}"


def of_requests(found: Figures) -> Iterable[str]:
    measured, warm_up = found.measured, found.warm_up
    yield f"  {'requests a minute':<22}" + "".join(f"{kind:>12}" for kind in KINDS) + f"{'all':>12}"
    figures = [*measured.a_minute.values(), measured.total / measured.seconds * 60]
    yield f"  {'':<22}" + "".join(f"{one:>12.1f}" for one in figures)
    yield f"  failed requests: {shown(measured.failed)}"
    yield (
        f"  a round: {digits(measured.a_round)} datapoint requests in {digits(measured.round_seconds)} s; "
        f"{measured.an_interval:.1f} in {INTERVAL:g} s; {measured.names:.1f} ids in one"
    )
    of_datapoints = warm_up.a_minute["datapoints"] * warm_up.seconds / 60
    yield (
        f"  warm-up: {warm_up.seconds:.0f} s, {warm_up.total} requests, {of_datapoints:.0f} of them for datapoints; "
        f"failed: {shown(warm_up.failed)}"
    )


def of_points(found: Figures) -> Iterable[str]:
    yield (
        f"  points lost: {shown(found.lost)}; twice: {found.doubled}; under a wrong session: {found.misattributed}; "
        f"never shown: {found.unknown}"
    )
    if found.missing_until_end or found.lost:
        came, final = shown(found.missing_until_end), found.final_readings
        yield f"  missing {found.settled_after:.0f} s after the last was made, there when the session had ended: {came}"
        yield (
            f"  final readings of {final.sessions} sessions over after {final.seconds:.0f} s (not over: "
            f"{final.unfinished}): {final.requests} requests of their own, {final.others} others meanwhile"
        )
    else:
        yield f"  all had come {found.settled_after:.0f} s after the last was made"


def of_costs(found: Figures) -> str:
    bridge, cloud = (
        f"{seconds:.1f} s ({100 * seconds / found.measured.seconds:.1f} %)"
        for seconds in (found.bridge_cpu_seconds, found.cloud_cpu_seconds)
    )
    return f"  CPU: bridge {bridge}, simulated cloud {cloud}; memory of the bridge {found.bridge_memory_mb:.0f} MB"


def digits(figure: float | None) -> str:
    return "never" if figure is None else f"{figure:.1f}"


def shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{times} x {what}" for what, times in sorted(counts.items())) or "0"
