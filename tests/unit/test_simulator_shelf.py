import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.simulator.facts import Session
from bace_bridge.simulator.query import All, Compare, Order, holds
from bace_bridge.simulator.shelf import Shelf, reader

IDS = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(8)]

sessions = st.builds(
    Session,
    id_data_session=st.sampled_from(IDS),
    id_group=st.sampled_from(["g1", "g2"]),
    label=st.sampled_from(["a", "b"]),
    start=st.integers(0, 5),
    created_at=st.just(0),
    updated_at=st.integers(0, 5),
    end=st.none() | st.integers(0, 5),
)
steps = st.lists(st.tuples(st.booleans(), sessions), max_size=25)
comparisons = st.one_of(
    st.builds(
        Compare,
        st.sampled_from(["start", "updated_at", "end"]),
        st.sampled_from(["eq", "neq", "gt", "gte", "lt", "lte"]),
        st.integers(0, 5),
    ),
    st.builds(Compare, st.just("end"), st.sampled_from(["eq", "neq"]), st.none()),
    st.builds(Compare, st.just("id_data_session"), st.just("eq"), st.sampled_from(IDS)),
    st.builds(Compare, st.just("id_group"), st.just("eq"), st.sampled_from(["g1", "g2"])),
)
orders = st.none() | st.builds(Order, st.sampled_from(["start", "updated_at", "end", "id_data_session"]), st.booleans())


@given(steps, st.lists(comparisons, max_size=3), orders)
def test_the_indexes_find_what_a_scan_finds(
    changes: list[tuple[bool, Session]], parts: list[Compare], order: Order | None
) -> None:
    shelf, kept = Shelf(), dict[str, Session]()
    for stays, session in changes:
        if stays:
            shelf.put(session)
            kept[session.id_data_session] = session
        else:
            shelf.remove(session.id_data_session)
            kept.pop(session.id_data_session, None)
    condition = All(tuple(parts))
    found = shelf.select(condition, order)
    expected = [session for session in kept.values() if holds(condition, reader)(session)]
    assert sorted(found, key=str) == sorted(expected, key=str)
    if order is not None:
        values = [reader(order.field)(session) for session in found]
        in_order = sorted(values, key=lambda value: (value is None, value or 0), reverse=order.descending)
        assert values == in_order


def test_many_at_once_are_as_good_as_one_by_one() -> None:
    made = [Session(IDS[number], "g1", "x", start=5 - number, created_at=0, updated_at=number) for number in range(5)]
    shelf = Shelf()
    shelf.put_new(made)
    assert len(shelf.by_id) == 5
    assert [session.start for session in shelf.select(All(), Order("start"))] == [1, 2, 3, 4, 5]
    assert shelf.select(All((Compare("end", "eq", None),)), None) == made


@pytest.mark.parametrize("change", ["put", "remove"])
def test_a_change_is_a_new_version(change: str) -> None:
    shelf = Shelf()
    session = Session(IDS[0], "g1", "x", start=0, created_at=0, updated_at=0)
    shelf.put(session)
    before = shelf.version
    if change == "put":
        shelf.put(session)
    else:
        shelf.remove(IDS[0])
    assert shelf.version > before
