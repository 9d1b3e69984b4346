import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.cloud.api import parse_datapoints, parse_groups, parse_series_axes, parse_session, parse_sessions
from bace_bridge.cloud.failures import parse_problem
from bace_bridge.cloud.tokens import TokenReply, parse_token
from bace_bridge.errors import UnexpectedReply
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.datapoints import Datapoint, datapoint_events
from bace_bridge.polling.rules.sessions import DataSession, observe
from bace_bridge.redaction import Redaction

ID = "0c7c3d9e-4c53-4a13-9e8b-9d7e3e6a3c11"
NOW = 1_764_590_400.0
GROUP = "8be0b0d4-8a52-4f0e-9b7e-4a3f6f1d2c22"
SESSION = {"id_data_session": ID, "id_group": GROUP, "start": 1_648_641_893}
POINT = {"id_container_data_latest": "series", "datatype": 5205, "timestamp_seconds": 1_648_641_893.5}


def page(*items: Any, meta: Any = None) -> bytes:
    return json.dumps({"items": items} | ({} if meta is None else {"_meta": meta})).encode()


def session(**changes: Any) -> DataSession:
    return parse_session(json.dumps(SESSION | changes).encode()).session


def point(**changes: Any) -> Datapoint:
    return parse_datapoints(page(POINT | changes), {}).items[0]


def test_a_session_as_the_documentation_shows_it() -> None:
    seen = session(
        end=1_648_642_000,
        id_person=None,
        label="Night",
        created_at=1_648_641_897,
        created_by=None,
        updated_at=1_648_642_317,
        archived_at=None,
        datapoint_count=83,
        isIngestionFinished=True,
        isArchived=False,
        _links={"self": {"href": "http://internal"}},
    )
    assert seen == DataSession(
        ID,
        GROUP,
        1_648_641_893.0,
        end=1_648_642_000.0,
        label="Night",
        created_at=1_648_641_897.0,
        updated_at=1_648_642_317.0,
        datapoint_count=83,
        ingestion_finished=True,
    )


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("start", "1648641893", "start", 1_648_641_893.0),
        ("end", "1648641893.5", "end", 1_648_641_893.5),
        ("end", 0, "end", 0.0),
        ("datapoint_count", "83", "datapoint_count", 83),
        ("datapoint_count", 83.0, "datapoint_count", 83),
        ("isIngestionFinished", 1, "ingestion_finished", True),
        ("isIngestionFinished", "0", "ingestion_finished", False),
        ("isIngestionFinished", None, "ingestion_finished", False),
        ("isArchived", "true", "archived", True),
        *(("isIngestionFinished", yes, "ingestion_finished", True) for yes in (True, 1, 1.0, "1", "true", "TRUE", "t")),
        *(("isIngestionFinished", no, "ingestion_finished", False) for no in (False, 0, "0", "false", "f", "", None)),
        ("id_data_session", 17, "id", "17"),
        ("id_data_session", "17", "id", "17"),
        ("id_group", 0, "group_id", "0"),
        ("id_group", "bridge", "group_id", "bridge"),
        ("id_group", ".", "group_id", "."),
        ("id_group", "..", "group_id", ".."),
        ("updated_at", None, "updated_at", None),
        ("updated_at", "1648641893.000", "updated_at", 1_648_641_893.0),
        ("label", 7.5, "label", "7.5"),
        ("label", "a\ud800b", "label", "a\ufffdb"),
        ("label", "\udc00\ud800", "label", "\ufffd\ufffd"),
        ("label", "\U0001f600 \\ud800", "label", "\U0001f600 \\ud800"),
        ("id_person", "\ud800", "person_id", "\ufffd"),
        ("label", 7, "label", "7"),
        ("label", "007", "label", "007"),
        ("label", "null", "label", "null"),
        ("label", "true", "label", "true"),
        ("label", "", "label", ""),
        ("id_person", 12, "person_id", "12"),
        ("unknown", {"deep": [1]}, "label", None),
    ],
)
def test_a_session_is_read_tolerantly(name: str, value: Any, attribute: str, expected: object) -> None:
    found = getattr(session(**{name: value}), attribute)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"id_data_session": "../user/self"},
        {"id_data_session": ""},
        {"id_data_session": "a" * 65},
        {"id_group": "a/b"},
        {"id_group": "a b"},
        {"id_group": "+"},
        {"id_group": "#"},
        {"start": None},
        {"start": "soon"},
        {"start": 1e12},
        {"start": "nan"},
        {"end": "inf"},
        {"end": -1e12},
        {"updated_at": "lately"},
    ],
)
def test_what_cannot_be_read_of_a_session_is_not_guessed(changes: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedReply, match="cannot be read"):
        session(**changes)


