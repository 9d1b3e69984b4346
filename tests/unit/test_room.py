"""How much room the store has, what is reported as failing, and what may be forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import may_be_forgotten
from bace_bridge.store.faults import FORGOTTEN_AFTER, StoreFailures, after_use
from bace_bridge.store.housekeeping import Room, room_left

FREE, PRUNING, PAUSED = Room(), Room(surplus=1), Room(surplus=1, paused=True)


@pytest.mark.parametrize(
    ("before", "used", "after"),
    [
        (FREE, 0, Room()),
        (FREE, 949, Room()),
        (FREE, 950, Room(surplus=50)),
        (FREE, 999, Room(surplus=99)),
        (FREE, 1000, Room(surplus=100, paused=True)),
        (FREE, 1500, Room(surplus=600, paused=True)),
        (PRUNING, 901, Room(surplus=1)),
        (PRUNING, 900, Room()),
        (PAUSED, 951, Room(surplus=51, paused=True)),
        (PAUSED, 950, Room(surplus=50)),
        (PAUSED, 0, Room()),
    ],
)
def test_delivered_events_go_before_polling_pauses_and_neither_flaps(before: Room, used: int, after: Room) -> None:
    assert room_left(before, used=used, cap=1000) == after


@given(st.lists(st.integers(0, 2000)))
def test_at_the_cap_it_pauses_and_well_below_it_never_does(sizes: list[int]) -> None:
    room = Room()
    for used in sizes:
        room = room_left(room, used=used, cap=1000)
        assert room.paused or used < 1000
        assert not room.paused or used > 950
        assert 0 <= room.surplus <= max(0, used - 900)


def test_each_side_of_the_store_is_well_when_it_was_itself() -> None:
    failures = after_use(StoreFailures(), "known", "the disk is full", now=0.0)
    failures = after_use(failures, "deliveries", None, now=1.0)
    assert failures.reason == "the disk is full", "a small write may succeed where a large one does not"
    failures = after_use(failures, "facts", "another", now=2.0)
    assert failures.reason == "the disk is full"
    failures = after_use(failures, "known", None, now=3.0)
    assert failures.reason == "another"
    assert after_use(failures, "facts", None, now=4.0) == StoreFailures()


def test_what_does_not_come_again_is_forgotten_once_something_is_written() -> None:
    failures = after_use(StoreFailures(), "known", "full", now=0.0)
    later = FORGOTTEN_AFTER
    assert after_use(failures, "deliveries", None, now=later - 1).reason == "full"
    assert after_use(failures, "reading", None, now=later).reason == "full", "to read says nothing of writing"
    assert after_use(failures, "upkeep", None, now=later) == StoreFailures()


INGESTED = KnownSession(session=DataSession("s", "g", 10.0, end=20.0, updated_at=30.0, ingestion_finished=True))


@pytest.mark.parametrize(
    ("known", "forgotten"),
    [
        (INGESTED, True),
        (replace(INGESTED, fetch_at=1.0), False),
        (replace(INGESTED, csv_due=True), False),
        (replace(INGESTED, session=replace(INGESTED.session, updated_at=100.0)), False),
        (replace(INGESTED, session=replace(INGESTED.session, updated_at=None, end=100.0)), False),
        (replace(INGESTED, session=replace(INGESTED.session, created_at=100.0)), False),
        (replace(INGESTED, session=replace(INGESTED.session, ingestion_finished=False)), False),
        (replace(INGESTED, session=replace(INGESTED.session, end=None)), False),
        (replace(INGESTED, session=replace(INGESTED.session, end=None), removed=True), True),
    ],
)
def test_only_what_is_over_and_long_unchanged_is_forgotten(known: KnownSession, forgotten: bool) -> None:
    assert may_be_forgotten(known, unchanged_since=100.0) is forgotten
