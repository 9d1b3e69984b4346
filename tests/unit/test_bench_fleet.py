"""The measuring tool of a fleet catches what it is there to catch."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from bench.fleet_cloud import Asked, asked
from bench.fleet_figures import round_seconds
from bench.fleet_oracle import Arrived, Verdict, judge, last_values, percentile
from bench.fleet_points import Fleet, Made, Plan, finished
from tests.integration.polling_line import Clock

PLAN = Plan("fleet", active=6, series=2, age=60.0, late=0.1, revised=0.1)


def played(plan: Plan = PLAN, minutes: int = 10) -> tuple[Fleet, SimulatedCloud]:
    clock = Clock()
    cloud = SimulatedCloud(clock=clock)
    fleet = Fleet(cloud, plan)
    for _ in range(minutes * 60):
        fleet.advance()
        clock.forward(1)
    return fleet, cloud


def published(made: list[Made]) -> list[Arrived]:
    """As a bridge does it that reads everything two seconds after it was shown."""
    revisions: Counter[tuple[str, str, float]] = Counter()
    arrivals = []
    for one in made:
        place = (one.session, one.series, one.timestamp)
        arrivals.append(
            Arrived(one.shown_at + 2, one.session, one.series, one.timestamp, float(one.value), revisions[place])
        )
        revisions[place] += 1
    return arrivals


def wrong(verdict: Verdict) -> dict[str, int]:
    found = {
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "misattributed": len(verdict.misattributed),
        "unknown": len(verdict.unknown),
    }
    return {name: count for name, count in found.items() if count}


def test_a_right_bridge_is_not_blamed() -> None:
    fleet, _ = played()
    verdict = judge(fleet.made, published(fleet.made))
    assert not wrong(verdict)
    assert {age for ages in verdict.ages.values() for age in ages} == {2.0}
    assert {kind: len(ages) for kind, ages in verdict.ages.items()} == Counter(one.kind for one in fleet.made)
    assert set(verdict.ages) == {"live", "late", "revised"}


def test_what_the_cloud_serves_at_the_end_is_all_that_is_missed() -> None:
    """Values that were replaced before anyone read them need not come."""
    fleet, cloud = played()
    served = [
        Arrived(0.0, session, series, at, value, 0)
        for session in fleet.sessions
        for series, track in cloud.samples.of(session).items()
        for at, value in zip(track.times, track.values, strict=True)
    ]
    assert not wrong(judge(fleet.made, served))
    assert {one.value for one in served} == last_values(fleet.made)
    assert len(served) < len(fleet.made)


def changed(one: Arrived, **changes: Any) -> Arrived:
    return msgspec.structs.replace(one, **changes)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda _one, _other: [], {"lost": 1}),
        (lambda one, _: [one, one], {"doubled": 1}),
        (lambda one, _: [one, changed(one, revision=1)], {"doubled": 1}),
        (lambda one, other: [changed(one, session=other)], {"lost": 1, "misattributed": 1}),
        (lambda one, other: [one, changed(one, session=other)], {"misattributed": 1}),
        (lambda one, _: [changed(one, timestamp=one.timestamp + 1)], {"lost": 1, "unknown": 1}),
        (lambda one, _: [changed(one, series="another")], {"lost": 1, "unknown": 1}),
        (lambda one, _: [changed(one, value=0.5)], {"lost": 1, "unknown": 1}),
        (lambda one, _: [changed(one, value=None)], {"lost": 1, "unknown": 1}),
    ],
    ids=["lost", "twice", "twice as a revision", "moved", "copied", "time", "series", "values", "no values"],
)
def test_a_wrong_bridge_is_found_out(change: Callable[[Arrived, str], list[Arrived]], found: dict[str, int]) -> None:
    """`other` is the session that has the same group, and so the same series."""
    fleet, _ = played()
    arrivals = published(fleet.made)
    one, other = fleet.sessions[:2]
    at = next(place for place, made in enumerate(fleet.made) if made.session == one and is_plain(made, fleet.made))
    arrivals[at : at + 1] = change(arrivals[at], other)
    assert wrong(judge(fleet.made, arrivals)) == found


def is_plain(one: Made, made: list[Made]) -> bool:
    """Its values never change."""
    return [(other.series, other.timestamp) for other in made].count((one.series, one.timestamp)) == 1


def test_older_values_must_not_come_last() -> None:
    fleet, _ = played()
    arrivals = published(fleet.made)
    newer = next(place for place, one in enumerate(arrivals) if one.revision == 1)
    older = next(place for place, one in enumerate(arrivals) if same_point(one, arrivals[newer]))
    arrivals[older] = changed(arrivals[older], revision=1)
    arrivals[newer] = changed(arrivals[newer], revision=0)
    assert wrong(judge(fleet.made, arrivals)) == {"lost": 1}


def test_two_values_must_not_have_one_revision() -> None:
    fleet, _ = played()
    arrivals = [changed(one, revision=0) for one in published(fleet.made)]
    revised = sum(one.kind == "revised" for one in fleet.made)
    assert wrong(judge(fleet.made, arrivals)) == {"lost": revised, "doubled": revised}


def same_point(one: Arrived, other: Arrived) -> bool:
    return (one.session, one.series, one.timestamp) == (other.session, other.series, other.timestamp)


def test_what_never_came_is_old_without_end() -> None:
    fleet, _ = played()
    since = fleet.made[-1].shown_at - 100
    measured = sum(one.shown_at >= since for one in fleet.made)
    ages = [age for each in judge(fleet.made, [], since=since).ages.values() for age in each]
    assert 0 < len(ages) <= measured
    assert percentile(ages, 0.5) == float("inf")


def test_a_fleet_has_the_points_that_were_asked_for() -> None:
    fleet, cloud = played(msgspec.structs.replace(PLAN, late=0.0, revised=0.0))
    sessions = [cloud.session(one) for one in fleet.sessions]
    assert len({one.id_group for one in sessions}) == len(sessions) - PLAN.pairs
    assert sessions[0].id_group == sessions[1].id_group
    assert {one.datapoint_count for one in sessions} == {PLAN.series * 11 * 60 // int(PLAN.every)}
    assert len({one.timestamp for one in fleet.made}) == len(fleet.made) / PLAN.series
    fleet.stop()
    fleet.advance()


@pytest.mark.parametrize(
    ("kind", "series", "points", "hours"),
    [("once-an-hour", 1, 940, 940), ("one-hour-a-day", 1, 940, 40), ("wide", 130, 1300, 2)],
)
def test_a_sparse_session_is_over(kind: Any, series: int, points: int, hours: int) -> None:
    clock = Clock()
    cloud = SimulatedCloud(clock=clock)
    session, made = finished(cloud, Plan(kind, series=series))
    assert len(made) == points == cloud.session(session).datapoint_count
    assert len({one.timestamp // 3600 for one in made}) == hours
    assert cloud.session(session).is_ingestion_finished
    assert all(cloud.session(session).start <= one.timestamp <= (cloud.session(session).end or 0) for one in made)


def datapoints(at: float, *query: tuple[str, str]) -> Asked:
    return asked(RequestSeen(at, "GET", "/api/v2/data-downsampled", query, 200), ahead=0.0)


def test_a_turn_is_a_request_for_what_is_new() -> None:
    one, many = "filter[id_data_session]", "filter[id_data_session][in][]"
    live = (("filter[timestamp_seconds][gte]", "0"), ("filter[timestamp_seconds][lt]", "3600"), ("page", "1"))
    past = (("filter[timestamp_seconds][gte]", "0"), ("filter[timestamp_seconds][lt]", "60"))
    requests = [
        datapoints(100, (one, "a"), *live),
        datapoints(105, (one, "a"), *past),
        datapoints(110, (one, "a"), *live, ("page", "2")),
        datapoints(120, (many, "a"), (many, "b"), *live),
        datapoints(150, (many, "a"), (many, "b"), *live),
    ]
    assert [request.is_live for request in requests] == [True, False, False, True, True]
    assert requests[-1].names == ["a", "b"]
    assert round_seconds(requests) == 30
    assert round_seconds(requests, until=120) == 20
    assert round_seconds(requests[:1]) is None
