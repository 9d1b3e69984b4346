"""Compares what the simulated cloud showed with what each sink got."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from tests.acceptance.line import Arrival, Complaint, Expected, complaints


class Verdict(msgspec.Struct, frozen=True):
    """Of one sink: figures, and all that is wrong."""

    events: int
    points: int
    duplicates: int
    complaints: list[Complaint]

    def of_kind(self, kind: str) -> int:
        return sum(one.kind == kind for one in self.complaints)


def judge(arrivals: Sequence[Arrival], expected: Expected) -> Verdict:
    """Events may come twice, but then with the same content; everything else as ever."""
    first: dict[str, Arrival] = {}
    wrong = complaints(arrivals, expected, twice_allowed=True)
    for one in arrivals:
        if first.setdefault(one.id, one) != one:
            wrong.append(Complaint("values", f"{one.id} came again with another content"))
    return Verdict(
        events=len(first),
        points=sum(len(one.body.get("datapoints", [])) for one in first.values()),
        duplicates=len(arrivals) - len(first),
        complaints=wrong,
    )


def disagreements(sinks: Mapping[str, Sequence[Arrival]], expected: Expected) -> list[Complaint]:
    """Both sinks read one log, so each session's events must have come to them in one order."""
    (one, first), (other, second) = ((name, _by_session(arrivals)) for name, arrivals in sinks.items())
    differing = [session for session in expected if first.get(session) != second.get(session)]
    return [Complaint("order", f"{session}: {one} and {other} got other orders") for session in differing]


def _by_session(arrivals: Sequence[Arrival]) -> dict[str | None, list[str]]:
    found: dict[str | None, dict[str, None]] = {}
    for one in arrivals:
        found.setdefault(one.session, {}).setdefault(one.id)
    return {session: list(ids) for session, ids in found.items()}


class Tally:
    """How far a sink has got, without looking at everything each time."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = arrivals
        self._through = 0
        self._ids: Counter[str] = Counter()
        self._ready: set[str | None] = set()

    @property
    def events(self) -> int:
        self._look()
        return len(self._ids)

    @property
    def ready(self) -> set[str | None]:
        """The sessions whose CSV has arrived."""
        self._look()
        return self._ready

    def _look(self) -> None:
        while self._through < len(self._arrivals):
            one = self._arrivals[self._through]
            self._through += 1
            self._ids[one.id] += 1
            if one.type == "session.csv_ready":
                self._ready.add(one.session)