@pytest.mark.parametrize(
    ("name", "value", "attribute", "read"),
    [
        ("label", ["x"], "label", None),
        ("id_person", {}, "person_id", None),
        ("datapoint_count", "many", "datapoint_count", None),
        ("datapoint_count", 12.5, "datapoint_count", None),
        ("isIngestionFinished", "maybe", "ingestion_finished", False),
        ("isArchived", [], "archived", False),
        ("created_at", "nan", "created_at", None),
    ],
)
def test_an_odd_field_does_not_take_its_session_along(name: str, value: Any, attribute: str, read: object) -> None:
    assert getattr(session(**{name: value}), attribute) == read
    found = parse_sessions(page(SESSION, SESSION | {name: value, "label": value if name == "label" else "Night"}), {})
    assert (len(found.items), found.lost, found.unreadable) == (2, (), ())
    assert getattr(found.items[1].session, attribute) == read
    assert [field for field, _ in found.odd] == [name]
    assert found.items[1].session.label == (None if name == "label" else "Night"), "everything else is read"


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"end": "soon", "updated_at": 5}, (SESSION["id_data_session"], 5.0)),
        ({"updated_at": [5]}, (SESSION["id_data_session"], None)),
        ({"id_data_session": "a b", "updated_at": "5"}, (None, 5.0)),
    ],
)
def test_what_is_known_of_a_lost_row_is_kept(changes: dict[str, Any], known: tuple[str | None, float | None]) -> None:
    (lost,) = parse_sessions(page(SESSION, SESSION | changes), {}).lost
    assert (lost.id, lost.updated_at) == known


@pytest.mark.parametrize("missing", ["id_data_session", "id_group", "start"])
def test_a_session_without_its_essentials_is_named(missing: str) -> None:
    row = {name: value for name, value in SESSION.items() if name != missing}
    with pytest.raises(UnexpectedReply, match=missing):
        parse_session(json.dumps(row).encode())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"id_data_session":'])
