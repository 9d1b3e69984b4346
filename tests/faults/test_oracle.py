"""The oracle sees each thing that may go wrong: an oracle that cannot fail proves nothing."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.acceptance.line import Arrival
from tests.faults.oracle import disagreements, judge

STAMP, LATER = "2026-01-31T10:00:00Z", "2026-02-01T00:00:00Z"
EXPECTED = {"s": {("series", 1769853600.0): 8.0, ("series", 1769853600.25): 9.0}}


def event(name: str, kind: str, *points: tuple[str, float, int], label: str = "one") -> Arrival:
    datapoints = [
        {"series_id": "series", "timestamp": at, "avg": value, "revision": revision} for at, value, revision in points
    ]
    body: dict[str, Any] = {"session": {"id": "s", "label": label}, "datapoints": datapoints}
    return Arrival(kind, name, "s", body)


def good() -> list[Arrival]:
    return [
        event("a", "session.started"),
        event("b", "session.datapoints", (STAMP, 7.0, 0)),
        event("b2", "session.updated", label="two"),
        event("c", "session.datapoints", (STAMP, 8.0, 1)),
        event("d", "session.ended", label="two"),
        event("e", "session.datapoints", ("2026-01-31T10:00:00.250Z", 9.0, 0)),
        event("f", "session.csv_ready", label="two"),
    ]


def kinds(arrivals: list[Arrival]) -> set[str]:
    return {one.kind for one in judge(arrivals, EXPECTED).complaints}


def test_it_has_no_complaint_about_what_is_right_and_counts_what_came_twice() -> None:
    arrivals = good()
    twice = [*arrivals[:3], *arrivals[1:]]
    verdict = judge(twice, EXPECTED)
    assert verdict.complaints == []
    assert (verdict.events, verdict.points, verdict.duplicates) == (7, 3, 2)
    assert disagreements({"mqtt": arrivals, "webhook": twice}, EXPECTED) == []


@pytest.mark.parametrize("place", range(7))
def test_whatever_is_lost_is_missed(place: int) -> None:
    arrivals = good()
    del arrivals[place]
    assert "lost" in kinds(arrivals)


def test_a_session_that_never_came_is_missed() -> None:
    assert kinds([]) == {"lost"}


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 3), (5, 6), (4, 6)])
def test_a_wrong_order_is_seen(one: int, other: int) -> None:
    arrivals = good()
    arrivals[one], arrivals[other] = arrivals[other], arrivals[one]
    assert "order" in kinds(arrivals)


def test_an_order_that_only_the_other_sink_gives_away_is_seen() -> None:
    arrivals = good()
    arrivals[4], arrivals[5] = arrivals[5], arrivals[4]
    assert kinds(arrivals) == set()
    assert [one.kind for one in disagreements({"mqtt": good(), "webhook": arrivals}, EXPECTED)] == ["order"]


def renamed(arrivals: list[Arrival], place: int, name: str) -> list[Arrival]:
    return [*arrivals, msgspec.structs.replace(arrivals[place], id=name)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda good: renamed(good, 0, "z"), "twice"),
        (lambda good: renamed(good, 3, "z"), "twice"),
        (lambda good: [*good, event("a", "session.started", label="another")], "values"),
        (lambda good: [*good[:3], event("c", "session.datapoints", (STAMP, 7.5, 1)), *good[4:]], "lost"),
        (lambda good: [*good[:6], event("x", "session.datapoints", (LATER, 1.0, 0)), good[6]], "values"),
    ],
    ids=["a fact with two ids", "a point with two ids", "other content", "not the final value", "an invented point"],
)
def test_other_facts_are_seen(change: Callable[[list[Arrival]], list[Arrival]], kind: str) -> None:
    assert kind in kinds(change(good()))
