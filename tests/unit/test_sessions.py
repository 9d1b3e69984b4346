from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bace_bridge.polling.rules.sessions import (
    DENIED_FOR,
    DataSession,
    KnownSession,
    Observation,
    contradicts,
    is_doubtful,
    is_history,
    is_removed,
    observe,
    observe_absence,
)

NOON = 1_764_590_400.0
ACTIVE = DataSession("s1", "g1", NOON, label="Night", updated_at=NOON, created_at=NOON, datapoint_count=0)
ENDED = replace(ACTIVE, end=NOON + 60, updated_at=NOON + 60)
INGESTED = replace(ENDED, ingestion_finished=True, updated_at=NOON + 90)


def poll(known: KnownSession | None, seen: DataSession, *, now: float = NOON + 100) -> Observation | None:
    return observe(known, seen, device_label="BaceGo-1", start_from=0.0, now=now)


def found(known: KnownSession | None, seen: DataSession, *, now: float = NOON + 100) -> Observation:
    observation = poll(known, seen, now=now)
    assert observation is not None
    return observation


def known_as(session: DataSession, **more: Any) -> KnownSession:
    return replace(found(None, session, now=NOON).known, **more)


def types(observation: Observation | None) -> list[str]:
    return [] if observation is None else [event.type for event in observation.events]


@pytest.mark.parametrize(
    ("end", "created", "history"),
    [
        (None, 50.0, False),
        (99.0, 50.0, True),
        (100.0, 100.0, True),
        (100.5, 50.0, False),
        (50.0, 100.5, False),
        (50.0, None, True),
        (None, None, False),
    ],
    ids=[
        "active",
        "over before",
        "over at that second",
        "over after",
        "recorded offline, uploaded after",
        "created nobody knows when",
        "active since nobody knows when",
    ],
)
def test_history_is_what_was_over_and_on_record_before_the_first_start(
    end: float | None, created: float | None, history: bool
) -> None:
    session = DataSession("s1", "g1", 10.0, end=end, created_at=created)
    assert is_history(session, 100.0) is history
    observation = observe(None, session, device_label=None, start_from=100.0, now=200.0)
    assert (observation is None) is history


@pytest.mark.parametrize(
    ("session", "over", "csv_due"), [(ACTIVE, False, False), (ENDED, True, False), (INGESTED, True, True)]
)
def test_a_first_poll_reports_the_start_alone_and_calls_for_a_fetch(
    session: DataSession, over: bool, csv_due: bool
) -> None:
    observation = found(None, session)
    assert types(observation) == ["session.started"]
    known = observation.known
    assert (known.over_when_found, known.csv_due, known.fetch_at) == (over, csv_due, NOON + 100)
    event = observation.events[0]
    assert (event.time, event.observed_at, event.session_id, event.device_id) == (NOON, NOON + 100, "s1", "g1")


def test_the_event_shows_the_session_as_the_contract_says() -> None:
    data = msgspec.json.decode(found(None, INGESTED).events[0].data)
    assert data == {
        "session": {
            "id": "s1",
            "group_id": "g1",
            "label": "Night",
            "person_id": None,
            "state": "ingested",
            "started_at": "2025-12-01T12:00:00Z",
            "ended_at": "2025-12-01T12:01:00Z",
            "duration_seconds": 60.0,
            "datapoint_count": 0,
            "ingestion_finished": True,
            "archived": False,
            "updated_at": "2025-12-01T12:01:30Z",
        },
        "device": {"id": "g1", "label": "BaceGo-1"},
        "observed_at": "2025-12-01T12:01:40Z",
    }


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"label": "Day"}, ["label"]),
        ({"label": None}, ["label"]),
        ({"person_id": "p1"}, ["person"]),
        ({"group_id": "g2"}, ["group"]),
        ({"label": "Day", "person_id": "p1", "group_id": "g2"}, ["label", "person", "group"]),
        ({"datapoint_count": 7}, None),
        ({"updated_at": NOON + 5}, None),
        ({"archived": True}, None),
        ({"created_at": NOON + 4}, None),
        ({"start": NOON - 4}, None),
    ],
)
def test_only_label_person_and_group_are_reported_as_updates(changes: dict[str, Any], names: list[str] | None) -> None:
    observation = found(known_as(ACTIVE), replace(ACTIVE, **changes))
    assert observation.known.session == replace(ACTIVE, **changes)
    reported = [msgspec.json.decode(event.data)["changed"] for event in observation.events]
    assert reported == ([] if names is None else [names])


def test_the_same_row_again_tells_nothing() -> None:
    assert poll(known_as(ACTIVE), ACTIVE) is None


@pytest.mark.parametrize(
    ("before", "after", "accepted"),
    [
        (NOON, NOON - 1, False),
        (NOON, NOON, True),
        (NOON, NOON + 1, True),
        (None, NOON - 1, True),
        (NOON, None, True),
    ],
)
def test_an_older_row_is_not_believed(before: float | None, after: float | None, accepted: bool) -> None:
    known = known_as(replace(ACTIVE, updated_at=before))
    observation = poll(known, replace(ACTIVE, updated_at=after, label="Other"))
    assert (observation is not None) is accepted