def test_what_is_no_session_at_all(body: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        parse_session(body)


@pytest.mark.parametrize(
    ("group", "label"),
    [
        ({"label": "BaceGo-001"}, "BaceGo-001"),
        ({"label": None}, None),
        ({"label": 5}, "5"),
        ({"label": 5.5}, "5.5"),
        ({"label": True}, None),
        ({"label": ["x"]}, None),
        ({"label": {"en": "x"}}, None),
        ([{"label": "x"}], None),
        ("BaceGo-001", None),
        (None, None),
    ],
)
def test_the_label_of_an_expanded_group_in_any_shape(group: Any, label: str | None) -> None:
    assert parse_session(json.dumps(SESSION | {"group": group}).encode()).device_label == label


def test_a_row_that_cannot_be_read_does_not_take_its_page_along() -> None:
    found = parse_sessions(page(SESSION, SESSION | {"start": "soon"}, 7, SESSION), {})
    assert len(found.items) == 2
    assert found.count == 4
    assert [name.split(":")[0] for name in found.unreadable] == ["items[1]", "items[2]"]
    assert "$.start" in found.unreadable[0]
    found = parse_sessions(page(SESSION, SESSION | {"id_group": "a/b"}), {})
    assert found.unreadable == ("items[1]: id_group is not an id",)


def test_a_page_of_which_nothing_can_be_read_is_no_empty_page() -> None:
    """Otherwise a changed format would look like an empty cloud."""
    found = parse_sessions(page(SESSION | {"start": "soon"}, {"id": 2}), {})
    assert (found.items, found.count, [row.id for row in found.lost]) == ((), 2, [ID, None])
    assert found.lost[0].reason.startswith("items[0]: Expected `float`, got `str` - at `$.start`")
    for parse in (parse_datapoints, parse_groups):
        with pytest.raises(UnexpectedReply, match=r"no row .* items\[0\]"):
            parse(page({"id": []}, {"id": []}), {})


@pytest.mark.parametrize("keys", [("5", "9"), ("9", "5"), ("a", ""), ("\ud800", "b")])
def test_items_as_an_object_with_keys_are_its_values_in_order(keys: tuple[str, str]) -> None:
    def body(*rows: Any) -> bytes:
        return json.dumps({"items": dict(zip(keys, rows, strict=True)), "_meta": {"totalCount": 2}}).encode()

    sessions = parse_sessions(body(SESSION, SESSION | {"id_data_session": "b"}), {})
    assert ([row.session.id for row in sessions.items], sessions.count, sessions.total) == ([ID, "b"], 2, 2)
    assert [row.id for row in parse_sessions(body(SESSION | {"start": "x"}, SESSION), {}).lost] == [ID]
    points = parse_datapoints(body(POINT, POINT | {"datatype": 7}), {})
    assert [point.datatype for point in points.items] == [5205, 7]
    assert parse_datapoints(body(POINT, {}), {}).unreadable[0].startswith("items[1]: ")
    assert parse_groups(body({"id": 1}, {"id": 2}), {}).items == (("1", None), ("2", None))
    assert parse_sessions(b'{"items":{}}', {}).count == 0


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"null", b"{}", b'{"items":null}', b'{"items":7}', b'{"items":[', b"\xff"]
)
def test_what_is_no_page_is_an_error(body: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        parse_sessions(body, {})


HEADERS = {
    "X-Pagination-Total-Count": "9",
    "X-Pagination-Page-Count": "3",
    "X-Pagination-Current-Page": "2",
}


@pytest.mark.parametrize(
    ("meta", "headers", "expected"),
    [
        ({"totalCount": 7, "pageCount": 2, "currentPage": 1, "perPage": 5}, {}, (7, 2, 1)),
        ({"totalCount": "7", "pageCount": "2", "currentPage": "1"}, {}, (7, 2, 1)),
        ({"totalCount": 0, "pageCount": 0, "currentPage": 1}, HEADERS, (0, 0, 1)),
        (None, HEADERS, (9, 3, 2)),
        ({"totalCount": 7}, HEADERS, (7, 3, 2)),
        (None, {}, (None, None, None)),
        (None, {"X-Pagination-Page-Count": "many"}, (None, None, None)),
    ],
)
def test_the_figures_of_a_page(
    meta: Any, headers: dict[str, str], expected: tuple[int | None, int | None, int | None]
) -> None:
    found = parse_sessions(page(SESSION, meta=meta), headers)
    assert (found.total, found.page_count, found.page) == expected
    broken = parse_sessions(page(SESSION, {}, meta=meta), headers)
    assert (broken.total, broken.page_count, broken.page, broken.count) == (*expected, 2)


@pytest.mark.parametrize(
    ("changes", "attribute", "expected"),
    [
        ({"min_val": "3.95"}, "min", 3.95),
        ({"max_val": 5}, "max", 5.0),
        ({"avg_val": None}, "avg", None),
        ({}, "count", 1),
        ({"count_val": None}, "count", 1),
        ({"count_val": "12"}, "count", 12),
        ({"datatype": "6000"}, "datatype", 6000),
        ({"timestamp_seconds": "1648641893.25"}, "timestamp", 1_648_641_893.25),
        ({"timestamp_seconds": 1_648_641_893}, "timestamp", 1_648_641_893.0),
        ({}, "source_device", "unknown"),
        ({"source_device": ""}, "source_device", "unknown"),
        ({"source_device": "d1"}, "source_device", "d1"),
        ({"source_device": 0}, "source_device", "0"),
        ({"id_container_data_latest": 17}, "series_id", "17"),
        ({"datatype": "6000.0"}, "datatype", 6000),
        ({"count_val": "12.00"}, "count", 12),
        ({"timestamp_seconds": "1648641893.2500000"}, "timestamp", 1_648_641_893.25),
        ({"timestamp_seconds": "1648641893.0000"}, "timestamp", 1_648_641_893.0),
        ({"min_val": "3.9500000000"}, "min", 3.95),
        *(
            ({name: value}, name.removesuffix("_val"), None)
            for name in ("min_val", "max_val", "avg_val")
            for value in ("NaN", "nan", "INF", "-Infinity")
        ),
    ],
)
def test_a_datapoint_is_read_tolerantly(changes: dict[str, Any], attribute: str, expected: object) -> None:
    found = getattr(point(**changes), attribute)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"timestamp_seconds": None},
        {"timestamp_seconds": "nan"},
        {"timestamp_seconds": 1e12},
        {"timestamp_seconds": "-1e12"},
        {"id_container_data_latest": None},
        {"datatype": "heart"},
        {"count_val": 1.5},
        {"min_val": "low"},
    ],
)
def test_a_datapoint_that_cannot_be_read_is_named(changes: dict[str, Any]) -> None:
    found = parse_datapoints(page(POINT, POINT | changes), {})
    assert len(found.items) == 1
    assert [name.split(":")[0] for name in found.unreadable] == ["items[1]"]


