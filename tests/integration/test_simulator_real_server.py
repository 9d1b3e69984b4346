"""The simulated cloud does what a real Yii server was seen to do: each quirk has its effect, and only with it."""

from typing import Any

import pytest

from bace_bridge.simulator.replies import header_bytes
from tests.integration.simulator_account import (
    LOGIN,
    NOW,
    POINTS,
    SESSIONS,
    Account,
    Answer,
    account,
    history,
    measured,
    of,
    of_all,
    walk,
)

GROUPS = "/api/v2/group"


def by_ids(ids: list[str]) -> str:
    """As it stands in a URL: a dict could not hold the same name several times."""
    listed = "&".join(f"filter%5Bid_data_session%5D%5Bin%5D%5B%5D={one}" for one in ids)
    return f"{SESSIONS}?{listed}&expand=group&per-page=100&page=1"


async def asked_by_ids(who: Account, count: int) -> Answer:
    return await who.get(by_ids(history(who, count)))


@pytest.mark.parametrize(("ids", "measured_bytes"), [(32, 8_009), (50, 12_383)])
async def test_the_link_header_is_as_long_as_the_real_one(ids: int, measured_bytes: int) -> None:
    async with account() as me:
        link = (await asked_by_ids(me, ids)).headers["Link"]
        # The real server's port had a digit less than ours, in each of three links.
        assert abs(len(link) - measured_bytes) <= 3


@pytest.mark.parametrize(("ids", "measured_bytes"), [(10, 3_036), (15, 4_251)])
async def test_the_headers_are_as_large_as_the_real_ones(ids: int, measured_bytes: int) -> None:
    async with account() as me:
        answer = await asked_by_ids(me, ids)
        assert abs(header_bytes(answer.headers) - measured_bytes) < 100


async def test_an_answer_with_large_headers_is_a_502_of_nginx() -> None:
    async with account("header-limit 4096") as me:
        ids = history(me, 16)
        assert (await me.get(by_ids(ids[:15]))).status == 200
        refused = await me.get(by_ids(ids))
        assert (refused.status, refused.headers["Content-Type"]) == (502, "text/html; charset=utf-8")
        assert b"<center>nginx/" in refused.body
        assert "X-Pagination-Total-Count" not in refused.headers


@pytest.mark.parametrize(
    ("path", "field"), [(SESSIONS, "updated_at"), (SESSIONS, "start"), (POINTS, "datatype"), (GROUPS, "created_at")]
)
async def test_an_integer_too_wide_for_postgresql_is_a_500(path: str, field: str) -> None:
    async with account("int4") as me, account() as plain:
        for value, status in ((2**31 - 1, 200), (2**31, 500), (253_000_000_000, 500)):
            query = {f"filter[{field}][gte]": str(value)}
            answer = await me.get(path, query)
            assert (answer.status, (await plain.get(path, query)).status) == (status, 200)
        assert answer.json["name"] == "Internal Server Error"


async def test_a_range_of_updates_can_be_unsupported() -> None:
    async with account("gte-unsupported") as me:
        history(me, 3)
        refused = await me.get(SESSIONS, {"filter[updated_at][gte]": "5"})
        says = '"updated_at" does not support operator "gte".'
        assert (refused.status, refused.json) == (422, [{"field": "filter", "message": says}])
        assert (await me.get(SESSIONS, {"filter[start][gte]": "5"})).json["_meta"]["totalCount"] == 3


async def test_filters_can_be_refused_or_ignored_one_by_one() -> None:
    found: dict[str, list[Any]] = {}
    for quirk in ("page-clamp", "no-in-filter", "in-filter-ignored", "end-filter-ignored"):
        async with account(quirk) as me:
            ids = history(me, 5)
            by_id = await me.get(SESSIONS, {"filter[id_data_session][in][]": ids[0]})
            active = await me.get(SESSIONS, {"filter[end]": "NULL"})
            found[quirk] = [len(by_id.items) if by_id.status == 200 else by_id.status, len(active.items)]
    assert found == {
        "page-clamp": [1, 0],
        "no-in-filter": [422, 0],
        "in-filter-ignored": [5, 0],
        "end-filter-ignored": [1, 5],
    }