@pytest.mark.parametrize(
    ("changes", "doubtful"),
    [
        ({"label": "Other"}, True),
        ({"end": NOON}, True),
        ({"person_id": "p2"}, True),
        ({"group_id": "g2"}, True),
        ({"datapoint_count": 99}, False),
        ({"archived": True}, False),
        ({}, False),
        ({"end": NOON, "updated_at": NOON + 1}, False),
        ({"end": NOON, "updated_at": NOON - 1}, False),
    ],
)
def test_another_row_with_the_same_stamp_is_doubtful(changes: dict[str, Any], doubtful: bool) -> None:
    known = known_as(replace(ACTIVE, updated_at=NOON))
    assert contradicts(known, replace(ACTIVE, **({"updated_at": NOON} | changes))) is doubtful


def test_rows_without_a_stamp_are_equally_new() -> None:
    known = known_as(replace(ACTIVE, updated_at=None))
    assert contradicts(known, replace(ACTIVE, updated_at=None, label="Other"))
    assert not contradicts(replace(known, removed=True), replace(ACTIVE, updated_at=None, label="Other"))


@pytest.mark.parametrize(
    ("ahead", "cloud_ahead", "accepted"),
    [(70.0, 0.0, False), (1e9, 0.0, True), (1e6, 0.0, True), (1e6, 1e6, False), (1e6, -1e6, True)],
    ids=["a little ahead", "in thirty years", "in days", "our clock is behind", "our clock is ahead"],
)
def test_a_row_from_the_far_future_does_not_silence_its_session(
    ahead: float, cloud_ahead: float, accepted: bool
) -> None:
    known = known_as(replace(ACTIVE, updated_at=NOON + ahead))
    ended = replace(ENDED, updated_at=NOON + 60)
    observation = observe(
        known, ended, device_label=None, start_from=0.0, now=NOON + 50, cloud_now=NOON + 50 + cloud_ahead
    )
    assert (observation is not None and observation.known.session.end == ENDED.end) is accepted


@pytest.mark.parametrize(
    ("known", "seen", "reported"),
    [
        (known_as(ENDED, end_emitted=NOON + 60), replace(ACTIVE, updated_at=NOON + 70), ["session.reopened"]),
        (known_as(ENDED), replace(ACTIVE, updated_at=NOON + 70), []),
        (known_as(ENDED, end_emitted=NOON + 60), replace(ENDED, end=NOON + 65), []),
        (known_as(ENDED, end_emitted=NOON + 60, removed=True), ENDED, []),
        (known_as(ACTIVE, removed=True), ACTIVE, ["session.reopened"]),
        (known_as(ACTIVE), ENDED, []),
        (known_as(ENDED, end_emitted=NOON + 60), INGESTED, []),
    ],
    ids=[
        "the end was reported and is gone",
        "the end was never reported and is gone",
        "the end moves",
        "back, and over",
        "back, and active",
        "it ends",
        "it is ingested",
    ],
)
def test_what_a_poll_reports_of_the_end(known: KnownSession, seen: DataSession, reported: list[str]) -> None:
    observation = found(known, seen)
    assert types(observation) == reported
    assert not observation.known.removed


def test_a_session_that_is_found_over_and_goes_on_is_a_live_one() -> None:
    live = found(known_as(ENDED), replace(ACTIVE, updated_at=NOON + 70)).known
    assert not live.over_when_found
    again = found(live, replace(ENDED, updated_at=NOON + 90), now=NOON + 90).known
    assert (again.over_when_found, again.end_seen_at) == (False, NOON + 90)


@pytest.mark.parametrize(
    ("known", "seen", "csv_due", "reading", "visit"),
    [
        (known_as(ENDED), INGESTED, True, 1, True),
        (known_as(INGESTED), replace(INGESTED, updated_at=NOON + 99), True, 0, False),
        (known_as(INGESTED, csv_due=False), replace(INGESTED, label="x"), False, 0, False),
        (known_as(INGESTED), replace(ENDED, updated_at=NOON + 99), False, 0, True),
        (known_as(INGESTED, csv_due=False, csv_facts=(0, NOON + 60, 0)), replace(INGESTED, label="x"), False, 0, False),
        (
            known_as(INGESTED, csv_due=False, csv_facts=(0, NOON + 60, 0), fetch_at=None),
            replace(INGESTED, datapoint_count=1),
            True,
            1,
            True,
        ),
        (
            known_as(INGESTED, csv_due=False, csv_facts=(0, NOON + 60, 0), fetch_at=None),
            replace(INGESTED, end=NOON + 61),
            True,
            1,
            True,
        ),
        (known_as(INGESTED, csv_due=False, removed=True, fetch_at=None), INGESTED, True, 1, True),
    ],
    ids=[
        "ingestion finished",
        "it is due already",
        "nothing that the CSV speaks of",
        "ingestion goes on again",
        "reported, and nothing new",
        "reported, and data came",
        "reported, and the end moved",
        "it is back",
    ],
)
def test_when_a_csv_is_due_and_everything_is_read_again(
    known: KnownSession, seen: DataSession, csv_due: bool, reading: int, visit: bool
) -> None:
    after = found(known, seen, now=NOON + 500).known
    assert (after.csv_due, after.reading) == (csv_due, reading)
    assert (after.fetch_at == NOON + 500) is visit