def test_groups_by_their_group_id_else_by_their_id() -> None:
    rows = [{"id": 4, "id_group": GROUP, "label": "BaceGo-1"}, {"id": "x", "label": None}, {"id": 7}]
    assert parse_groups(page(*rows), {}).items == ((GROUP, "BaceGo-1"), ("x", None), ("7", None))


@pytest.mark.parametrize(
    ("expanded", "axes"),
    [
        ({"datatypes": [6000, "6001"], "physicalDevices": ["b", "a"]}, ((6000, 6001), ("a", "b"))),
        ({"datatypes": [{"datatype": 6000}, {"id": 6001}]}, ((6000, 6001), ())),
        ({"datatypes": {"x": {"id_datatype": "6000"}}}, ((6000,), ())),
        ({"physicalDevices": [{"id_physical_device": "a", "id": 9}, {"source_device": "b"}]}, ((), ("a", "b"))),
        ({"physicalDevices": {"1": "a", "2": "a"}}, ((), ("a",))),
        ({"datatypes": ["heart", None, 5.5, [6000]], "physicalDevices": ["a/b", {}]}, ((), ())),
        ({"datatypes": "6000", "physicalDevices": 7}, ((), ())),
        ({}, ((), ())),
    ],
)
def test_series_axes_in_any_shape(expanded: dict[str, Any], axes: Any) -> None:
    assert parse_series_axes(json.dumps(expanded).encode()) == axes


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff"])
def test_no_axes_in_what_is_no_session(body: bytes) -> None:
    assert parse_series_axes(body) == ((), ())


def test_a_token() -> None:
    reply = parse_token(b'{"access_token":"a","expires_in":"86400","token_type":"Bearer","scope":null}')
    assert (reply.access_token, reply.expires_in, reply.refresh_token) == ("a", 86400.0, None)
    assert parse_token(b'{"access_token":"a"}').expires_in == 86400
    assert parse_token(b'{"access_token":17,"refresh_token":18}') == TokenReply("17", 86400.0, "18")


LIVES = {
    **dict.fromkeys(("null", "false", "true", '""', '"never"', "-5", "0", '"NaN"', '"inf"', "[]", "{}"), 86400.0),
    "1e400": 86400.0,
    "9" * 5000: 86400.0,
    '"' + "9" * 5000 + '"': 86400.0,
    '"\\ud800"': 86400.0,
    "3600": 3600.0,
    '"3600"': 3600.0,
    "3600.5": 3600.5,
    '"3600.000"': 3600.0,
    "1e12": 1e12,
}


