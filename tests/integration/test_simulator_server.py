import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import Resolution
from bace_bridge.simulator.server import SimulatedServer
from tests.integration.simulator_account import (
    LOGIN,
    NOW,
    POINTS,
    SESSIONS,
    UNKNOWN,
    Account,
    account,
    history,
    measured,
    of,
    of_all,
    walk,
)


@pytest.fixture
async def me() -> AsyncIterator[Account]:
    async with account() as made:
        yield made


# --- the documented replies -------------------------------------------------------------------------


async def test_a_session_has_the_documented_fields(me: Account) -> None:
    sid = me.cloud.open_session(me.device.id_group, label="Mine", start=NOW - 5)
    answer = await me.get(SESSIONS)
    assert answer.json["items"] == [
        {
            "id_data_session": sid,
            "id_group": me.device.id_group,
            "id_person": None,
            "label": "Mine",
            "start": int(NOW) - 5,
            "end": None,
            "created_at": int(NOW),
            "created_by": None,
            "updated_at": int(NOW),
            "updated_by": None,
            "archived_at": None,
            "datapoint_count": 0,
            "isIngestionFinished": False,
            "isArchived": False,
            "_links": {
                "self": {"href": f"{me.server.url}{SESSIONS}/view?id={sid}"},
                "index": {"href": f"{me.server.url}{SESSIONS}/index"},
            },
        }
    ]
    assert set(answer.json) == {"items", "_links", "_meta", "expand", "labels"}
    assert (await me.get(f"{SESSIONS}/view", {"id": sid})).json == answer.items[0]


async def test_a_datapoint_has_the_documented_fields(me: Account) -> None:
    sid = measured(me, count=1)
    answer = await me.get(POINTS, of(sid))
    series = {one.datatype: one for one in me.device.series}[6000]
    assert {
        "id_container_data_latest": series.id_container_data_latest,
        "id_group": me.device.id_group,
        "datatype": 6000,
        "source_device": series.source_device,
        "timestamp_seconds": int(NOW) - 900,
        "min_val": 0,
        "max_val": 0,
        "avg_val": 0,
        "count_val": 1,
    } in answer.items
    assert set(answer.json) == {"items", "_links", "_meta"}
    assert answer.json["_meta"]["perPage"] == 500


async def test_pages_are_given_in_the_body_and_in_the_headers(me: Account) -> None:
    history(me)
    answer = await me.get(SESSIONS, {"sort": "start", "page": "2"})
    assert answer.json["_meta"] == {"totalCount": 45, "pageCount": 3, "currentPage": 2, "perPage": 20}
    names = ("Total-Count", "Page-Count", "Current-Page", "Per-Page")
    assert [answer.headers[f"X-Pagination-{name}"] for name in names] == ["45", "3", "2", "20"]
    links = {name: link["href"] for name, link in answer.json["_links"].items()}
    assert set(links) == {"self", "first", "last", "next", "prev"}
    assert links["next"] == f"{me.server.url}{SESSIONS}?sort=start&page=3"
    assert answer.column("start") == sorted(answer.column("start"))


async def test_the_link_header_names_pages_as_yii_does(me: Account) -> None:
    history(me)
    answer = await me.get(SESSIONS, {"sort": "start", "filter[start][gt]": "5", "per-page": "20", "page": "2"})
    place = f"{me.server.url}{SESSIONS}?sort=start&filter%5Bstart%5D%5Bgt%5D=5&page="  # 20 is the default
    pages = {"self": 2, "first": 1, "last": 3, "prev": 1, "next": 3}
    assert answer.headers["Link"] == ", ".join(f"<{place}{number}>; rel={name}" for name, number in pages.items())
    assert (await me.get(SESSIONS, {"per-page": "7"})).json["_links"]["last"]["href"].endswith("?per-page=7&page=7")
    assert (await me.get(SESSIONS, {"filter[id_group]": UNKNOWN})).headers["Link"].count("rel=") == 1