@pytest.mark.parametrize(
    ("known", "seen", "fetch_at"),
    [
        (known_as(ACTIVE, fetch_at=NOON + 150), replace(ACTIVE, datapoint_count=5), NOON + 150),
        (known_as(ACTIVE, fetch_at=None), replace(ACTIVE, datapoint_count=5), NOON + 100),
        (known_as(ACTIVE, fetch_at=NOON + 150), ENDED, NOON + 100),
        (known_as(ENDED, fetch_at=NOON + 700), replace(ENDED, datapoint_count=5), NOON + 100),
    ],
    ids=["a live session keeps its turn", "one without a turn gets one", "the end is urgent", "late points are urgent"],
)
def test_what_calls_for_a_fetch_at_once(known: KnownSession, seen: DataSession, fetch_at: float) -> None:
    assert found(known, seen).known.fetch_at == fetch_at


@pytest.mark.parametrize(
    ("group", "label", "expected"),
    [("g1", None, "BaceGo-1"), ("g1", "Renamed", "Renamed"), ("g2", None, None), ("g2", "BaceGo-2", "BaceGo-2")],
)
def test_a_device_label_that_is_missing_once_is_remembered(group: str, label: str | None, expected: str | None) -> None:
    seen = replace(ACTIVE, group_id=group, datapoint_count=1)
    observation = observe(known_as(ACTIVE), seen, device_label=label, start_from=0.0, now=NOON)
    assert observation is not None
    assert observation.known.device_label == expected


def test_absence_is_reported_once_and_ends_the_fetches() -> None:
    observation = observe_absence(known_as(INGESTED), now=NOON + 200)
    assert observation is not None
    assert types(observation) == ["session.removed"]
    assert (observation.known.fetch_at, observation.known.csv_due) == (None, False)
    assert not observation.known.unfinished
    assert observe_absence(observation.known, now=NOON + 300) is None


def test_what_comes_true_a_second_time_has_an_id_of_its_own() -> None:
    """A permission that is taken, given and taken again leaves no trace in the row."""
    ids: list[str] = []
    known = known_as(replace(ENDED, updated_at=None), end_emitted=NOON + 60)
    for _ in range(2):
        gone = observe_absence(known, now=NOON + 200)
        assert gone is not None
        ids += [event.id for event in gone.events]
        for label in ("Night", "Day"):
            back = found(gone.known, replace(ENDED, updated_at=None, label=label))
            ids += [event.id for event in back.events]
            gone = Observation(back.known)
        known = back.known
    assert len(ids) == 5
    assert len(set(ids)) == 5


@pytest.mark.parametrize("session", [ACTIVE, ENDED, INGESTED])
def test_what_is_known_survives_the_store(session: DataSession) -> None:
    known = known_as(session, probed={20_000: 3}, csv_facts=(None, 1.5, 2), newest_point_at=NOON + 0.1)
    assert msgspec.json.decode(msgspec.json.encode(known), type=KnownSession) == known


def test_a_session_that_an_older_version_stored_can_be_read() -> None:
    stored = b'{"session":{"id":"s1","group_id":"g1","start":5.0}}'
    known = msgspec.json.decode(stored, type=KnownSession)
    assert known == KnownSession(session=DataSession("s1", "g1", 5.0))


@pytest.mark.parametrize(
    ("other", "doubtful"),
    [
        (ACTIVE, False),
        (replace(ACTIVE, datapoint_count=7), False),
        (replace(ACTIVE, label="Day"), True),
        (replace(ACTIVE, end=NOON + 1), True),
        (replace(ACTIVE, updated_at=NOON + 1), True),
    ],
)
def test_two_rows_of_a_session_that_differ_are_doubtful(other: DataSession, doubtful: bool) -> None:
    assert is_doubtful(None, [ACTIVE, other]) is doubtful


def test_a_row_that_contradicts_what_is_known_is_doubtful() -> None:
    assert is_doubtful(known_as(ACTIVE), [replace(ACTIVE, label="Day")])
    assert not is_doubtful(known_as(ACTIVE), [ENDED])


def test_a_session_is_removed_after_three_answers_over_five_minutes() -> None:
    assert not is_removed([1000.0])
    assert not is_removed([1000.0, 1000.0 + DENIED_FOR])
    assert not is_removed([1000.0, 1000.0, 1000.0 + DENIED_FOR - 1])
    assert is_removed([1000.0, 1000.0, 1000.0 + DENIED_FOR])
