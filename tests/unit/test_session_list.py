from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.session_list import (
    OVERLAP,
    QUIET_WALKS,
    after_walk,
    bound_of,
    by_ids,
    ids_ascend,
    in_turn,
    is_one_bulk,
    starts_descend,
    updated_between,
    updates_descend,
    updates_held,
)
from bace_bridge.polling.rules.sessions import DataSession, KnownSession

NOON = 1_764_590_400.0
STATE = PollState(start_from=NOON, watermark=NOON)


def row(identifier: str = "a", *, start: float = 0.0, updated_at: float | None = NOON) -> DataSession:
    return DataSession(identifier, "g1", start, updated_at=updated_at)


@pytest.mark.parametrize(
    ("bound", "params"),
    [
        (-1.0, (("sort", "id_data_session"),)),
        (0.0, (("sort", "id_data_session"),)),
        (NOON + 0.9, (("filter[updated_at][gte]", "1764590400"), ("sort", "id_data_session"))),
        (9e12, (("filter[updated_at][gte]", "2147483647"), ("sort", "id_data_session"))),
    ],
)
def test_the_list_of_updates_is_asked_for_by_id(bound: float, params: tuple[tuple[str, str], ...]) -> None:
    assert updated_between(bound) == params


def test_ids_are_asked_for_all_at_once() -> None:
    assert by_ids(["a", "b"]) == (("filter[id_data_session][in][]", "a"), ("filter[id_data_session][in][]", "b"))


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, NOON - OVERLAP),
        ({"quiet_walks": QUIET_WALKS - 1}, NOON - OVERLAP),
        ({"quiet_walks": QUIET_WALKS}, NOON),
        ({"quiet_walks": 2 * QUIET_WALKS, "floor": NOON + 1}, NOON + 1),
        ({"floor": NOON - 10}, NOON - 10),
        ({"watermark": NOON + 1000, "floor": NOON + 1}, NOON + 1000 - OVERLAP),
    ],
)
def test_the_next_list_begins_below_the_watermark_but_not_below_the_floor(
    changes: dict[str, Any], bound: float
) -> None:
    assert bound_of(replace(STATE, **changes)) == bound


@pytest.mark.parametrize(
    ("stamps", "bound", "held"),
    [
        ([], NOON, True),
        ([NOON, NOON + 5], NOON, True),
        ([NOON], NOON + 0.9, True),
        ([NOON - 1], NOON, False),
        ([NOON, None], NOON, False),
        ([None, 0.0], 0.0, True),
    ],
)
def test_a_filter_that_was_ignored_is_seen_on_the_rows(stamps: list[float | None], bound: float, held: bool) -> None:
    assert updates_held([row(updated_at=one) for one in stamps], bound) is held


@pytest.mark.parametrize(
    ("ids", "after", "ascend"),
    [
        ([], "x", True),
        (["a", "b"], "", True),
        (["a", "a"], "a", True),
        (["b", "a"], "", False),
        (["b"], "c", False),
        (["A", "b", "C"], "a", True),
    ],
)
def test_ids_ascend_over_pages_whatever_their_case(ids: list[str], after: str, ascend: bool) -> None:
    assert ids_ascend([row(one) for one in ids], after) is ascend


@pytest.mark.parametrize(
    ("stamps", "descend"), [([], True), ([5.0], True), ([5.0, 5.0, 4.0], True), ([4.0, 5.0], False)]
)
def test_starts_and_updates_descend(stamps: list[float], descend: bool) -> None:
    assert starts_descend([row(start=one) for one in stamps]) is descend
    assert updates_descend([row(updated_at=one) for one in stamps]) is descend


@pytest.mark.parametrize("stamps", [[None, 5.0], [5.0, None]])
def test_rows_without_an_update_have_no_order(stamps: list[float | None]) -> None:
    assert not updates_descend([row(updated_at=one) for one in stamps])


@pytest.mark.parametrize(
    ("newest", "cloud_now", "watermark"),
    [
        (None, NOON + 60, NOON),
        (NOON - 60, NOON + 60, NOON),
        (NOON + 10, NOON + 60, NOON + 10),
        (NOON + 1e6, NOON + 60, NOON + 60),
        (NOON + 1e6, NOON - 60, NOON),
    ],
    ids=["no rows", "older", "newer", "from the future", "from the future, and the cloud's clock went back"],
)
def test_the_watermark_only_rises_and_never_past_the_present(
    newest: float | None, cloud_now: float, watermark: float
) -> None:
    after = after_walk(STATE, newest, pages=1, new=False, cloud_now=cloud_now)
    assert after.watermark == watermark


def test_a_second_with_thousands_of_rows_is_not_walked_for_ever() -> None:
    state, bounds = STATE, []
    for _ in range(2 * QUIET_WALKS + 1):
        bounds.append(bound_of(state))
        state = after_walk(state, NOON, pages=40, new=False, cloud_now=NOON + 60)
    assert bounds == [NOON - OVERLAP] * QUIET_WALKS + [NOON] * QUIET_WALKS + [NOON + 1]


@pytest.mark.parametrize(
    ("pages", "new", "newest", "quiet"),
    [(1, False, NOON, 2), (2, False, NOON, 3), (2, True, NOON, 0), (2, False, NOON + 1, 0)],
)
def test_only_long_walks_with_nothing_new_are_quiet(pages: int, new: bool, newest: float, quiet: int) -> None:
    state = replace(STATE, quiet_walks=2)
    assert after_walk(state, newest, pages=pages, new=new, cloud_now=NOON + 60).quiet_walks == quiet


@given(
    st.lists(st.tuples(st.none() | st.floats(0, 2e9), st.integers(1, 9), st.booleans(), st.floats(0, 2e9)), max_size=30)
)
def test_nothing_newer_than_the_watermark_is_ever_left_out(
    walks: list[tuple[float | None, int, bool, float]],
) -> None:
    state = STATE
    for newest, pages, new, cloud_now in walks:
        before = state
        state = after_walk(state, newest, pages=pages, new=new, cloud_now=cloud_now)
        assert state.watermark >= before.watermark
        assert bound_of(state) <= state.watermark + 1


@pytest.mark.parametrize(
    ("stamps", "bulk"), [([], False), ([5.0], False), ([5.0, 5.0], True), ([5.0, 4.0], False), ([None, None], True)]
)
def test_a_bulk_edit_is_rows_of_one_second(stamps: list[float | None], bulk: bool) -> None:
    assert is_one_bulk([row(updated_at=one) for one in stamps]) is bulk


def unfinished(count: int, *, active: Sequence[int] = ()) -> list[KnownSession]:
    """Sessions that ended one after another, the last one last, but those that are active."""
    return [
        KnownSession(session=DataSession(f"{one:03d}", "g", 1.0, end=None if one in active else 100.0 + one))
        for one in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_a_few_unfinished_sessions_are_all_asked_for(count: int) -> None:
    known = unfinished(count)
    assert in_turn(known, "", most=20) == (known, "")


@pytest.mark.parametrize(("count", "looks"), [(21, 2), (60, 5), (500, 49)])
def test_many_take_turns_and_those_that_likely_change_go_first(count: int, looks: int) -> None:
    known = unfinished(count, active=[0, 3])
    asked: set[str] = set()
    upto = ""
    for _ in range(looks):
        chosen, upto = in_turn(known, upto, most=20)
        ids = [one.session.id for one in chosen]
        assert len(ids) == len(set(ids)) <= 20
        assert {"000", "003", f"{count - 1:03d}", f"{count - 8:03d}"} <= set(ids)
        asked.update(ids)
    assert len(asked) == count
