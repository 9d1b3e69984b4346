"""What a scenario makes happen, in order; pure, and endless when something repeats for ever."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from heapq import merge
from itertools import count
from operator import attrgetter

from bace_bridge.simulator.scenario import Scenario, SessionPlan


class Deed(Enum):
    """In the order in which they come when several are due at once."""

    OPEN = "session opened"
    UPLOAD = "session uploaded"
    SAMPLE = "sample"
    RENAME = "session renamed"
    END = "session ended"
    REOPEN = "session reopened"
    RESTART = "ingestion restarted"
    LATE = "late points"
    INGESTED = "ingestion finished"


_RANK = {deed: rank for rank, deed in enumerate(Deed)}


@dataclass(frozen=True, slots=True)
class Run:
    """One playing of a session's plan: the first, or a repetition."""

    plan: SessionPlan
    place: int
    number: int
    begins: float


@dataclass(frozen=True, slots=True)
class Action:
    """`at`: seconds of the scenario, before `speed` is applied."""

    at: float
    deed: Deed
    run: Run


def timeline(scenario: Scenario) -> Iterator[Action]:
    return merge(*(_plan(plan, place) for place, plan in enumerate(scenario.sessions)), key=attrgetter("at"))


def _plan(plan: SessionPlan, place: int) -> Iterator[Action]:
    if plan.repeat is None:
        yield from _run(Run(plan, place, 0, plan.at))
        return
    numbers = count() if plan.repeat.times is None else range(plan.repeat.times)
    for number in numbers:
        yield from _run(Run(plan, place, number, plan.at + number * plan.repeat.every))


def _run(run: Run) -> Iterator[Action]:
    plan = run.plan
    deeds = [(0.0, Deed.OPEN)] if plan.duration is None else _deeds(plan, plan.duration)
    if plan.rename is not None:
        # A session cannot be renamed before the cloud knows it.
        deeds.append((max(plan.rename.at, min(at for at, _ in deeds)), Deed.RENAME))
    deeds.sort(key=lambda deed: (deed[0], _RANK[deed[1]]))
    events = (Action(run.begins + at, deed, run) for at, deed in deeds)
    samples = (Action(run.begins + at, Deed.SAMPLE, run) for at in live_samples(plan))
    return merge(events, samples, key=attrgetter("at"))


def _deeds(plan: SessionPlan, duration: float) -> list[tuple[float, Deed]]:
    if plan.offline_upload is not None:
        told = duration + plan.offline_upload
        deeds = [(told, Deed.UPLOAD)]
    else:
        told = plan.ends[-1]
        deeds = [(0.0, Deed.OPEN), *((end, Deed.END) for end in plan.ends)]
    if plan.reopen is not None:
        deeds.append((duration + plan.reopen.after, Deed.REOPEN))
        if plan.ingestion_lag < plan.reopen.after:
            deeds.append((duration + plan.ingestion_lag, Deed.INGESTED))
    deeds.append((told + plan.ingestion_lag, Deed.INGESTED))
    if plan.late_points is not None:
        late = told + plan.late_points.after
        deeds.append((late, Deed.LATE))
        if plan.late_points.after >= plan.ingestion_lag:
            # The cloud had thought that it was done: it begins again, and finishes again.
            deeds += [(late, Deed.RESTART), (late + plan.ingestion_lag, Deed.INGESTED)]
    return deeds


def live_samples(plan: SessionPlan) -> Iterator[float]:
    """When the device measures and tells it at once, counted from the session's beginning."""
    if plan.offline_upload is not None:
        return
    if plan.duration is None:
        yield from (number * plan.sample_every for number in count(1))
        return
    yield from spaced(0.0, plan.duration, plan.sample_every)
    if plan.reopen is not None:
        again = plan.duration + plan.reopen.after
        yield from spaced(again, again + plan.reopen.duration, plan.sample_every)


def spaced(begin: float, end: float, period: float) -> Iterator[float]:
    """One period after the begin, and so on, as long as it is before the end."""
    for number in count(1):
        at = begin + number * period
        if at >= end:
            return
        yield at