async def test_datapoints_of_several_sessions_can_be_refused_or_unfiltered() -> None:
    found: dict[str, int] = {}
    for quirk in ("page-clamp", "no-in-filter", "in-filter-ignored"):
        async with account(quirk) as me:
            sids = [measured(me), measured(me, count=7), measured(me, count=9)]
            answer = await me.get(of_all(sids[:2]))
            found[quirk] = len(answer.items) if answer.status == 200 else answer.status
    assert found == {"page-clamp": 2 * (5 + 7), "no-in-filter": 422, "in-filter-ignored": 2 * (5 + 7 + 9)}


@pytest.mark.parametrize(
    ("pages", "number", "measured_bytes"),
    [(1, 1, 2_974), (2, 1, 3_965), (3, 2, 4_956)],
    ids=["only", "first", "middle"],
)
async def test_the_link_header_of_ten_sessions_datapoints_is_as_long_as_the_real_one(
    pages: int, number: int, measured_bytes: int
) -> None:
    async with account() as me:
        sids = [measured(me, count=pages) for _ in range(10)]
        answer = await me.get(f"{of_all(sids)}&per-page=20&page={number}")
        assert answer.json["_meta"]["pageCount"] == pages
        assert abs(len(answer.headers["Link"]) - measured_bytes) < 100


async def test_datapoints_of_other_sessions_can_come_along() -> None:
    async with account("session-filter-ignored") as me:
        sid = measured(me)
        measured(me, count=9)
        assert len((await me.get(POINTS, of(sid))).items) == 10 + 18


@pytest.mark.parametrize("path", [SESSIONS, POINTS, GROUPS])
async def test_items_can_be_an_object(path: str) -> None:
    async with account("object-items") as me:
        measured(me)
        items = (await me.get(path)).json["items"]
        assert isinstance(items, dict)
        assert next(iter(items)) == "5"
        assert (await me.get(path, {"filter[id_group]": "00000000-0000-4000-8000-000000000000"})).json["items"] == {}


async def test_decimals_can_be_strings_with_trailing_zeros() -> None:
    async with account("decimals-as-strings") as me:
        (row,) = (await me.get(POINTS, of(measured(me, count=1)) | {"filter[datatype]": "6000"})).items
        assert (row["timestamp_seconds"], row["avg_val"]) == (f"{NOW - 900:.6f}", "0.000000")
        assert (row["datatype"], row["count_val"]) == (6000, 1)


async def test_a_session_can_be_without_a_stamp_until_its_first_update() -> None:
    async with account("no-updated-at") as me:
        sid = me.cloud.open_session(me.device.id_group)
        assert (await me.get(SESSIONS)).column("updated_at") == [None]
        since = {"filter[updated_at][gte]": "5"}
        assert (await me.get(SESSIONS, since)).items == []
        me.cloud.end_session(sid)
        assert (await me.get(SESSIONS, since)).column("updated_at") == [NOW]


# --- rows that come twice, in no order, or late ------------------------------------------------------


async def points_of(who: Account, sid: str) -> list[dict[str, Any]]:
    query = of(sid) | {"per-page": "1000", "filter[datatype]": "6000"}
    return (await who.get(POINTS, query)).items


async def test_datapoints_can_come_twice() -> None:
    async with account("duplicate-points") as same, account("conflicting-points") as other:
        rows = await points_of(same, measured(same, count=700))
        assert 710 < len(rows) < 760
        assert len({str(row) for row in rows}) == 700
        conflicting = await points_of(other, measured(other, count=700))
        assert len({str(row) for row in conflicting}) == len(conflicting) == len(rows)
        assert len({row["timestamp_seconds"] for row in conflicting}) == 700


async def test_a_session_can_be_in_a_page_twice_with_other_facts() -> None:
    async with account("duplicate-sessions") as me:
        ids = history(me, 40)
        answer = await me.get(SESSIONS, {"per-page": "100"})
        assert answer.json["_meta"]["totalCount"] == 40
        assert 50 < len(answer.items) < 70
        assert set(answer.column("id_data_session")) == set(ids)
        copies = [row for row in answer.items if row["label"].endswith("(copy)")]
        assert len(copies) == len(answer.items) - 40
        true = (await me.get(f"{SESSIONS}/view", {"id": copies[0]["id_data_session"]})).json
        assert (copies[0]["end"], copies[0]["updated_at"]) == (None, true["updated_at"])
        assert true["end"] is not None