@pytest.mark.parametrize(("said", "life"), LIVES.items())
def test_whatever_is_said_of_its_life_a_token_is_a_token(said: str, life: float) -> None:
    reply = parse_token(b'{"access_token":"a","expires_in":%b,"refresh_token":"r"}' % said.encode())
    assert reply == TokenReply("a", life, "r")


NO_TOKENS = ["", "a b", "a\nb", "a\r\nX: y", "a\0", "a\x7f", "t\u00f6ken", "\u4f60", "\ud800", "x" * 65536, "a\n"]


@pytest.mark.parametrize("text", NO_TOKENS)
def test_what_no_header_can_carry_is_no_token(text: str) -> None:
    with pytest.raises(UnexpectedReply, match="it cannot be sent in an HTTP header"):
        parse_token(json.dumps({"access_token": text}).encode())
    reply = parse_token(json.dumps({"access_token": "a", "refresh_token": text}).encode())
    assert reply == TokenReply("a", 86400.0, None)


@pytest.mark.parametrize("said", ["null", "false", "[]", "{}", "1.5", '""'])
def test_an_odd_refresh_token_is_none(said: str) -> None:
    assert parse_token(b'{"access_token":"a","refresh_token":%b}' % said.encode()).refresh_token is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"access_token":null}', b"\xff"])
def test_what_is_no_token_is_never_quoted(body: bytes) -> None:
    with pytest.raises(UnexpectedReply) as caught:
        parse_token(body)
    said = str(caught.value).partition(" (")
    assert said[0] == "the token endpoint's answer is not a token"
    assert not body or body.decode(errors="replace") not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b" \n", "the answer was empty"),
        (b"\n<!DOCTYPE html>", "got HTML instead of JSON: the login page"),
        (b"nothing", "not a token"),
    ],
)
def test_what_came_in_place_of_json_is_called_what_it_is(body: bytes, said: str) -> None:
    with pytest.raises(UnexpectedReply, match=said):
        parse_token(body)
    with pytest.raises(UnexpectedReply, match=said.replace("not a token", "a page cannot be read")):
        parse_sessions(body, {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"name":"Not Found","message":"Object not found","code":0,"status":404}', "Object not found"),
        ('{"name":"Not Found"}', "Not Found"),
        ('{"message":"two\\n  lines"}', "two lines"),
        ('[{"field":"start","message":"must be an integer"},7]', "start: must be an integer"),
        (json.dumps({"message": "x" * 500}), "x" * 120),
        (json.dumps([{"field": "x" * 500, "message": ""}]), "x" * 120),
        ("{}", None),
        ("<html>no such route</html>", None),
        ("", None),
        ("7", None),
    ],
)
def test_the_message_of_an_error(body: str, said: str | None) -> None:
    assert parse_problem(body.encode()) == said


@pytest.mark.parametrize("before", range(100, 124))
@pytest.mark.parametrize("shape", ['{"message":"%s"}', '[{"field":"f","message":"%s"}]'])
def test_a_secret_is_masked_before_a_message_is_cut(before: int, shape: str) -> None:
    secret = "s3cr3t-passw0rd"
    said = parse_problem((shape % ("x" * before + secret + " is wrong")).encode(), Redaction(("user", secret)).quoted)
    assert said is not None
    assert secret[:2] not in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys((*SESSION, *POINT, "label", "end", "group", "id"), JSON))


@given(st.lists(ROWS, max_size=3), JSON)
def test_whatever_comes_is_read_or_named_and_nothing_else_is_raised(rows: list[Any], other: Any) -> None:
    for body in (page(*rows, meta=other), page(SESSION | POINT, *rows), json.dumps(other).encode()):
        for parse in (parse_sessions, parse_datapoints, parse_groups):
            try:
                found = parse(body, {})
            except UnexpectedReply:
                continue
            assert found.count == len(found.items) + len(found.unreadable)
        parse_series_axes(body)
        parse_problem(body)


