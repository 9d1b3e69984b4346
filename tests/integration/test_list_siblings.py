"""Servers that answer the session list in ways nobody has documented: nothing is lost, nothing is made up."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bace_bridge.errors import CloudError, UnexpectedReply
from bace_bridge.events.types import LoggedEvent
from tests.integration.altered_cloud import altered
from tests.integration.polling_line import Clock, Watching, simulated, types, watching

LIST = "/api/v2/data-session"
VIEW = "/api/v2/data-session/view"
GROUPS = "/api/v2/group"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(events: Sequence[LoggedEvent]) -> set[str | None]:
    return {one.event.session_id for one in events if one.event.type == "session.started"}


def bare(_: web.Request, answer: Any) -> Any:
    answer.pop("_meta", None)
    return answer


async def poll_on(watch: Watching, clock: Clock, seconds: float, every: float = 61.0) -> list[LoggedEvent]:
    """What polls over so many seconds led to, though some of them fail."""
    before = await watch.all_events()
    for _ in range(int(seconds // every)):
        clock.forward(every)
        with suppress(CloudError):
            await watch.poll()
    return (await watch.all_events())[len(before) :]


async def polls(watch: Watching, clock: Clock, seconds: float) -> list[LoggedEvent]:
    for _ in range(int(seconds // 61)):
        await watch.list_poll.poll()
        clock.forward(61)
    return await watch.all_events()


async def test_a_first_start_without_figures_reports_no_history(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "sort-ignored")
    cloud.add_device("BaceGo-1")
    cloud.add_history(301, first_start=clock.now - 400_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = bare
        found = [*await watch.poll(), *await watch.poll_for(7300)]
        assert started(found) == set()


@pytest.mark.parametrize("meta", ["none", "zero", "null", "total", "list", "text"])
async def test_the_backfill_reads_behind_the_first_page_whatever_the_figures_say(
    clock: Clock, tmp_path: Path, meta: str
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(250, first_start=clock.now - 400_000, spacing=1000, duration=600)
    late = {
        cloud.open_session(device.id_group, start=clock.now - 90_000, created_at=clock.now - 90_000) for _ in range(8)
    }
    shown = False

    def alter(r: web.Request, answer: Any) -> Any:
        if isinstance(answer, dict) and "items" in answer:
            if not shown and "filter" in r.query_string:
                answer["items"] = [x for x in answer["items"] if x["id_data_session"] not in late]
            if meta == "none":
                answer.pop("_meta", None)
            if meta == "zero":
                answer["_meta"]["pageCount"] = 0
            if meta == "null":
                answer["_meta"]["pageCount"] = None
            if meta == "total":
                answer["_meta"] = {"totalCount": answer["_meta"]["totalCount"]}
            if meta == "list":
                answer["_meta"] = []
            if meta == "text":
                answer["_meta"]["pageCount"] = "many"
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        found = await polls(watch, clock, 3 * 3700)
        assert started(found) == late


async def test_a_broken_row_on_a_page_without_figures_costs_itself_alone(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = bare
        await watch.poll()
        clock.forward(10)
        sessions = [cloud.open_session(device.id_group) for _ in range(10)]
        cloud.quirks = replace(cloud.quirks, broken_rows=(sessions[4],))
        found = await watch.poll_for(60, every=10)
        assert started(found) == set(sessions) - {sessions[4]}


async def test_ids_that_are_numbers_are_in_order(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    numbers: dict[str, int] = {}

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):

        def alter(r: web.Request, answer: Any) -> Any:
            for row in answer.get("items", []) if r.path == LIST else []:
                row["id_data_session"] = numbers[row["id_data_session"]]
            return answer

        between.alter = alter
        await watch.poll()
        clock.forward(10)
        ids = sorted(cloud.open_session(device.id_group) for _ in range(150))
        numbers |= {one: n + 1 for n, one in enumerate(ids)}
        found = await watch.poll()
        assert watch.list_poll.strategy == "delta"
        assert started(found) == {str(n) for n in numbers.values()}


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("quirk", ["", "in-filter-ignored", "no-in-filter"])
async def test_an_endpoint_that_denies_every_session_removes_none(
    clock: Clock, tmp_path: Path, status: int, quirk: str
) -> None:
    cloud = simulated(clock, *([quirk] if quirk else []))
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(3, first_start=clock.now - 9000, spacing=2000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lambda r, a: status if r.path == VIEW else a
        await watch.poll()
        clock.forward(10)
        s = cloud.open_session(device.id_group)
        found = await watch.poll_for(3000)
        cloud.end_session(s)
        found += await watch.poll_for(100)
        assert types(found) == ["session.started", "session.ended"]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500, 503, 504])
async def test_a_change_without_a_stamp_is_believed_where_nobody_else_can_be_asked(
    clock: Clock, tmp_path: Path, status: int
) -> None:
    cloud = simulated(clock, "no-updated-at")
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):

        def alter(r: web.Request, a: Any) -> Any:
            for x in a.get("items", ()) if r.path == LIST else ():
                x["updated_at"] = None
            return status if r.path == VIEW else a

        between.alter = alter
        await watch.poll()
        clock.forward(10)
        s = cloud.open_session(device.id_group)
        found = await poll_on(watch, clock, 60, 10)
        cloud.end_session(s)
        found += await poll_on(watch, clock, 700, 10)
        assert types(found) == ["session.started", "session.ended"]


@pytest.mark.parametrize("status", [503, 504, 502])
@pytest.mark.parametrize("quirk", ["", "in-filter-ignored"])
async def test_a_session_that_times_out_holds_up_no_other(
    clock: Clock, tmp_path: Path, status: int, quirk: str
) -> None:
    cloud = simulated(clock, *([quirk] if quirk else []))
    device = cloud.add_device("BaceGo-1")
    bad = ""
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):

        def alter(r: web.Request, a: Any) -> Any:
            if r.path == VIEW and r.query.get("id") == bad:
                return status
            if "in" in r.query_string and bad and isinstance(a, dict) and bad in r.query_string:
                a["items"] = [x for x in a["items"] if x["id_data_session"] != bad]
            return a

        between.alter = alter
        await watch.poll()
        clock.forward(10)
        bad = cloud.open_session(device.id_group)
        gone = cloud.open_session(device.id_group)
        await poll_on(watch, clock, 130)
        cloud.remove_session(gone)
        fails = 0
        found = []
        for _ in range(40):
            clock.forward(20)
            try:
                found += await watch.poll()
            except CloudError:
                fails += 1
        assert types(found) == ["session.removed"]
        assert fails <= 2


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503, 504])
@pytest.mark.parametrize("expand", [True, False])
async def test_a_device_list_that_never_works_hides_no_session_and_is_no_secret(
    clock: Clock, tmp_path: Path, status: int, expand: bool
) -> None:
    cloud = simulated(clock, *([] if expand else ["no-expand"]))
    device = cloud.add_device("BaceGo-1")
    other = cloud.add_device("BaceGo-2")
    cloud.add_history(5, first_start=clock.now - 400_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock, groups=["BaceGo-1"]) as (between, watch):
        between.alter = lambda r, a: status if r.path == GROUPS else a
        await poll_on(watch, clock, 60, 10)
        s = cloud.open_session(device.id_group)
        cloud.open_session(other.id_group)
        fails = 0
        found = []
        for _ in range(20):
            clock.forward(10)
            try:
                found += await watch.poll()
            except CloudError:
                fails += 1
        if expand:
            assert (started(found), fails) == ({s}, 0)
        else:
            clock.forward(601)
            await poll_on(watch, clock, 60)
            assert fails or watch.list_poll.selection_problem


async def test_a_device_that_takes_a_watched_label_is_found_with_its_active_session(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("Old")
    async with altered(cloud, tmp_path / "b.db", clock, groups=["BaceGo-1"]) as (_, watch):
        await watch.poll()
        clock.forward(10)
        s = cloud.open_session(device.id_group)
        await watch.poll_for(120)
        cloud.rename_device(device.id_group, "BaceGo-1")
        found = await watch.poll_for(1000)
        assert started(found) == {s}


async def test_a_cloud_whose_clock_is_set_back_is_read_from_there(clock: Clock, tmp_path: Path) -> None:
    theirs = Clock(clock.now + 3600)
    cloud = simulated(theirs)
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (_, watch):
        await watch.poll()
        clock.forward(10)
        theirs.forward(10)
        cloud.open_session(device.id_group)
        for _ in range(20):
            await watch.poll()
            clock.forward(10)
            theirs.forward(10)
        theirs.now -= 3600
        s = cloud.open_session(device.id_group)
        found = []
        for _ in range(20):
            found += await watch.poll()
            clock.forward(10)
            theirs.forward(10)
        assert started(found) == {s}


@pytest.mark.parametrize("status", [400, 422, 403, 500])
@pytest.mark.parametrize("quirk", ["", "updated-filter-ignored"])
async def test_a_filter_for_groups_that_works_no_more_is_given_up_at_once(
    clock: Clock, tmp_path: Path, status: int, quirk: str
) -> None:
    cloud = simulated(clock, *([quirk] if quirk else []))
    device = cloud.add_device("BaceGo-1")
    gone = cloud.add_device("BaceGo-2")
    cloud.add_history(20, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock, groups=[device.id_group, gone.id_group]) as (between, watch):
        await watch.poll()
        await watch.poll_for(100, every=10)
        before = watch.list_poll.strategy
        between.alter = lambda r, a: status if "id_group" in r.query_string else a
        clock.forward(10)
        s = cloud.open_session(device.id_group)
        found = await poll_on(watch, clock, 60, 10)
        assert (started(found), watch.list_poll.strategy) == ({s}, before)


async def test_another_data_session_is_no_answer(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    asked, other = cloud.open_session(device.id_group), cloud.open_session(device.id_group)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lambda r, a: {**a, "id_data_session": other} if r.path == VIEW else a
        with pytest.raises(UnexpectedReply):
            await watch.api.session(asked)


async def test_each_process_logs_that_a_filter_is_not_honoured(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "updated-filter-ignored")
    cloud.add_device("BaceGo-1")
    cloud.add_history(3, first_start=clock.now - 40_000, spacing=1000, duration=600)
    for _ in range(2):
        with capture_logs() as logs:
            async with watching(cloud, tmp_path / "b.db", clock) as watch:
                await watch.poll()
                await watch.poll_for(100)
        assert [one["event"] for one in logs].count("cloud.filter_not_honoured") >= 1
        clock.forward(60)


async def test_a_page_that_times_out_hides_none_behind_it(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(350, first_start=clock.now - 800_000, spacing=1000, duration=600)
    late = {
        cloud.open_session(device.id_group, start=clock.now - 90_000, created_at=clock.now - 90_000) for _ in range(8)
    }

    def alter(r: web.Request, a: Any) -> Any:
        if r.path == LIST and "filter" not in r.query_string and r.query.get("sort") == "id_data_session":
            if r.query["page"] == "2":
                return 503
            shown.update(x["id_data_session"] for x in a["items"])
        elif r.path == LIST:
            a["items"] = [x for x in a["items"] if x["id_data_session"] not in late]
        return a

    shown: set[str] = set()
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        found = await polls(watch, clock, 3 * 3700)
        assert started(found) == late & shown
        assert len(shown) > 200