async def test_without_a_sort_there_can_be_no_order() -> None:
    async with account("unstable-order") as me:
        history(me, 100)
        assert len(set(await walk(me, {}))) < 100
        assert len(set(await walk(me, {"sort": "id_data_session"}))) == 100
        sid = measured(me, count=600)
        pages = [(await me.get(POINTS, of(sid) | {"page": page})).items for page in ("1", "2", "3")]
        assert len({str(row) for page in pages for row in page}) < 1200
    async with account("unstable-order", "sort-ignored") as me:
        history(me, 100)
        assert len(set(await walk(me, {"sort": "id_data_session"}))) < 100


async def test_a_replica_can_lag() -> None:
    async with account("replica-lag 5s 50%") as me:
        (old,) = history(me, 1)
        sid = me.cloud.open_session(me.device.id_group)
        me.clock.now += 60
        series = me.device.series[0].id_container_data_latest
        me.cloud.add_points(sid, series, [(NOW - 900, 1.0)])
        me.clock.now += 3
        me.cloud.end_session(sid)
        me.cloud.remove_session(old)
        me.clock.now += 3
        lists = [(await me.get(SESSIONS, {"sort": "start"})).items for _ in range(20)]
        stamps = {tuple((row["updated_at"], row["end"] is None) for row in rows) for rows in lists}
        now = ((NOW + 63, False),)
        assert stamps == {now, ((NOW - 100_000 + 600 + 317, False), (NOW + 60, True))}
        views = [(await me.get(f"{SESSIONS}/view", {"id": old})).status for _ in range(20)]
        assert set(views) == {404}, "one row by its id comes from the primary"
        me.clock.now += 5
        assert {len((await me.get(SESSIONS)).items) for _ in range(20)} == {1}


async def test_a_replica_shows_the_datapoints_of_then() -> None:
    async with account("replica-lag 5s 50%") as me:
        sid = measured(me, count=2)
        me.clock.now += 60
        series = me.device.series[0].id_container_data_latest
        me.cloud.add_points(sid, series, [(NOW - 900, 7.0), (NOW - 880, 8.0)])
        asked = of(sid) | {"filter[id_container_data_latest]": series}
        seen = {tuple((await me.get(POINTS, asked)).column("avg_val")) for _ in range(20)}
        assert seen == {(7, 1, 8), (0, 1)}
        me.clock.now += 6
        assert {len((await me.get(POINTS, asked)).items) for _ in range(20)} == {3}


async def test_a_stale_row_can_bear_the_stamp_of_now() -> None:
    async with account("stale-rows 5s 50%") as me:
        sid = me.cloud.open_session(me.device.id_group)
        me.clock.now += 60
        me.cloud.end_session(sid)
        since = {"filter[updated_at][gte]": str(int(NOW) + 60)}
        ends = [(await me.get(SESSIONS, since)).column("end") for _ in range(20)]
        assert [None] in ends
        assert [NOW + 60] in ends
        assert {(await me.get(SESSIONS, since)).column("updated_at")[0] for _ in range(20)} == {NOW + 60}
        view = {"id": sid}
        assert {(await me.get(f"{SESSIONS}/view", view)).json["end"] for _ in range(20)} == {NOW + 60}
        me.clock.now += 6
        assert {(await me.get(SESSIONS)).column("end")[0] for _ in range(20)} == {NOW + 60}


async def test_lags_are_the_same_for_the_same_seed() -> None:
    async def seen() -> list[int]:
        async with account("replica-lag 5s 50%") as me:
            me.cloud.open_session(me.device.id_group)
            return [len((await me.get(SESSIONS)).items) for _ in range(30)]

    assert await seen() == await seen()


async def test_maintenance_empties_every_list() -> None:
    async with account("maintenance 12s/60s") as me:
        sid = measured(me)
        found = []
        for _ in range(3):
            lists = [len((await me.get(path)).items) > 0 for path in (SESSIONS, POINTS, GROUPS)]
            found.append((*lists, (await me.get(f"{SESSIONS}/view", {"id": sid})).status))
            me.clock.now += 48
        there, away = (True, True, True, 200), (False, False, False, 404)
        assert found == [there, away, there]


@pytest.mark.parametrize(("quirk", "said"), [("null", None), ("false", False), ('""', ""), ("never", "never")])
async def test_a_token_can_say_anything_of_its_lifetime(quirk: str, said: object) -> None:
    async with account(f"expires-in {quirk}") as me:
        answer = (await me.token(**LOGIN)).json
        assert answer["expires_in"] == said
        assert type(answer["expires_in"]) is type(said)
        assert (await me.get(SESSIONS)).status == 200
