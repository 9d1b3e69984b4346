"""Ways in which the session list could stay unread for long, or cost its whole budget, without a word."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bace_bridge.errors import CloudError
from bace_bridge.events.types import LoggedEvent
from bace_bridge.simulator.cloud import SimulatedCloud
from tests.integration.altered_cloud import altered
from tests.integration.polling_line import Clock, simulated, types, watching

LIST = "/api/v2/data-session"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(events: Sequence[LoggedEvent]) -> set[str | None]:
    return {one.event.session_id for one in events if one.event.type == "session.started"}


def break_rows(cloud: SimulatedCloud, *ids: str) -> None:
    cloud.quirks = replace(cloud.quirks, broken_rows=ids)


async def test_another_selection_takes_effect_though_the_newest_row_is_broken(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    first, second = cloud.add_device("BaceGo-1"), cloud.add_device("BaceGo-2")
    async with watching(cloud, tmp_path / "b.db", clock, groups=["BaceGo-1"]) as watch:
        await watch.poll()
        clock.forward(10)
        active = cloud.open_session(second.id_group)
        clock.forward(10)
        break_rows(cloud, cloud.open_session(first.id_group))
    async with watching(cloud, tmp_path / "b.db", clock, groups=["BaceGo-1", "BaceGo-2"]) as watch:
        assert started(await watch.poll()) == {active}


async def test_a_late_row_is_seen_after_an_outage_that_was_longer_than_the_overlap(
    clock: Clock, tmp_path: Path
) -> None:
    """It changed in the very second of the last poll, and then the cloud was away for five minutes."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        clock.forward(10)
        cloud.open_session(device.id_group)
        await watch.poll()
        late = cloud.open_session(device.id_group)
        between.alter = lambda _, __: 503
        for _ in range(10):
            clock.forward(30)
            with pytest.raises(CloudError):
                await watch.list_poll.poll()
        between.alter = lambda _, answer: answer
        assert started(await watch.poll()) == {late}


