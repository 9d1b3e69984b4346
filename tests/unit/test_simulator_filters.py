from operator import itemgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.simulator import query as filters
from bace_bridge.simulator.query import All, AnyOf, Compare, Condition, FilterRefused, Kind
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.replies import ApiError
from bace_bridge.simulator.routes import as_understood

KINDS = {"start": Kind.INTEGER, "end": Kind.INTEGER, "at": Kind.NUMBER, "label": Kind.TEXT, "done": Kind.FLAG}
ROWS: list[dict[str, Any]] = [
    {"start": 10, "end": None, "at": 1.5, "label": "Ward A", "done": False},
    {"start": 20, "end": 25, "at": 2.0, "label": "Ward B", "done": True},
    {"start": 30, "end": 35, "at": 3.25, "label": "Home", "done": True},
]


def starts(query: str) -> list[int]:
    pairs = [tuple(part.split("=", 1)) for part in query.split("&")]
    tree = filters.nested([(name, value) for name, value in pairs], "filter")
    test = filters.holds(filters.parse(tree, KINDS), itemgetter)
    return [row["start"] for row in ROWS if test(row)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sort=start", [10, 20, 30]),
        ("filter[start]=20", [20]),
        ("filter[start][eq]=20", [20]),
        ("filter[start][neq]=20", [10, 30]),
        ("filter[start][gt]=20", [30]),
        ("filter[start][gte]=20", [20, 30]),
        ("filter[start][lt]=20", [10]),
        ("filter[start][lte]=20", [10, 20]),
        ("filter[start][gt]=10&filter[start][lt]=30", [20]),
        ("filter[start][in][]=10&filter[start][in][]=30", [10, 30]),
        ("filter[start][nin][]=10&filter[start][nin][]=30", [20]),
        ("filter[label][like]=ward", [10, 20]),
        ("filter[done]=1", [20, 30]),
        ("filter[done]=false", [10]),
        ("filter[at][gte]=2.0", [20, 30]),
        ("filter[end]=NULL", [10]),
        ("filter[end][neq]=NULL", [20, 30]),
        ("filter[end][neq]=25", [30]),  # NULL is not unequal
        ("filter[end][nin][]=25", [30]),
        ("filter[end][gt]=NULL", []),
        ("filter[not][end]=25", [30]),
        ("filter[not][end]=NULL", [20, 30]),
        ("filter[or][0][start]=10&filter[or][1][label]=Home", [10, 30]),
        ("filter[and][0][start][gt]=10&filter[and][1][done]=1", [20, 30]),
        ("filter[not][or][0][start]=10&filter[not][or][1][start]=20", [30]),
    ],
)
def test_a_filter_selects_as_yii_does(query: str, found: list[int]) -> None:
    assert starts(query) == found


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("filter[start]=1648641893.0", "Start must be an integer."),
        ("filter[start]=", "Start must be an integer."),
        ("filter[at]=soon", "At must be a number."),
        ("filter[done]=maybe", 'Done must be either "1" or "0".'),
        ("filter[colour]=red", 'Unknown filter attribute "colour"'),
        ("filter[start][about]=5", "valid operator specification"),
        ("filter[start][in]=5", 'Operator "in" requires multiple operands.'),
        ("filter[or]=5", 'Operator "or" requires multiple operands.'),
        ("filter=5", "The format of Filter is invalid."),
        ("filter[start][gt][x]=5", "Start must be an integer."),
    ],
)
def test_a_wrong_filter_is_refused(query: str, message: str) -> None:
    with pytest.raises(FilterRefused) as refused:
        starts(query)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("names", "tree"),
    [
        ([], None),
        (["filter"], "0"),
        (["filter[a]"], {"a": "0"}),
        (["filter[a]", "filter[b][gt]"], {"a": "0", "b": {"gt": "1"}}),
        (["filter[a][]", "filter[a][]"], {"a": {"0": "0", "1": "1"}}),
        (["filter[a]", "filter[a][b]"], {"a": {"b": "1"}}),
        (["filters[a]", "x"], None),
    ],
)
def test_parameters_nest_as_in_php(names: list[str], tree: Any) -> None:
    assert filters.nested([(name, str(number)) for number, name in enumerate(names)], "filter") == tree


comparisons = st.builds(
    Compare,
    st.sampled_from(["start", "end"]),
    st.sampled_from(["eq", "neq", "gt", "gte", "lt", "lte"]),
    st.sampled_from([None, 10, 25, 30]),
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(All, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@given(conditions)
def test_no_row_is_both_inside_a_condition_and_outside_it(condition: Condition) -> None:
    inside = filters.holds(condition, itemgetter)
    outside = filters.holds(filters.negated(condition), itemgetter)
    assert not any(inside(row) and outside(row) for row in ROWS)
    assert filters.negated(filters.negated(condition)) == condition


def test_malformed_uuids_are_found_wherever_they_are() -> None:
    kinds = {"id": Kind.UUID, "label": Kind.TEXT}
    good, quirks = "86d70a1b-0000-4000-8000-000000000000", Quirks(bad_uuid_500=True)
    fine = All((Compare("id", "eq", good), Compare("label", "eq", "x")))
    assert as_understood(fine, kinds, quirks) == fine
    with pytest.raises(ApiError, match="type uuid"):
        as_understood(All((AnyOf((Compare("id", "in", (good, "x")),)),)), kinds, quirks)
