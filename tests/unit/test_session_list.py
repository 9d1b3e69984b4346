import pytest
from msgspec.structs import replace

from bace_bridge.polling.rules.changes import LostRow, Page, PollState, SeenSession
from bace_bridge.polling.rules.session_list import (
    after_updates,
    bound_of,
    descends,
    newest_update,
    one_of,
    updated_since,
    what_was_ignored,
)
from bace_bridge.polling.rules.sessions import DataSession

NOON = 1_764_590_400.0
STATE = PollState(start_from=NOON, watermark=NOON)


def row(identifier: str = "a", *, start: float = 0.0, updated_at: float | None = NOON) -> DataSession:
    return DataSession(identifier, "g1", start, updated_at=updated_at)


def page(*stamps: float | None) -> Page[SeenSession]:
    return Page(tuple(SeenSession(row(updated_at=one)) for one in stamps), len(stamps), 1, 1, len(stamps))


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
    assert updated_since(bound) == params


def test_ids_are_asked_for_all_at_once() -> None:
    assert one_of("id_data_session", ["a", "b"]) == (
        ("filter[id_data_session][in][]", "a"),
        ("filter[id_data_session][in][]", "b"),
    )


def test_the_next_list_begins_below_the_watermark_until_nothing_new_has_come_for_long() -> None:
    news = after_updates(STATE, NOON + 5, new=True, now=1000.0, cloud_now=NOON + 60)
    assert bound_of(news, NOON + 60) == NOON + 5 - 120
    for now, bound in [(1119.9, NOON + 5 - 120), (1120.0, NOON + 6), (2000.0, NOON + 6)]:
        assert bound_of(after_updates(news, NOON + 5, new=False, now=now, cloud_now=NOON + 60), NOON + 60) == bound
    settled = after_updates(news, None, new=False, now=1120.0, cloud_now=NOON + 60)
    assert (
        bound_of(after_updates(settled, NOON + 5, new=True, now=1121.0, cloud_now=NOON + 60), NOON + 60)
        == NOON + 5 - 120
    )
    assert (
        bound_of(after_updates(settled, NOON + 7, new=False, now=1121.0, cloud_now=NOON + 60), NOON + 60)
        == NOON + 7 - 120
    )


def test_a_clock_that_is_set_back_settles_nothing() -> None:
    news = after_updates(STATE, NOON, new=True, now=1000.0, cloud_now=NOON + 60)
    assert not after_updates(news, NOON, new=False, now=500.0, cloud_now=NOON + 60).settled


@pytest.mark.parametrize("settled", [True, False])
def test_without_a_watermark_everything_is_asked_for(settled: bool) -> None:
    assert bound_of(PollState(start_from=-1.0, watermark=-1.0, settled=settled), NOON + 60) <= 0


UPDATED_FILTER, BY_ID = "filter[updated_at]", "sort=id_data_session"


@pytest.mark.parametrize(
    ("stamps", "bound", "ignored"),
    [
        ([], NOON, None),
        ([NOON, NOON + 5], NOON, None),
        ([NOON], NOON + 0.9, None),
        ([NOON - 1], NOON, UPDATED_FILTER),
        ([NOON, None], NOON, UPDATED_FILTER),
        ([None, 0.0], 0.0, None),
    ],
)
def test_a_filter_that_was_ignored_is_seen_on_the_rows(
    stamps: list[float | None], bound: float, ignored: str | None
) -> None:
    assert what_was_ignored(page(*stamps), bound) == ignored


def test_an_odd_row_shows_that_a_filter_was_ignored() -> None:
    odd = replace(page(NOON), lost=(LostRow("odd", updated_at=NOON - 1),))
    assert what_was_ignored(odd, NOON) == UPDATED_FILTER
    assert what_was_ignored(replace(page(NOON), lost=(LostRow("odd"),)), NOON) is None


@pytest.mark.parametrize(
    ("ids", "ascend"),
    [([], True), (["a", "b"], True), (["a", "a"], True), (["b", "a"], False), (["A", "b", "C"], True)],
)
def test_ids_ascend_whatever_their_case(ids: list[str], ascend: bool) -> None:
    rows = tuple(SeenSession(row(one)) for one in ids)
    assert what_was_ignored(Page(rows, len(rows), 1, 2, 200), NOON) == (None if ascend else BY_ID)
    assert what_was_ignored(Page(rows, len(rows), 1, 1, len(rows)), NOON) is None, "the only page, in any order"


@pytest.mark.parametrize(
    ("stamps", "descend"), [([], True), ([5.0], True), ([5.0, 5.0, 4.0], True), ([4.0, 5.0], False)]
)
def test_starts_and_updates_descend(stamps: list[float], descend: bool) -> None:
    assert descends(Page((), len(stamps), 1, 2, 200), stamps) is descend
    assert descends(Page((), len(stamps), 1, 1, len(stamps)), stamps), "the only page, in any order"


@pytest.mark.parametrize("stamps", [[None, 5.0], [5.0, None]])
def test_rows_without_an_update_have_no_order(stamps: list[float | None]) -> None:
    assert not descends(Page((), 2, 1, 2, 200), stamps)


@pytest.mark.parametrize(
    ("newest", "cloud_now", "watermark"),
    [
        (None, NOON + 60, NOON),
        (NOON - 60, NOON + 60, NOON),
        (NOON + 10, NOON + 60, NOON + 10),
        (NOON + 1e6, NOON + 60, NOON + 60),
        (NOON + 1e6, NOON - 60, NOON - 60),
    ],
    ids=["no rows", "older", "newer", "from the future", "from the future, and the cloud's clock went back"],
)
def test_the_watermark_rises_and_never_past_the_present(
    newest: float | None, cloud_now: float, watermark: float
) -> None:
    assert after_updates(STATE, newest, new=False, now=0.0, cloud_now=cloud_now).watermark == watermark


def test_the_newest_update_may_be_that_of_a_row_which_cannot_be_read() -> None:
    assert newest_update(page(5.0, None, 7.0), None) == 7.0
    odd = replace(page(5.0, None, 7.0), lost=(LostRow("odd", updated_at=9.0), LostRow("odd")))
    assert newest_update(odd, None) == 9.0
    assert newest_update(page(5.0), 8.0) == 8.0
    assert newest_update(page(), None) is None
    assert newest_update(page(None), None) == 0.0, "its start"
