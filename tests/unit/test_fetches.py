from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bace_bridge.polling.rules.fetches import (
    INTERVALS_CURRENT,
    MOST_FAILED_FETCHES,
    MOST_SHORT_READS,
    SHORTLY,
    SLOWEST_FETCH,
    SLOWEST_LATE_FETCH,
    Outcome,
    conclude,
    end_is_due,
    is_current,
    judge,
)
from bace_bridge.polling.rules.sessions import END_PATIENCE, DataSession, KnownSession, in_the_log
from bace_bridge.polling.rules.summaries import EMPTY

NOON = 1_764_590_400.0
ACTIVE = KnownSession(session=DataSession("s1", "g1", NOON - 60), fetch_at=NOON)
ENDED = replace(ACTIVE, session=replace(ACTIVE.session, end=NOON - 5), end_seen_at=NOON)
INGESTED = replace(ENDED, session=replace(ENDED.session, ingestion_finished=True, datapoint_count=3), csv_due=True)
END_EMITTED = {"end_emitted": NOON - 5}
UNREAD = replace(
    INGESTED,
    **END_EMITTED,
    csv_due=False,
    csv_revision=0,
    csv_facts=(3, NOON - 5, 0),
    unread=True,
    failed_fetches=MOST_FAILED_FETCHES,
)


def after(known: KnownSession, outcome: Outcome | None, *, now: float = NOON) -> tuple[KnownSession, list[str]]:
    concluded = conclude(known, outcome, summary=EMPTY, csv_url="https://cloud.example/csv", interval=15.0, now=now)
    return concluded.known, [event.type for event in concluded.events]


@pytest.mark.parametrize(
    ("known", "read", "failed", "waited", "due"),
    [
        (ACTIVE, True, False, 0.0, False),
        (ENDED, True, False, 0.0, True),
        (ENDED, False, True, 0.0, True),
        (ENDED, False, False, END_PATIENCE - 0.1, False),
        (ENDED, False, False, END_PATIENCE, True),
        (replace(ENDED, end_seen_at=None), False, False, 1e6, False),
        (replace(ENDED, over_when_found=True), False, False, 1e6, False),
        (replace(ENDED, over_when_found=True), True, False, 0.0, True),
        (replace(ENDED, end_emitted=NOON - 5), True, True, 1e6, False),
        (replace(ENDED, removed=True), True, True, 1e6, False),
    ],
    ids=[
        "active",
        "all is read",
        "nothing can be read",
        "patience",
        "no more patience",
        "the end was seen nobody knows when",
        "history has time",
        "history is read",
        "emitted already",
        "removed",
    ],
)
def test_when_an_end_is_due(known: KnownSession, read: bool, failed: bool, waited: float, due: bool) -> None:
    assert end_is_due(known, read=read, failed=failed, now=NOON + waited) is due


@pytest.mark.parametrize(
    ("known", "outcome", "emitted"),
    [
        (ACTIVE, "read", []),
        (ENDED, "read", ["session.ended"]),
        (ENDED, "failed", ["session.ended"]),
        (ENDED, "more", []),
        (ENDED, "forbidden", ["session.ended"]),
        (ENDED, "unavailable", []),
        (ENDED, None, []),
        (INGESTED, "read", ["session.ended", "session.csv_ready"]),
        (INGESTED, "failed", ["session.ended"]),
        (INGESTED, "forbidden", ["session.ended", "session.csv_ready"]),
        (INGESTED, "more", []),
        (replace(INGESTED, **END_EMITTED), "read", ["session.csv_ready"]),
        (replace(INGESTED, **END_EMITTED), "unavailable", []),
        (replace(INGESTED, **END_EMITTED), None, []),
        (replace(INGESTED, **END_EMITTED, failed_fetches=MOST_FAILED_FETCHES - 2), "failed", []),
        (replace(INGESTED, **END_EMITTED, failed_fetches=MOST_FAILED_FETCHES - 1), "failed", ["session.csv_ready"]),
        (replace(INGESTED, removed=True, csv_due=False), "read", []),
    ],
)
def test_what_a_fetch_leads_to(known: KnownSession, outcome: Outcome | None, emitted: list[str]) -> None:
    concluded, types = after(known, outcome)
    assert types == emitted
    if emitted:
        assert after(concluded, outcome, now=NOON + 1)[1] == []