@pytest.mark.parametrize("quirks", [(), ("updated-filter-ignored",)], ids=["delta", "full scan"])
@pytest.mark.parametrize("above", ["a device that is not watched", "a session that starts tomorrow"])
async def test_a_new_session_is_found_below_another_one_while_the_head_holds_a_broken_row(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], above: str
) -> None:
    cloud = simulated(clock, *quirks)
    watched, other = cloud.add_device("BaceGo-1"), cloud.add_device("BaceGo-2")
    history = cloud.add_history(20, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with watching(cloud, tmp_path / "b.db", clock, groups=[watched.id_group]) as watch:
        await watch.poll()
        clock.forward(10)
        if above == "a session that starts tomorrow":
            cloud.open_session(watched.id_group, start=clock.now + 86_400)
        break_rows(cloud, history[-1], cloud.open_session(watched.id_group))
        await watch.poll_for(100, every=10)
        clock.forward(10)
        session = cloud.open_session(watched.id_group)
        if above == "a device that is not watched":
            cloud.open_session(other.id_group, start=clock.now + 1)
        assert started(await watch.poll()) == {session}


@pytest.mark.parametrize("quirks", [(), ("updated-filter-ignored",)], ids=["delta", "full scan"])
async def test_many_broken_rows_at_the_head_hold_up_no_end(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        session = cloud.open_session(device.id_group)
        await watch.poll()
        clock.forward(100)
        break_rows(cloud, *(cloud.open_session(device.id_group, start=clock.now + one) for one in range(30)))
        await watch.poll_for(60, every=10)
        cloud.end_session(session)
        watch.server.requests.clear()
        assert types(await watch.poll_for(100, every=10)) == ["session.ended"]
        assert watch.api_requests() <= 10 * 10


@pytest.mark.parametrize("start", ["now", "all"])
async def test_what_lies_behind_a_page_of_broken_rows_is_read(clock: Clock, tmp_path: Path, start: Any) -> None:
    """Such as a bulk edit leaves: a whole page of them, by any order."""
    cloud = simulated(clock, "updated-filter-ignored")
    cloud.add_device("BaceGo-1")
    history = cloud.add_history(250, first_start=clock.now - 300_000, spacing=1000, duration=600)
    broken = set(sorted(history)[100:200]) | set(history[150:])
    break_rows(cloud, *broken)
    async with watching(cloud, tmp_path / "b.db", clock, start=start) as watch:
        found = await watch.poll_for(7200, every=60)
        assert watch.list_poll.unreadable
    assert started(found) == (set(history) - broken if start == "all" else set())


async def test_a_list_without_stamps_is_not_read_to_its_end_at_every_poll(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.add_device("BaceGo-1")
    history = cloud.add_history(450, first_start=clock.now - 500_000, spacing=1000, duration=600)

    def unstamped(request: web.Request, answer: Any) -> Any:
        rows = answer.get("items", [answer]) if request.path.startswith(LIST) else []
        for row in rows:
            row["updated_at"] = None
        if "updated_at" in request.query_string and "filter" in request.query_string:
            answer["items"] = []
        return answer

    async with altered(cloud, tmp_path / "b.db", clock, start="all") as (between, watch):
        between.alter = unstamped
        assert started(await watch.poll()) == set(history)
        await watch.list_poll.poll()
        watch.server.requests.clear()
        for _ in range(10):
            clock.forward(10)
            await watch.list_poll.poll()
        assert watch.api_requests() <= 10 * 4


async def test_an_end_does_not_wait_for_sessions_that_never_become_ingested(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "updated-filter-ignored")
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        active = [cloud.open_session(device.id_group, start=clock.now - 1000 - one) for one in range(8)]
        await watch.list_poll.poll()
        stuck = [cloud.open_session(device.id_group, start=clock.now + 0.1 * one) for one in range(300)]
        for one in stuck:
            cloud.end_session(one, end=clock.now + 60)
        clock.forward(70)
        for _ in range(20):
            await watch.list_poll.poll()
            clock.forward(10)
        for one in active:
            cloud.end_session(one)
        for _ in range(2):
            clock.forward(10)
            await watch.list_poll.poll()
        known = await watch.journal.known(active)
        assert [one for one in known.values() if one.session.end is None] == []


def upside_down(request: web.Request, answer: Any) -> Any:
    if request.query.get("sort") == "-start":
        answer["items"].reverse()
    return answer


async def test_an_unsorted_list_with_broken_rows_leaves_some_of_the_budget(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "updated-filter-ignored")
    cloud.add_device("BaceGo-1")
    history = cloud.add_history(500, first_start=clock.now - 600_000, spacing=1000, duration=600)
    break_rows(cloud, *history[3::50])
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = upside_down
        await watch.poll_for(100, every=10)
        watch.server.requests.clear()
        for _ in range(60):
            clock.forward(10)
            await watch.list_poll.poll()
        assert watch.api_requests() / 60 <= 10


async def test_a_list_that_was_unsorted_once_is_believed_again(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "updated-filter-ignored")
    cloud.add_device("BaceGo-1")
    cloud.add_history(500, first_start=clock.now - 600_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll_for(300, every=10)
        between.alter = upside_down
        await watch.poll_for(10, every=10)
        between.alter = lambda _, answer: answer
        await watch.poll_for(600, every=10)
        watch.server.requests.clear()
        for _ in range(10):
            clock.forward(10)
            await watch.list_poll.poll()
        assert watch.api_requests() / 10 <= 3


@pytest.mark.parametrize("unfinished", [50, 60])
async def test_finished_sessions_have_their_turn_beside_many_that_never_become_ingested(
    clock: Clock, tmp_path: Path, unfinished: int
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    history = cloud.add_history(120, first_start=clock.now - 300_000, spacing=1000, duration=600)
    for _ in range(unfinished):
        cloud.open_session(device.id_group)
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        await watch.poll()
        gone = max(history)
        cloud.remove_session(gone)
        removed = [one for one in await watch.poll_for(7200) if one.event.type == "session.removed"]
    assert [one.event.session_id for one in removed] == [gone]


async def test_a_page_that_always_times_out_fails_the_backfill_and_no_poll(clock: Clock, tmp_path: Path) -> None:
    """A far page is a large OFFSET, which a database may take too long for."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(250, first_start=clock.now - 400_000, spacing=1000, duration=600)

    def far_away(request: web.Request, answer: Any) -> Any:
        whole = request.query.get("sort") == "id_data_session" and "filter" not in request.query_string
        return 504 if whole and int(request.query["page"]) > 1 else answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = far_away
        await watch.poll_for(7200, every=60)
        assert watch.list_poll.unreadable == ["data sessions, page 2"]
        session = cloud.open_session(device.id_group)
        watch.server.requests.clear()
        assert started(await watch.poll_for(600, every=10)) == {session}
        between.alter = lambda _, answer: answer
        await watch.poll_for(600, every=60)
        assert watch.list_poll.unreadable == []


async def test_ids_go_together_again_after_a_proxy_refused_long_queries_for_a_while(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        for _ in range(30):
            cloud.open_session(device.id_group)
        await watch.list_poll.poll()

        def no_long_query(request: web.Request, answer: Any) -> Any:
            return 502 if request.query_string.count("id_data_session") > 1 and "sort" not in request.query else answer

        between.alter = no_long_query
        clock.forward(61)
        await watch.list_poll.poll()
        between.alter = lambda _, answer: answer
        clock.forward(3601)
        await watch.list_poll.poll()
        clock.forward(61)
        watch.server.requests.clear()
        await watch.list_poll.poll()
        assert watch.api_requests() <= 6


@pytest.mark.parametrize("refused", ["-updated_at", "-start"])
async def test_a_sort_that_is_refused_is_one_that_is_not_honoured(clock: Clock, tmp_path: Path, refused: str) -> None:
    cloud = simulated(clock, "updated-filter-ignored")
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(30, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lambda request, answer: 422 if request.query.get("sort") == refused else answer
        await watch.poll_for(60, every=10)
        session = cloud.open_session(device.id_group)
        assert started(await watch.poll_for(60, every=10)) == {session}
