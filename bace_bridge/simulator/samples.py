"""Plausible values, the same ones for the same seed, and what the cloud makes of them when it shows a long time."""

import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple


@dataclass(slots=True)
class Track:
    """The samples of one series in one session, by time; one value a time, a later one corrects it."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> bool:
        """True when the sample is a new one and corrects none."""
        if not self.times or at > self.times[-1]:
            self.times.append(at)
            self.values.append(value)
            return True
        index = bisect_left(self.times, at)
        if self.times[index] == at:
            self.values[index] = value
            return False
        self.times.insert(index, at)
        self.values.insert(index, value)
        return True

    def at(self, time: float) -> float | None:
        index = bisect_left(self.times, time)
        return self.values[index] if index < len(self.times) and self.times[index] == time else None

    def between(self, lower: float, upper: float) -> tuple[list[float], list[float]]:
        rows = slice(bisect_left(self.times, lower), bisect_right(self.times, upper))
        return self.times[rows], self.values[rows]


class Samples:
    """Every session's tracks; a version says whether an answer computed earlier still holds."""

    def __init__(self, changes: Callable[[str, str, Mapping[float, float | None]], None] | None = None) -> None:
        """`changes` is called with a session, a series, and the values of before at the times that change."""
        self._notify = changes
        self.by_session: dict[str, dict[str, Track]] = {}
        self.versions: dict[str, int] = {}
        self._changes = count(1)
        self.version = 0

    def add(self, session: str, series: str, points: Iterable[tuple[float, float]]) -> int:
        """How many of the points are new."""
        track = self.by_session.setdefault(session, {}).setdefault(series, Track())
        if self._notify is not None:
            points = list(points)
            self._notify(session, series, {float(at): track.at(float(at)) for at, _ in points})
        new = sum(track.add(float(at), float(value)) for at, value in points)
        self._changed(session)
        return new

    def restore(self, session: str, series: str, before: Mapping[float, float | None]) -> None:
        """Gives a copy the values of before."""
        track, old = self.by_session.get(session, {}).get(series), Track()
        for at, value in zip(track.times, track.values, strict=True) if track else ():
            kept = before.get(at, value)
            if kept is not None:
                old.add(at, kept)
        if old.times:
            self.by_session[session][series] = old
        else:
            self.by_session.get(session, {}).pop(series, None)

    def copy(self, version: int) -> "Samples":
        made = Samples()
        made.by_session = {session: dict(tracks) for session, tracks in self.by_session.items()}
        made.versions = dict.fromkeys(self.by_session, version)
        made.version = version
        return made

    def forget(self, session: str) -> None:
        if self.by_session.pop(session, None) is not None:
            self._changed(session)

    def of(self, session: str) -> Mapping[str, Track]:
        """By series."""
        return self.by_session.get(session, {})

    def _changed(self, session: str) -> None:
        # Counted up for all sessions: a session that was forgotten and made again must not have an old version.
        self.version = next(self._changes)
        self.versions[session] = self.version


@dataclass(frozen=True, slots=True)
class Signal:
    """A rest value with a slow swing (`period` in seconds) and a little noise around it."""

    name: str
    unit: str
    rest: float
    swing: float
    period: float
    noise: float
    decimals: int
    low: float
    high: float
    drift_per_hour: float = 0.0


# 6000, 6001, 6002 and 6011 are known datatypes of BACE and 5205 seems to be one; 6005 is our invention.
SIGNALS: Mapping[int, Signal] = {
    6000: Signal("Heart rate", "bpm", 74, 9, 240, 2, 0, 38, 190),
    6001: Signal("Respiration rate", "/min", 15, 2.5, 180, 0.8, 0, 6, 40),
    6002: Signal("Oxygen saturation", "%", 97, 0.9, 300, 0.5, 0, 80, 100),
    6005: Signal("Body temperature", "°C", 36.8, 0.25, 3600, 0.05, 1, 34, 42),
    6011: Signal("Body weight", "kg", 72.4, 0.1, 5400, 0.15, 1, 2, 250),
    5205: Signal("Battery voltage", "V", 3.95, 0.01, 900, 0.005, 2, 3.0, 4.2, drift_per_hour=-0.03),
}
_OTHER = Signal("Value", "", 20, 4, 600, 0.5, 2, -1e6, 1e6)


def name_of(datatype: int) -> str:
    signal = SIGNALS.get(datatype)
    return signal.name if signal else f"Datatype {datatype}"


def value(datatype: int, at: float, *, seed: int, since: float = 0.0) -> float:
    """What the signal shows `at` seconds; `since`: when the session began, from where it drifts."""
    signal = SIGNALS.get(datatype, _OTHER)
    phase = _fraction(f"{seed}/{datatype}") * math.tau
    person = (_fraction(f"{seed}/{datatype}/person") - 0.5) * signal.swing
    wave = math.sin(at * math.tau / signal.period + phase)
    # 7.3 is no whole number, so that the pattern does not repeat with each swing.
    ripple = math.sin(at * math.tau / (signal.period / 7.3) + 2 * phase) / 3
    noise = (_fraction(f"{seed}/{datatype}/{at:.3f}") - 0.5) * 2 * signal.noise
    drift = signal.drift_per_hour * (at - since) / 3600
    shown = signal.rest + person + signal.swing * (wave + ripple) / 2 + noise + drift
    return round(min(signal.high, max(signal.low, shown)), signal.decimals)


def _fraction(text: str) -> float:
    """A number from 0 to 1 that is a function of the text in every process, unlike `hash`."""
    return zlib.crc32(text.encode()) / 0xFFFFFFFF


MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Resolution:
    """Up to which requested interval (seconds) the answer is raw, and up to which a row a minute.

    BACE does not publish its own thresholds, so they can be set; `raw=0` never answers raw samples.
    """

    raw: float = HOUR
    minute: float = DAY

    def width(self, interval: float | None) -> float:
        """The seconds in one bucket, 0 for raw samples; `interval` None: the request names none."""
        if interval is None:
            return DAY
        if interval <= self.raw and self.raw > 0:
            return 0.0
        return MINUTE if interval <= self.minute else HOUR


class Bucket(NamedTuple):
    timestamp: float
    min_val: float
    max_val: float
    avg_val: float
    count_val: int


def buckets(
    times: Sequence[float], values: Sequence[float], width: float, *, lone_at_start: bool = False
) -> list[Bucket]:
    """Samples in ascending order -> what the cloud serves of them.

    A bucket of one sample keeps that sample's own time, unless `lone_at_start`; any other has that at which it begins.
    """
    if width <= 0:
        return [Bucket(at, value, value, value, 1) for at, value in zip(times, values, strict=True)]
    found = []
    first = 0
    while first < len(times):
        begins = times[first] // width * width
        behind = bisect_left(times, begins + width, first)
        # Guards against rounding: a bucket always holds at least the sample that opened it.
        behind = max(behind, first + 1)
        inside = values[first:behind]
        count = len(inside)
        average = inside[0] if count == 1 else round(sum(inside) / count, 6)
        at = times[first] if count == 1 and not lone_at_start else begins
        found.append(Bucket(at, min(inside), max(inside), average, count))
        first = behind
    return found
