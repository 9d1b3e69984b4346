"""Judges what was published by what the simulated cloud has shown."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf

import msgspec

from bench.fleet_points import Kind, Made

CLOSE = 0.0015
"""Seconds by which two times may differ and be the same one: a published one may have milliseconds."""


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A point as the receiver got it at `at`."""

    at: float
    session: str
    series: str
    timestamp: float
    value: float | None
    revision: int


class Verdict(msgspec.Struct, frozen=True):
    """`ages` are of what was shown in the measured time; what never came is infinitely old.

    `lost`: its last values were not published, or not as the last ones. `unknown`: the cloud has never shown it.
    """

    ages: dict[Kind, list[float]]
    lost: list[Made]
    doubled: list[Arrived]
    misattributed: list[Arrived]
    unknown: list[Arrived]


def judge(made: Sequence[Made], arrivals: Iterable[Arrived], *, since: float = -inf, until: float = inf) -> Verdict:
    """`made` by value. Values that were replaced before anyone read them need not have been published."""
    arrived: dict[int, float] = {}
    newest: dict[tuple[str, str, float], tuple[int, int]] = {}
    revisions: set[tuple[str, str, float, int]] = set()
    doubled, misattributed, unknown = [], [], []
    for one in arrivals:
        shown = _shown(made, one)
        if shown is None:
            unknown.append(one)
        elif shown.session != one.session:
            misattributed.append(one)
        elif shown.value in arrived or (*_place(shown), one.revision) in revisions:
            doubled.append(one)
        else:
            arrived[shown.value] = one.at
            revisions.add((*_place(shown), one.revision))
            newest[_place(shown)] = max((one.revision, shown.value), newest.get(_place(shown), (-1, -1)))
    last = {_place(one): one for one in made}
    ages: dict[Kind, list[float]] = defaultdict(list)
    for point in made:
        if since <= point.shown_at < until and (point.value in arrived or last[_place(point)] is point):
            ages[point.kind].append(arrived.get(point.value, inf) - point.shown_at)
    lost = [point for place, point in last.items() if newest.get(place, (-1, -1))[1] != point.value]
    return Verdict(dict(ages), lost, doubled, misattributed, unknown)


def _shown(made: Sequence[Made], one: Arrived) -> Made | None:
    if one.value is None or not one.value.is_integer() or not 0 <= one.value < len(made):
        return None
    shown = made[int(one.value)]
    is_it = shown.series == one.series and abs(shown.timestamp - one.timestamp) <= CLOSE
    return shown if is_it else None


def _place(one: Made) -> tuple[str, str, float]:
    return one.session, one.series, one.timestamp


def last_values(made: Iterable[Made]) -> set[int]:
    """The values that each point has at the end."""
    return set({_place(one): one.value for one in made}.values())


def percentile(ages: Sequence[float], share: float) -> float:
    return sorted(ages)[min(len(ages) - 1, int(len(ages) * share))] if ages else 0.0