def test_a_slow_cloud_does_not_hold_an_alarm() -> None:
    known, emitted = after(ENDED, None, now=NOON + END_PATIENCE)
    assert emitted == ["session.ended"]
    assert known.end_emitted == NOON - 5
    assert after(known, "read", now=NOON + 60)[1] == []


@pytest.mark.parametrize(
    ("changes", "emitted", "revision"),
    [
        ({}, True, 0),
        ({"csv_revision": 0, "csv_facts": (3, NOON - 5, 0)}, False, 0),
        ({"csv_revision": 0, "csv_facts": (3, NOON - 5, 0), "points_since_csv": True}, True, 1),
        ({"csv_revision": 4, "csv_facts": (2, NOON - 5, 0)}, True, 5),
        ({"csv_revision": 0, "csv_facts": (3, NOON - 9, 0)}, True, 1),
        ({"csv_revision": 0, "csv_facts": (3, NOON - 5, 0), "reopenings": 1}, True, 1),
    ],
    ids=["first", "the same again", "other points", "another count", "another end", "reopened"],
)
def test_a_csv_has_a_new_revision_where_it_holds_something_new(
    changes: dict[str, Any], emitted: bool, revision: int
) -> None:
    known = replace(INGESTED, **END_EMITTED, **changes)
    concluded = conclude(known, "read", summary=EMPTY, csv_url="https://cloud.example/csv", interval=15.0, now=NOON)
    shown = [msgspec.json.decode(event.data)["csv"] for event in concluded.events]
    assert shown == (
        [{"url": "https://cloud.example/csv", "revision": revision, "datapoint_count": 3}] if emitted else []
    )
    after = concluded.known
    assert [in_the_log(event, after)["revision"] for event in concluded.events] == ([revision] if emitted else [])
    assert (after.csv_revision, after.csv_due, after.points_since_csv) == (revision, False, False)
    assert after.csv_facts == after.facts_for_csv


@pytest.mark.parametrize(
    ("known", "outcome", "wait"),
    [
        (ACTIVE, "read", 15.0),
        (ACTIVE, "more", 0.0),
        (ACTIVE, "unavailable", 15.0),
        (ACTIVE, "failed", 15.0),
        (ACTIVE, "forbidden", 15.0),
        (replace(ACTIVE, failed_fetches=6), "failed", 64.0),
        (replace(ACTIVE, failed_fetches=40), "failed", 300.0),
        (ENDED, "read", 15.0),
        (replace(ENDED, session=replace(ENDED.session, end=NOON - 2000)), "read", 100.0),
        (replace(ENDED, session=replace(ENDED.session, end=NOON - 1e6)), "read", SLOWEST_LATE_FETCH),
        (replace(ENDED, session=replace(ENDED.session, end=NOON + 1e6)), "read", 15.0),
        (INGESTED, "read", None),
        (INGESTED, "unavailable", 15.0),
        (INGESTED, "failed", 15.0),
        (replace(INGESTED, **END_EMITTED, failed_fetches=MOST_FAILED_FETCHES - 1), "failed", SLOWEST_LATE_FETCH),
        (replace(INGESTED, **END_EMITTED, failed_fetches=MOST_FAILED_FETCHES - 1), "unavailable", 15.0),
        (replace(UNREAD, failed_fetches=MOST_FAILED_FETCHES), "failed", SLOWEST_LATE_FETCH),
        (replace(UNREAD, session=replace(UNREAD.session, start=NOON - 1e8, end=NOON - 20_000)), "failed", 1000.0),
        (replace(UNREAD, session=replace(UNREAD.session, start=NOON - 1e8, end=NOON - 1e7)), "failed", SLOWEST_FETCH),
        (replace(UNREAD, session=replace(UNREAD.session, start=NOON - 1e8, end=NOON - 1e7)), "unavailable", 15.0),
        (UNREAD, "read", None),
        (replace(ACTIVE, removed=True), "read", None),
        (replace(ACTIVE, removed=True), "more", None),
    ],
)
def test_when_the_next_fetch_is(known: KnownSession, outcome: Outcome, wait: float | None) -> None:
    assert after(known, outcome)[0].fetch_at == (None if wait is None else NOON + wait)


