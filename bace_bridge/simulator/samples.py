from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from itertools import count


class Track:
    """The samples of one series in one session, by time; one value a time, a later one corrects it."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.values: list[float] = []

    def add(self, at: float, value: float) -> bool:
        """True when the sample is a new one and corrects none."""
        if not self.times or at > self.times[-1]:
            self.times.append(at)
            self.values.append(value)
            return True
        place = bisect_left(self.times, at)
        if self.times[place] == at:
            self.values[place] = value
            return False
        insort(self.times, at)
        self.values.insert(place, value)
        return True

    def between(self, lower: float, upper: float) -> tuple[list[float], list[float]]:
        rows = slice(bisect_left(self.times, lower), bisect_right(self.times, upper))
        return self.times[rows], self.values[rows]


class Samples:
    """Every session's tracks; a version tells whether an answer computed earlier still holds."""

    def __init__(self) -> None:
        self._tracks: dict[str, dict[str, Track]] = {}
        self._versions: dict[str, int] = {}
        self._changes = count(1)
        self.version = 0

    def add(self, session: str, series: str, points: Iterable[tuple[float, float]]) -> int:
        """How many of the points are new."""
        track = self._tracks.setdefault(session, {}).setdefault(series, Track())
        new = sum([track.add(float(at), float(value)) for at, value in points])
        self._changed(session)
        return new

    def forget(self, session: str) -> None:
        if self._tracks.pop(session, None) is not None:
            self._changed(session)

    def of(self, session: str) -> Mapping[str, Track]:
        """By series."""
        return self._tracks.get(session, {})

    def sessions(self) -> Iterable[str]:
        return self._tracks.keys()

    def version_of(self, session: str) -> int:
        return self._versions.get(session, 0)

    def _changed(self, session: str) -> None:
        self.version = next(self._changes)
        self._versions[session] = self.version