@pytest.mark.parametrize("seconds", [-9.9e10, -6.3e10, -6.2e10, 0.0, 9.9e10])
def test_a_time_that_is_accepted_can_be_shown(seconds: float) -> None:
    """One row with an absurd time must be named, not end the process each time that it is shown."""
    for name in ("start", "end", "created_at", "updated_at"):
        found = parse_sessions(page(SESSION, SESSION | {name: seconds}), {})
        for one in found.items:
            times = (one.session.start, one.session.end, one.session.created_at, one.session.updated_at)
            assert all(iso_utc(time) for time in times if time is not None)
    for found_point in parse_datapoints(page(POINT, POINT | {"timestamp_seconds": seconds}), {}).items:
        assert iso_utc(found_point.timestamp)


@pytest.mark.parametrize("name", ["created_at", "updated_at"])
@pytest.mark.parametrize("value", [1e300, "nan", "inf"])
def test_an_absurd_time_is_named(name: str, value: Any) -> None:
    found = parse_sessions(page(SESSION, SESSION | {name: value}), {})
    assert len(found.unreadable) + len(found.odd) == 1


@pytest.mark.parametrize(
    "label", [b'"a\\ud800"', b'"\\udfff"', b'"a\\uD800\\u0041"', b'"\xff"', b'"Kl\xe4rwerk"', b'"\xed\xa0\x80"']
)
@pytest.mark.parametrize("where", ["label", "group", "unknown", "key"])
def test_a_text_with_what_is_no_character_costs_no_more_than_itself(label: bytes, where: str) -> None:
    field = {"label": b'"label":%b', "group": b'"group":{"label":%b}', "unknown": b'"x":[%b]', "key": b"%b:1"}[where]
    row = json.dumps(SESSION)[1:-1].encode() + b"," + field % label
    found = parse_sessions(b'{"items":[%b,{%b}]}' % (json.dumps(SESSION).encode(), row), {})
    assert (len(found.items), found.lost, found.odd) == (2, (), ())
    shown = found.items[1].session.label if where == "label" else found.items[1].device_label
    assert ("\ufffd" in (shown or "")) == (where in {"label", "group"})
    json.dumps([shown]).encode()
    (shown or "").encode()
    groups = parse_groups(b'{"items":[{"id":1,"label":%b},{"id":2,"label":"x"}]}' % label, {})
    assert [group for group, _ in groups.items] == ["1", "2"]


@pytest.mark.parametrize("label", [5, 5.5, True, [], ["x"], {}, None])
def test_an_odd_label_of_a_group_does_not_take_the_others_along(label: Any) -> None:
    found = parse_groups(page({"id_group": "a", "label": label}, {"id_group": 17, "label": "x"}), {})
    assert (found.items[1:], found.unreadable) == ((("17", "x"),), ())
    assert found.items[0] == ("a", str(label) if label in (5, 5.5) else None)


def test_a_group_without_any_id_is_none() -> None:
    found = parse_groups(page({"label": "x"}, {"id": "a"}), {})
    assert (found.items, len(found.unreadable)) == ((("a", None),), 1)


def test_a_byte_order_mark_is_no_part_of_the_answer() -> None:
    mark = b"\xef\xbb\xbf"
    assert parse_sessions(mark + page(SESSION), {}).count == 1
    assert parse_token(mark + b'{"access_token":"a"}').access_token == "a"
    assert parse_problem(mark + b'{"message":"x"}') == "x"


@pytest.mark.parametrize("name", ["id_container_data_latest", "source_device"])
@pytest.mark.parametrize("odd", [b'"a\\ud800"', b'"a\xff"'])
def test_a_series_of_which_a_part_is_unknown_is_named(name: str, odd: bytes) -> None:
    """Two of them may differ in just that part."""
    row = json.dumps(POINT | {name: "ODD"}).encode().replace(b'"ODD"', odd)
    found = parse_datapoints(b'{"items":[%b,%b]}' % (json.dumps(POINT).encode(), row), {})
    assert (len(found.items), len(found.unreadable)) == (1, 1)