@pytest.mark.parametrize(
    ("known", "outcome", "left_out", "emitted", "unread"),
    [
        (replace(INGESTED, **END_EMITTED, failed_fetches=MOST_FAILED_FETCHES - 1), "failed", False, True, True),
        (replace(INGESTED, **END_EMITTED), "failed", False, False, False),
        (replace(INGESTED, **END_EMITTED), "read", True, True, True),
        (replace(ENDED, failed_fetches=MOST_FAILED_FETCHES - 1), "failed", False, False, False),
        (INGESTED, "forbidden", False, True, True),
        (UNREAD, "failed", False, False, True),
        (UNREAD, "unavailable", False, False, True),
        (UNREAD, "read", False, False, False),
        (UNREAD, "read", True, False, True),
        (replace(UNREAD, points_since_csv=True), "read", False, True, False),
        (replace(UNREAD, points_since_csv=True), "failed", False, True, True),
        (replace(UNREAD, points_since_csv=True), "unavailable", False, False, True),
        (replace(UNREAD, removed=True), "read", True, False, False),
    ],
)
def test_what_could_not_be_read_is_tried_on_and_reported(
    known: KnownSession, outcome: Outcome, left_out: bool, emitted: bool, unread: bool
) -> None:
    concluded = conclude(known, outcome, summary=EMPTY, csv_url="url", interval=15.0, now=NOON, left_out=left_out)
    assert ("session.csv_ready" in [event.type for event in concluded.events]) is emitted
    assert concluded.known.unread is unread


def test_failures_count_in_a_row() -> None:
    known = ACTIVE
    for outcome, failures in [
        ("failed", 1),
        ("failed", 2),
        (None, 2),
        ("unavailable", 2),
        ("forbidden", 2),
        ("failed", 3),
        ("read", 0),
    ]:
        known = after(known, outcome)[0]  # type: ignore[arg-type]  # the literals widen in the list
        assert known.failed_fetches == failures


def test_what_is_shown_of_a_device_is_current_for_three_fetch_intervals() -> None:
    known, _ = after(replace(ACTIVE, fetched_at=NOON - 100), "read")
    for outcome in (None, "more", "failed", "unavailable"):
        known, _ = after(known, outcome, now=NOON + 10)
    assert known.fetched_at == NOON
    ages = [-1.0, 0.0, INTERVALS_CURRENT * 15 - 0.1, INTERVALS_CURRENT * 15.0]
    assert [is_current(known, interval=15, now=NOON + one) for one in ages] == [False, True, True, False]
    over = replace(known, session=replace(known.session, end=NOON))
    assert is_current(over, interval=15, now=NOON + 1e6), "nothing comes any more that could be missed"
    assert is_current(replace(known, removed=True), interval=15, now=NOON + 1e6)


def test_what_the_account_may_not_read_is_not_waited_for() -> None:
    known, _ = after(replace(ACTIVE, fetched_at=NOON - 100), "forbidden")
    assert is_current(known, interval=15, now=NOON + 1e6)


LATELY = replace(INGESTED, session=replace(INGESTED.session, updated_at=NOON))


@pytest.mark.parametrize(
    ("changes", "session", "samples", "after", "outcome"),
    [
        ({}, {}, 3, 1.0, "read"),
        ({"reading": 1}, {}, 3, 1.0, "more"),
        ({}, {"end": NOON}, 3, 1.0, "more"),
        ({}, {"datapoint_count": 4}, 3, 1.0, "more"),
        ({"csv_due": False}, {"datapoint_count": 4}, 3, 1.0, "read"),
        ({}, {}, 2, 1.0, "short"),
        ({"csv_due": False}, {}, 2, 1.0, "read"),
        ({}, {}, 2, SHORTLY, "read"),
        ({}, {"updated_at": None}, 2, 1.0, "read"),
        ({"short_reads": MOST_SHORT_READS}, {}, 2, 1.0, "read"),
        ({}, {}, None, 1.0, "read"),
    ],
    ids=[
        "all is read",
        "it is to be read again",
        "it ended meanwhile",
        "it grew meanwhile",
        "before its end that is nothing new",
        "a replica may be behind",
        "there is time before the CSV",
        "no replica is so far behind",
        "nobody knows when it changed",
        "often enough",
        "what is missing was left out",
    ],
)
def test_what_a_reading_of_everything_is_worth(
    changes: dict[str, Any], session: dict[str, Any], samples: int | None, after: float, outcome: Outcome
) -> None:
    fresh = replace(LATELY, session=replace(LATELY.session, **session), **changes)
    assert judge(fresh, LATELY.session, reading=0, samples=samples, cloud_now=NOON + after) == outcome
