"""What a fleet of data sessions measures, point by point, in a simulated cloud."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Literal

import msgspec

from bace_bridge.simulator.cloud import SimulatedCloud

DATATYPES = (6000, 6001, 6002, 6011, 5205)
FURTHER_DATATYPES = 7000
LATE = (60.0, 300.0)
"""Seconds from a late point's time until the cloud shows it."""

REVISED_AFTER = (20.0, 200.0)
"""Seconds from when a point is shown until it gets other values."""

DAY = 86400
HOUR = 3600

Kind = Literal["live", "late", "revised"]


class Made(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A point, or new values of it, as the cloud shows it from `shown_at` (our clock) on. No other has its value."""

    value: int
    session: str
    series: str
    timestamp: float
    shown_at: float
    kind: Kind


class Plan(msgspec.Struct, frozen=True):
    """`ahead`: seconds that the cloud's clock is ahead of ours; `age`: for how long the sessions have been active."""

    kind: Literal["fleet", "once-an-hour", "one-hour-a-day", "wide"]
    active: int = 1
    series: int = 1
    every: float = 15.0
    age: float = 120.0
    pairs: int = 1
    late: float = 0.02
    revised: float = 0.02
    touch: bool = True
    ahead: float = 0.0
    quirks: tuple[str, ...] = ()


class Showing:
    """Puts points into the cloud and notes what it has shown since when."""

    def __init__(self, cloud: SimulatedCloud, *, ahead: float, touch: bool) -> None:
        self._cloud = cloud
        self._ahead = ahead
        self._touch = touch
        self.made: list[Made] = []

    def show(self, session: str, series: str, timestamp: float, kind: Kind) -> None:
        value = len(self.made)
        self._cloud.add_points(session, series, [(timestamp, value)], touch=self._touch)
        self.made.append(Made(value, session, series, timestamp, self._cloud.clock() - self._ahead, kind))


class Fleet:
    """Active data sessions, with one new point per series every so often. Some come late, some get other values."""

    def __init__(self, cloud: SimulatedCloud, plan: Plan, *, seed: int = 1) -> None:
        self._cloud = cloud
        self._plan = plan
        self._showing = Showing(cloud, ahead=plan.ahead, touch=plan.touch)
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self.sessions: list[str] = []
        self._open()

    @property
    def made(self) -> list[Made]:
        return self._showing.made

    def advance(self) -> None:
        """Everything that has become due."""
        while self._due and self._due[0][0] <= self._cloud.clock():
            at, _, act = heappop(self._due)
            act(at)

    def stop(self) -> None:
        self._due.clear()

    def _open(self) -> None:
        """The first sessions share a group, two each."""
        plan = self._plan
        start = int(self._cloud.clock() - plan.age)
        groups = [number // 2 if number < 2 * plan.pairs else number - plan.pairs for number in range(plan.active)]
        devices = [
            self._cloud.add_device(f"BaceGo-{number:04}", datatypes=datatypes(plan.series))
            for number in range(max(groups) + 1)
        ]
        for number, group in enumerate(groups):
            device = devices[group]
            session = self._cloud.open_session(device.id_group, start=start, created_at=start)
            self.sessions.append(session)
            series = [one.id_container_data_latest for one in device.series]
            self._at(start + plan.every * (number + 0.5) / plan.active, partial(self._sample, session, series))

    def _sample(self, session: str, series: list[str], at: float) -> None:
        for one in series:
            if self._random.random() < self._plan.late:
                self._at(at + self._random.uniform(*LATE), partial(self._show, session, one, round(at, 3), "late"))
            else:
                self._show(session, one, round(at, 3), "live", at)
        self._at(at + self._plan.every, partial(self._sample, session, series))

    def _show(self, session: str, series: str, timestamp: float, kind: Kind, at: float) -> None:
        self._showing.show(session, series, timestamp, kind)
        if kind != "revised" and self._random.random() < self._plan.revised:
            again = partial(self._show, session, series, timestamp, "revised")
            self._at(at + self._random.uniform(*REVISED_AFTER), again)

    def _at(self, at: float, act: Callable[[float], None]) -> None:
        heappush(self._due, (at, next(self._order), act))


def datatypes(count: int) -> tuple[int, ...]:
    return (*DATATYPES, *range(FURTHER_DATATYPES, FURTHER_DATATYPES + count))[:count]


def finished(cloud: SimulatedCloud, plan: Plan) -> tuple[str, list[Made]]:
    """One session that was over yesterday, with all of its points."""
    showing = Showing(cloud, ahead=plan.ahead, touch=False)
    device = cloud.add_device("BaceGo-once", datatypes=datatypes(plan.series))
    end = int(cloud.clock()) // DAY * DAY - DAY
    start = end - (40 * DAY if plan.kind != "wide" else 90 * 60)
    session = cloud.open_session(device.id_group, start=start, created_at=start + 4)
    for at in _times(plan, start, end):
        for series in device.series:
            showing.show(session, series.id_container_data_latest, at, "live")
    cloud.end_session(session, end=end)
    cloud.finish_ingestion(session)
    return session, showing.made


def _times(plan: Plan, start: int, end: int) -> list[float]:
    """940 in 40 days, or ten for many series."""
    if plan.kind == "one-hour-a-day":
        numbers = [(number // 24, number % 24) for number in range(960)]
        return [start + day * DAY + 9 * HOUR + 7.5 + 140.0 * place for day, place in numbers if place or day % 2]
    count = 10 if plan.kind == "wide" else 940
    return [round(start + 7.5 + number * (end - start - 30) / count, 3) for number in range(count)]
