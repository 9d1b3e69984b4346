from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
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

    def at(self, time: float) -> float | None:
        place = bisect_left(self.times, time)
        return self.values[place] if place < len(self.times) and self.times[place] == time else None

    def between(self, lower: float, upper: float) -> tuple[list[float], list[float]]:
        rows = slice(bisect_left(self.times, lower), bisect_right(self.times, upper))
        return self.times[rows], self.values[rows]


class Samples:
    """Every session's tracks; a version tells whether an answer computed earlier still holds."""

    def __init__(self, changes: Callable[[str, str, Mapping[float, float | None]], None] | None = None) -> None:
        """`changes` is called with a session, a series, and the values of before at the times that change."""
        self._notify = changes
        self._tracks: dict[str, dict[str, Track]] = {}
        self._versions: dict[str, int] = {}
        self._changes = count(1)
        self.version = 0

    def add(self, session: str, series: str, points: Iterable[tuple[float, float]]) -> int:
        """How many of the points are new."""
        track = self._tracks.setdefault(session, {}).setdefault(series, Track())
        if self._notify is not None:
            points = list(points)
            self._notify(session, series, {float(at): track.at(float(at)) for at, _ in points})
        new = sum([track.add(float(at), float(value)) for at, value in points])
        self._changed(session)
        return new

    def restore(self, session: str, series: str, before: Mapping[float, float | None]) -> None:
        """Gives a copy the values of before."""
        track, old = self._tracks.get(session, {}).get(series), Track()
        for at, value in zip(track.times, track.values, strict=True) if track else ():
            kept = before.get(at, value)
            if kept is not None:
                old.add(at, kept)
        if old.times:
            self._tracks[session][series] = old
        else:
            self._tracks.get(session, {}).pop(series, None)

    def copy(self, version: int) -> "Samples":
        made = Samples()
        made._tracks = {session: dict(tracks) for session, tracks in self._tracks.items()}
        made._versions = dict.fromkeys(self._tracks, version)
        made.version = version
        return made

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