DEEP = b"[" * 50_000 + b"]" * 50_000
"""JSON that is in order, and nested more deeply than any decoder goes."""


@pytest.mark.parametrize(
    "parse",
    [
        parse_token,
        parse_session,
        lambda body: parse_sessions(body, {}),
        lambda body: parse_datapoints(body, {}),
        lambda body: parse_groups(body, {}),
    ],
)
@pytest.mark.parametrize(
    "body", [DEEP, b'{"group":%b}' % DEEP, b'{"items":[{"group":%b}]}' % DEEP, b'{"items":[\xff]}']
)
def test_what_is_nested_without_end_is_an_unexpected_reply(parse: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        parse(body)


def test_a_problem_or_axes_that_are_nested_without_end_say_nothing() -> None:
    assert parse_problem(DEEP) is None
    assert parse_problem(b'{"message":"x","more":%b}' % DEEP) is None
    assert parse_series_axes(b'{"datatypes":%b}' % DEEP) == ((), ())


@pytest.mark.parametrize("name", ["count_val", "datatype"])
@pytest.mark.parametrize("value", [2**63, 2**70, -(2**70), str(2**64), "9" * 5000])
def test_an_integer_that_the_store_cannot_hold_is_named(name: str, value: Any) -> None:
    found = parse_datapoints(page(POINT, POINT | {name: value}), {})
    assert [one.split(":")[0] for one in found.unreadable] == ["items[1]"]


@pytest.mark.parametrize("name", ["totalCount", "pageCount", "currentPage", "perPage"])
def test_absurd_figures_of_a_page_are_none_and_cost_no_row(name: str) -> None:
    values: list[Any] = [2**63, -1, "many", [], {}, True]
    for value in values:
        found = parse_sessions(page(SESSION, meta={name: value}), {})
        assert (len(found.items), found.page, found.page_count, found.total) == (1, None, None, None)
    assert parse_sessions(page(SESSION, meta=[]), {}).page_count is None


def test_figures_with_thousands_of_digits_are_none() -> None:
    digits = "9" * 5000
    assert parse_series_axes(json.dumps({"datatypes": [6000, digits]}).encode()) == ((6000,), ())
    found = parse_sessions(page(SESSION), {"X-Pagination-Total-Count": digits, "X-Pagination-Page-Count": "2"})
    assert (found.total, found.page_count) == (None, 2)


LONG = "\x01" * 100_000
"""Each character of it takes six in JSON."""


def test_a_long_label_keeps_the_events_small() -> None:
    row = SESSION | {"label": LONG, "id_person": LONG, "group": {"label": LONG}}
    seen = parse_session(json.dumps(row).encode())
    assert [len(text or "") for text in (seen.session.label, seen.session.person_id, seen.device_label)] == [256] * 3
    told = observe(None, seen.session, device_label=seen.device_label, start_from=0, now=NOW)
    assert told is not None
    news = [point(timestamp_seconds=NOW + one, source_device=LONG[:256]) for one in range(1000)]
    events = [*told.events, *datapoint_events(told.known, news, {}, now=NOW)]
    assert max(len(one.data) for one in events) < 64 * 1024
    assert seen.session.label == parse_session(json.dumps(row | {"label": LONG[:255] + "…"}).encode()).session.label
    assert parse_groups(page({"id_group": GROUP, "label": LONG}), {}).items == ((GROUP, seen.device_label),)


def test_a_text_of_the_longest_length_is_kept() -> None:
    assert session(label="x" * 256).label == "x" * 256


@pytest.mark.parametrize("name", ["id_container_data_latest", "source_device"])
def test_a_series_with_an_endless_name_is_named_shortly(name: str) -> None:
    """Two of them may be the same but for their ends, so they are not shortened."""
    found = parse_datapoints(page(POINT, POINT | {name: "x" * 257}), {})
    assert [len(one) < 200 for one in found.unreadable] == [True]