async def test_the_newest_session_comes_first_by_default(me: Account) -> None:
    history(me)
    starts = (await me.get(SESSIONS)).column("start")
    assert starts == sorted(starts, reverse=True)
    unordered = (await me.get(SESSIONS, {"sort": "-star"})).column("start")
    assert unordered == sorted(starts[-20:] + unordered)[:20]


async def test_head_gives_the_headers_alone(me: Account) -> None:
    history(me)
    answer = await me.get(SESSIONS, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["X-Pagination-Total-Count"] == "45"


async def test_a_walk_by_id_finds_every_session(me: Account) -> None:
    ids = history(me, 303)
    assert sorted(await walk(me, {"sort": "id_data_session"})) == sorted(ids)


async def test_the_clamp_repeats_the_last_page(me: Account) -> None:
    history(me, 25)
    last, behind = [await me.get(SESSIONS, {"page": number}) for number in ("2", "99")]
    assert behind.column("id_data_session") == last.column("id_data_session")
    assert behind.json["_meta"]["currentPage"] == 2


async def test_filters_select_sessions(me: Account) -> None:
    history(me, 30)
    sid = me.cloud.open_session(me.device.id_group)
    assert (await me.get(SESSIONS, {"filter[end]": "NULL"})).column("id_data_session") == [sid]
    since = await me.get(SESSIONS, {"filter[updated_at][gte]": str(int(NOW)), "sort": "id_data_session"})
    assert since.column("id_data_session") == [sid]
    none = await me.get(SESSIONS, {"filter[id_group]": UNKNOWN})
    assert (none.items, none.json["_meta"]["pageCount"], set(none.json["_links"])) == ([], 0, {"self"})


async def test_a_wrong_value_is_a_422_with_an_array(me: Account) -> None:
    answer = await me.get(SESSIONS, {"filter[start]": "1648641893.0"})
    assert answer.status == 422
    assert answer.json == [{"field": "filter", "message": "Start must be an integer."}]


async def test_expanded_fields_come_only_when_asked(me: Account) -> None:
    measured(me)
    names = ["datatypes", "physicalDevices", "group", "dataIds", "fromDevice", "creator"]
    (row,) = (await me.get(SESSIONS, {"expand": ", ".join([*names, "nonsense"])})).items
    assert row["group"]["label"] == "BaceGo-001-002-00020"
    assert [one["datatype"] for one in row["datatypes"]] == [5205, 6000]
    assert [one["id_device_type"] for one in row["physicalDevices"]] == ["bace-go"]
    assert set(row["dataIds"]) == {series.id_container_data_latest for series in me.device.series}
    assert (row["fromDevice"], row["creator"]) == (True, None)
    assert "nonsense" not in row
    assert "group" not in (await me.get(SESSIONS)).items[0]


async def test_the_groups(me: Account) -> None:
    (group,) = (await me.get("/api/v2/group")).items
    assert (group["id_group"], group["label"]) == (me.device.id_group, "BaceGo-001-002-00020")
    assert (await me.get("/api/v2/group", {"filter[label]": "x"})).items == []


# --- datapoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "begins"),
    [(2, (NOW - 900) // 60 * 60), (48, (NOW - 900) // 3600 * 3600)],
    ids=["minutes", "hours"],
)
async def test_the_interval_chooses_the_resolution(me: Account, hours: float, begins: float) -> None:
    query = of(measured(me))
    query["filter[timestamp_seconds][gte]"] = str(NOW - 5000)
    query["filter[timestamp_seconds][lt]"] = str(NOW - 5000 + hours * 3600)
    answer = await me.get(POINTS, query)
    assert answer.column("count_val") == [5, 5]
    assert answer.column("timestamp_seconds") == [begins] * 2


async def test_a_short_interval_gives_raw_samples(me: Account) -> None:
    answer = await me.get(POINTS, of(measured(me), hours=1))
    assert answer.column("count_val") == [1] * 10


async def test_without_an_interval_there_is_a_row_a_day(me: Account) -> None:
    answer = await me.get(POINTS, {"filter[id_data_session]": measured(me)})
    assert answer.column("timestamp_seconds") == [NOW // 86400 * 86400] * 2
    assert answer.column("avg_val") == [2, 2]


async def test_thresholds_can_be_set() -> None:
    async with account(resolution=Resolution(raw=0)) as me:
        assert (await me.get(POINTS, of(measured(me)))).column("count_val") == [5, 5]


async def test_a_lower_bound_alone_reaches_until_now(me: Account) -> None:
    query = {"filter[id_data_session]": measured(me), "filter[timestamp_seconds][gt]": str(NOW - 900)}
    assert len((await me.get(POINTS, query)).items) == 8
    me.clock.now += 7200
    assert (await me.get(POINTS, query)).items == []  # the minute itself begins before the bound


async def test_rows_come_by_time_and_series(me: Account) -> None:
    rows = (await me.get(POINTS, of(measured(me)))).items
    keys = [(row["timestamp_seconds"], row["id_container_data_latest"]) for row in rows]
    assert keys == sorted(keys)


async def test_data_can_be_asked_by_group_datatype_and_device(me: Account) -> None:
    measured(me)
    measured(me, count=7)  # the same times: two sessions of one series
    bounds = {name: value for name, value in of("").items() if "session" not in name}
    query = bounds | {"filter[id_group]": me.device.id_group, "filter[datatype]": "6000"}
    answer = await me.get(POINTS, query)
    assert set(answer.column("datatype")) == {6000}
    assert len(answer.items) == 12
    assert (await me.get(POINTS, query | {"filter[source_device]": UNKNOWN})).items == []
    newest = await me.get(POINTS, query | {"sort": "-timestamp_seconds"})
    assert newest.column("timestamp_seconds") == sorted(answer.column("timestamp_seconds"), reverse=True)


async def test_datapoints_of_several_sessions_come_in_one_answer(me: Account) -> None:
    """By time, and of the sessions that were asked for alone; a row does not say of which."""
    wanted = [measured_elsewhere(me, number) for number in range(3)][:2]
    groups = [me.cloud.session(one).id_group for one in wanted]
    answer = await me.get(of_all(wanted))
    assert len(answer.items) == 2 * 2 * 5
    assert set(answer.column("id_group")) == set(groups)
    assert answer.column("timestamp_seconds") == sorted(answer.column("timestamp_seconds"))
    assert answer.column("count_val") == [1] * 20
    assert not any("session" in name for row in answer.items for name in row)
    assert answer.headers["Link"].count(wanted[0]) == 3
    pages = [await me.get(f"{of_all(wanted)}&per-page=8&page={number}") for number in (1, 2, 3)]
    assert [row for page in pages for row in page.items] == answer.items
    assert pages[1].headers["Link"].count(wanted[0]) == 5
    by_datatype = await me.get(f"{of_all(wanted)}&filter[datatype][in][]=6000&filter[datatype][in][]=1")
    assert set(by_datatype.column("datatype")) == {6000}


async def test_several_sessions_have_at_most_100_series_together(me: Account) -> None:
    assert (await me.get(of_all([many_series(me, 25, "one"), many_series(me, 25, "other")]))).status == 200
    refused = await me.get(of_all([many_series(me, 25, "third"), many_series(me, 26, "fourth")]))
    assert (refused.status, type(refused.json)) == (422, list)


def measured_elsewhere(who: Account, number: int) -> str:
    """A session with five points of two series, in a group of its own."""
    device = who.cloud.add_device(f"elsewhere {number}", datatypes=(6000, 5205))
    sid = who.cloud.open_session(device.id_group, start=NOW - 1000)
    for series in device.series:
        points = [(NOW - 900 + one + number / 8, float(one)) for one in range(5)]
        who.cloud.add_points(sid, series.id_container_data_latest, points)
    return sid


async def test_the_last_bucket_grows(me: Account) -> None:
    sid = measured(me)
    before = (await me.get(POINTS, of(sid, hours=2))).items
    series = before[0]["id_container_data_latest"]
    me.cloud.add_points(sid, series, [(NOW - 890, 100.0)])
    after = (await me.get(POINTS, of(sid, hours=2))).items
    assert after[0]["timestamp_seconds"] == before[0]["timestamp_seconds"]
    assert (after[0]["count_val"], after[0]["max_val"]) == (6, 100)


async def test_a_long_session_is_walked_500_rows_a_page(me: Account) -> None:
    sid = measured(me, count=1250, period=0.25)
    first = await me.get(POINTS, of(sid))
    assert first.json["_meta"] == {"totalCount": 2500, "pageCount": 5, "currentPage": 1, "perPage": 500}
    pages = [(await me.get(POINTS, of(sid) | {"page": str(number)})).items for number in range(1, 6)]
    keys = {(row["timestamp_seconds"], row["id_container_data_latest"]) for page in pages for row in page}
    assert len(keys) == 2500


async def test_more_than_100_series_are_refused() -> None:
    async with account() as me:
        sid = many_series(me)
        answer = await me.get(POINTS, of(sid))
        assert (answer.status, type(answer.json)) == (422, list)
        assert (await me.get(POINTS, of(sid) | {"filter[datatype]": "6000"})).status == 200


def many_series(who: Account, sources: int = 51, label: str = "many") -> str:
    device = who.cloud.add_device(label, datatypes=(6000, 6001), sources=sources)
    sid = who.cloud.open_session(device.id_group)
    for series in device.series:
        who.cloud.add_points(sid, series.id_container_data_latest, [(NOW - 900, 1.0)])
    return sid


async def test_a_removed_session_is_gone(me: Account) -> None:
    sid = measured(me)
    me.cloud.remove_session(sid)
    assert (await me.get(f"{SESSIONS}/view", {"id": sid})).status == 404
    assert (await me.get(f"{SESSIONS}/{sid}/download-csv")).status == 404
    assert (await me.get(POINTS, of(sid))).items == []


async def test_the_csv_holds_every_sample_and_no_length(me: Account) -> None:
    sid = measured(me, count=600)
    answer = await me.get(f"{SESSIONS}/{sid}/download-csv", Accept="*/*")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/csv; charset=UTF-8"
    assert "Content-Length" not in answer.headers
    lines = answer.body.decode().splitlines()
    assert len(lines) == 1 + 2 * 600
    assert lines[1].startswith(f"{NOW - 900:.3f},2023-11-14T21:58:20.000Z,")
    head = await me.get(f"{SESSIONS}/{sid}/download-csv", method="HEAD")
    assert (head.status, head.body) == (200, b"")


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", ["", "Bearer nonsense", "bearer {token}", "Basic abc"])
async def test_without_the_right_token_it_is_401(me: Account, authorization: str) -> None:
    token = me.headers["Authorization"].removeprefix("Bearer ")
    answer = await me.get(SESSIONS, Authorization=authorization.format(token=token))
    assert answer.status == 401
    assert answer.json == {
        "name": "Unauthorized",
        "message": "Your request was made with invalid credentials.",
        "code": 0,
        "status": 401,
    }


@pytest.mark.parametrize(
    "path", ["/api/v2/nothing", f"{SESSIONS}/", "/api/v2//data-session", "/api/v2/Data-Session", "/"]
)
async def test_an_unknown_route_is_html(me: Account, path: str) -> None:
    answer = await me.get(path)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/html; charset=utf-8")


async def test_an_unknown_object_is_json(me: Account) -> None:
    answer = await me.get(f"{SESSIONS}/view", {"id": UNKNOWN})
    assert (answer.status, answer.json["name"]) == (404, "Not Found")


async def test_another_method_is_405(me: Account) -> None:
    answer = await me.get(SESSIONS, method="DELETE")
    assert (answer.status, answer.json["status"]) == (405, 405)


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("application/json", 200, "application/json"),
        ("*/*", 200, "application/json"),
        ("text/html,application/xml;q=0.9,*/*;q=0.8", 200, "application/json"),
        ("text/csv", 406, "application/json"),
    ],
)
async def test_the_format_depends_on_accept(me: Account, accept: str, status: int, kind: str) -> None:
    measured(me)
    answer = await me.get(SESSIONS, {"expand": "datatypes"}, Accept=accept)
    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (status, kind)


async def test_a_wrong_password_is_401_and_a_wrong_client_400(me: Account) -> None:
    assert (await me.token(**LOGIN | {"password": "x"})).status == 401
    assert (await me.token(**LOGIN | {"client_id": "x"})).status == 400
    assert [seen.grant_type for seen in me.server.requests] == ["password", "password"]


async def test_credentials_in_the_query_or_the_header_do_not_count(me: Account) -> None:
    basic = {"Authorization": f"Basic {b64encode(b'simulator:simulator-secret').decode()}"}
    async with me.http.post(me.server.url + "/oauth2/token", params=LOGIN, headers=basic) as response:
        assert response.status == 400


# --- what tests can do ------------------------------------------------------------------------------


async def test_requests_are_seen(me: Account) -> None:
    await me.get(SESSIONS, {"sort": "-start", "filter[end]": "NULL"})
    await me.get("/api/v2/nothing")
    first, second = me.server.requests
    assert (first.at, first.method, first.path, first.status) == (NOW, "GET", SESSIONS, 200)
    assert first.query == (("sort", "-start"), ("filter[end]", "NULL"))
    assert dict(first.headers)["Authorization"] == me.headers["Authorization"]
    assert (second.path, second.status) == ("/api/v2/nothing", 404)


async def test_prepared_answers_come_as_often_as_prepared(me: Account) -> None:
    me.server.faults.answer(SESSIONS, status=502, body="<html>", times=2)
    me.server.faults.answer("/api", status=429, body="{}", headers={"Retry-After": "7"})
    answers = [await me.get(SESSIONS) for _ in range(4)]
    assert [answer.status for answer in answers] == [502, 502, 429, 200]
    assert answers[0].headers["Content-Type"].startswith("text/html")
    assert answers[2].headers["Retry-After"] == "7"


async def test_a_dropped_connection_is_no_answer(me: Account) -> None:
    me.server.faults.drop(SESSIONS, times=5)
    with pytest.raises(aiohttp.ClientConnectionError):
        await me.get(SESSIONS)
    assert me.server.requests[0].status == 0
    me.server.faults.waiting.clear()
    assert (await me.get(SESSIONS)).status == 200


async def test_a_delay_is_waited_for(me: Account) -> None:
    me.server.faults.delay(SESSIONS, 30.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(me.get(SESSIONS), 0.05)
    me.server.faults.delay(SESSIONS, 0.001)
    assert (await me.get(SESSIONS)).status == 200


async def test_the_server_comes_back_on_the_same_port_with_all_that_it_knew(me: Account) -> None:
    sid = measured(me)
    url = me.server.url
    await me.server.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await me.get(SESSIONS)
    await me.server.start()
    assert me.server.url == url
    assert (await me.get(SESSIONS)).column("id_data_session") == [sid]


async def test_two_servers_cannot_have_one_port(me: Account) -> None:
    port = urlsplit(me.server.url).port or 0
    with pytest.raises(OSError, match="address already in use"):
        await SimulatedServer(SimulatedCloud(), port=port).start()


async def test_the_date_is_the_clouds(me: Account) -> None:
    assert (await me.get(SESSIONS)).headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"


# --- quirks: each one is seen to have its effect ----------------------------------------------------


async def test_ties_are_shuffled_at_every_request() -> None:
    async with account("tie-shuffle") as me:
        for _ in range(60):
            me.cloud.open_session(me.device.id_group)
        asked = {"sort": "-updated_at", "per-page": "60"}
        orders = {tuple((await me.get(SESSIONS, asked)).column("id_data_session")) for _ in range(3)}
        assert len(orders) == 3
        assert len(set(await walk(me, {"sort": "-updated_at"}))) < 60
        assert len(set(await walk(me, {"sort": "id_data_session"}))) == 60
        assert len({tuple(await walk(me, {"sort": "-star"})) for _ in range(2)}) == 2


@pytest.mark.parametrize(
    ("quirk", "by_update", "by_end"),
    [("page-clamp", 0, 0), ("filters-ignored", 5, 5), ("updated-filter-ignored", 5, 0)],
)
async def test_session_filters_can_be_ignored(quirk: str, by_update: int, by_end: int) -> None:
    async with account(quirk) as me:
        history(me, 5)
        future = await me.get(SESSIONS, {"filter[updated_at][gte]": str(int(NOW) + 1)})
        active = await me.get(SESSIONS, {"filter[end]": "NULL"})
        assert (len(future.items), len(active.items)) == (by_update, by_end)


async def test_data_filters_can_be_ignored() -> None:
    async with account("data-filters-ignored") as me:
        sid = measured(me)
        measured(me, count=9)
        answer = await me.get(POINTS, of(sid) | {"filter[datatype]": "6000"})
        assert set(answer.column("datatype")) == {6000, 5205}
        assert answer.column("count_val") == [5, 5]


async def test_the_sort_can_be_ignored() -> None:
    async with account("sort-ignored") as me:
        history(me, 5)
        starts = (await me.get(SESSIONS, {"sort": "start"})).column("start")
        assert starts == sorted(starts, reverse=True)
        times = (await me.get(POINTS, of(measured(me)) | {"sort": "-timestamp_seconds"})).column("timestamp_seconds")
        assert times == sorted(times)


async def test_a_page_behind_the_last_can_be_empty() -> None:
    async with account("no-page-clamp") as me:
        history(me, 5)
        answer = await me.get(SESSIONS, {"page": "7"})
        assert (answer.items, answer.json["_meta"]["currentPage"]) == ([], 7)


@pytest.mark.parametrize(
    ("quirk", "new", "again"),
    [
        ("refresh-rotates", True, 400),
        ("refresh-destroys", False, 400),
        ("refresh-both", True, 200),
        ("refresh-same", False, 200),
    ],
)
async def test_refresh_tokens(quirk: str, new: bool, again: int) -> None:
    async with account(quirk) as me:
        old = (await me.token(**LOGIN)).json["refresh_token"]
        form = LOGIN | {"grant_type": "refresh_token", "refresh_token": old}
        first, second = await me.token(**form), await me.token(**form)
        assert (first.status, "refresh_token" in first.json, second.status) == (200, new, again)


async def test_the_rate_is_limited() -> None:
    async with account("rate-limit 5/20s") as me:
        answers = [await me.get(SESSIONS) for _ in range(6)]
        assert [answer.status for answer in answers] == [200] * 5 + [429]
        assert answers[0].headers["X-Rate-Limit-Remaining"] == "4"
        refused = answers[5]
        shown = [refused.headers[f"X-Rate-Limit-{name}"] for name in ("Limit", "Remaining", "Reset")]
        assert shown == ["5", "0", "20"]
        assert "Retry-After" not in refused.headers
        assert "X-Rate-Limit-Limit" not in (await me.get(SESSIONS, Authorization="")).headers
        for _ in range(5):
            me.clock.now += 2
            assert (await me.get(SESSIONS)).status == 429
        me.clock.now += 5
        assert (await me.get(SESSIONS)).status == 200


async def test_tokens_can_be_short_lived() -> None:
    async with account("token-lifetime 30s") as me:
        assert (await me.token(**LOGIN)).json["expires_in"] == 30
        me.clock.now += 30
        assert (await me.get(SESSIONS)).status == 401


async def test_each_so_many_requests_one_fails() -> None:
    async with account("error-every 3") as me:
        assert [(await me.get(SESSIONS)).status for _ in range(7)] == [200, 200, 500, 200, 200, 500, 200]


async def test_a_path_can_be_forbidden() -> None:
    async with account("forbidden group", "forbidden /api/v2/data-session/*/download-csv") as me:
        sid = measured(me)
        paths: Sequence[str] = ("/api/v2/group", f"{SESSIONS}/{sid}/download-csv", SESSIONS)
        assert [(await me.get(path)).status for path in paths] == [401, 401, 200]


async def test_answers_can_take_their_time() -> None:
    async with account("latency 1ms") as me:
        assert (await me.get(SESSIONS)).status == 200


async def test_the_api_can_redirect_to_another_origin() -> None:
    async with account("redirects") as me:
        answer = await me.get(SESSIONS, {"page": "1"})
        port = urlsplit(me.server.url).port
        assert answer.status == 302
        assert answer.headers["Location"] == f"http://localhost:{port}/elsewhere{SESSIONS}?page=1"


async def test_a_csv_can_break_off() -> None:
    async with account("csv-truncated") as me:
        answer = await me.get(f"{SESSIONS}/{measured(me, count=50)}/download-csv")
        lines = answer.body.decode().splitlines()
        assert answer.status == 200
        assert len(lines) < 100
        assert lines[-1] == "An internal server error occurred."


async def test_too_many_series_can_be_cut_silently() -> None:
    async with account("series-truncated") as me:
        answer = await me.get(POINTS, of(many_series(me)))
        assert len(set(answer.column("id_container_data_latest"))) == 100


async def test_a_malformed_uuid_can_be_a_500() -> None:
    async with account("bad-uuid-500") as me:
        assert (await me.get(POINTS, {"filter[id_data_session]": "x"})).status == 500
        assert (await me.get(f"{SESSIONS}/view", {"id": "x"})).status == 500
        assert (await me.get(f"{SESSIONS}/view", {"id": UNKNOWN})).status == 404


async def test_without_an_interval_samples_can_be_raw() -> None:
    async with account("no-interval-raw") as me:
        answer = await me.get(POINTS, {"filter[id_data_session]": measured(me)})
        assert answer.column("count_val") == [1] * 10


@pytest.mark.parametrize(
    ("quirks", "by_day"), [((), False), (("long-by-day 2d",), True), (("long-by-day 30d",), False)]
)
async def test_a_long_interval_can_come_by_the_day(quirks: tuple[str, ...], by_day: bool) -> None:
    async with account(*quirks) as me:
        since, until = str(int(NOW) - 3 * 86400), str(int(NOW))
        interval = {"filter[timestamp_seconds][gte]": since, "filter[timestamp_seconds][lt]": until}
        answer = await me.get(POINTS, {"filter[id_data_session]": measured(me), **interval})
        assert all(at % 86400 == 0 for at in answer.column("timestamp_seconds")) is by_day


async def test_the_date_can_be_missing() -> None:
    async with account("no-date") as me:
        assert "Date" not in (await me.get(SESSIONS)).headers


def every_number_is_a_string(row: dict[str, Any]) -> object:
    return row["start"] == str(int(NOW) - 1000) and row["datapoint_count"] == "10"


def has_odd_fields(row: dict[str, Any]) -> bool:
    return "x_tenant" in row and isinstance(row["group"], list)


@pytest.mark.parametrize(
    ("quirk", "seen"),
    [
        ("numbers-as-strings", every_number_is_a_string),
        ("booleans-as-ints", lambda row: row["isArchived"] == 0 and row["isArchived"] is not False),
        ("internal-links", lambda row: row["_links"]["self"]["href"].startswith("http://bace-api.internal")),
        ("unknown-fields", has_odd_fields),
        ("no-expand", lambda row: "group" not in row),
    ],
)
async def test_rows_can_look_otherwise(quirk: str, seen: Callable[[dict[str, Any]], object]) -> None:
    async with account() as plain, account(quirk) as me:
        for who, expected in ((plain, False), (me, True)):
            measured(who)
            (row,) = (await who.get(SESSIONS, {"expand": "group,datatypes"})).items
            assert bool(seen(row)) is expected


async def test_numbers_of_datapoints_can_be_strings() -> None:
    async with account("numbers-as-strings") as me:
        row = (await me.get(POINTS, of(measured(me)) | {"filter[avg_val][gte]": "3"})).items[0]
        assert (row["avg_val"], row["timestamp_seconds"]) == ("3", f"{NOW - 898.5}")
        assert re.fullmatch(r"\d+", row["datatype"])


async def test_pages_can_be_small() -> None:
    async with account("per-page-max 10") as me:
        history(me, 45)
        assert (await me.get(SESSIONS, {"per-page": "100"})).json["_meta"]["perPage"] == 10
        assert len(set(await walk(me, {"sort": "id_data_session"}))) == 45
