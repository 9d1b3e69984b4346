"""What a real server did to the list of data sessions, and what must come of it."""

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
from tests.integration.polling_line import Clock, points, simulated, types, watching

LIST = "/api/v2/data-session"
STRATEGIES = [(), ("updated-filter-ignored",), ("filters-ignored",), ("filters-ignored", "sort-ignored")]
BY_STRATEGY = pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda one: "+".join(one) or "delta")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(events: Sequence[LoggedEvent]) -> set[str | None]:
    return {one.event.session_id for one in events if one.event.type == "session.started"}


@BY_STRATEGY
@pytest.mark.parametrize("broken", [(300, 299), (299,), (300, 150, 149), (0,)], ids=str)
async def test_history_is_never_reported_whatever_of_it_cannot_be_read(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], broken: tuple[int, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    history = cloud.add_history(301, first_start=clock.now - 400_000, spacing=1000, duration=600)
    active = cloud.open_session(device.id_group, start=clock.now - 390_000)
    cloud.quirks = replace(cloud.quirks, broken_rows=tuple(history[one] for one in broken))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        found = await watch.poll_for(400, every=10)
        cloud.quirks = replace(cloud.quirks, broken_rows=())
        found += await watch.poll_for(900, every=30)
    assert started(found) == {active}


@pytest.mark.parametrize("quirks", [("sort-ignored",), ("sort-ignored", "tie-shuffle")])
async def test_history_is_not_reported_where_the_list_is_not_sorted(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(230, first_start=clock.now - 400_000, spacing=1000, duration=600)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert await watch.poll_for(300, every=10) == []
        session = cloud.open_session(device.id_group)
        assert started(await watch.poll_for(300, every=10)) == {session}


@BY_STRATEGY
async def test_an_empty_cloud_has_no_history(clock: Clock, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group, start=clock.now - 5000, created_at=clock.now - 5000)
        cloud.end_session(session, end=clock.now - 4000)
        assert started(await watch.poll_for(120, every=10)) == {session}


@pytest.mark.parametrize(
    "change", [{"start": "soon"}, {"id_data_session": None}, {"id_group": ["g"]}], ids=lambda one: next(iter(one))
)
@pytest.mark.parametrize("since", ["the first start", "later"])
async def test_a_list_of_which_nothing_can_be_read_is_a_failure_with_its_reason(
    clock: Clock, tmp_path: Path, change: dict[str, Any], since: str
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(30, first_start=clock.now - 40_000, spacing=1000, duration=600)

    def alter(request: web.Request, answer: Any) -> Any:
        if request.path == LIST:
            for row in answer["items"]:
                row.update(change)
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        if since == "later":
            await watch.poll()
        between.alter = alter
        clock.forward(10)
        cloud.open_session(device.id_group)
        before = watch.api_requests()
        with pytest.raises(UnexpectedReply, match=f"no data session can be read: .*{next(iter(change))}"):
            await watch.poll()
        assert watch.api_requests() - before <= 60
        between.alter = lambda _, answer: answer
        clock.forward(10)
        assert types(await watch.poll_for(400, every=10)) == ["session.started"]


@pytest.mark.parametrize("quirks", [("updated-filter-ignored",), ("filters-ignored",)], ids=lambda one: one[0])
async def test_rows_behind_a_broken_row_are_read_in_the_full_scan(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    devices = [cloud.add_device(f"BaceGo-{number}") for number in range(9)]
    cloud.add_history(3, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        sessions = [cloud.open_session(one.id_group, start=clock.now - 5 * at) for at, one in enumerate(devices)]
        cloud.quirks = replace(cloud.quirks, broken_rows=(sessions[0], sessions[4]))
        assert started(await watch.poll_for(30, every=10)) == set(sessions) - {sessions[0], sessions[4]}
        assert watch.list_poll.strategy == "full scan"


async def test_a_broken_row_at_the_head_of_a_first_start_leaves_the_strategy_as_it_is(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    cloud.add_device("BaceGo-1")
    history = cloud.add_history(301, first_start=clock.now - 400_000, spacing=1000, duration=600)
    cloud.quirks = replace(cloud.quirks, broken_rows=(history[-1],))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        assert watch.list_poll.strategy == "delta"


@BY_STRATEGY
async def test_a_row_that_appears_with_an_old_stamp_is_found_by_the_backfill(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    """Late replication, or an import: it is below the bound of every list of updates."""
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(30, first_start=clock.now - 900_000, spacing=1000, duration=600)
    other = cloud.open_session(device.id_group)
    hidden = cloud.open_session(device.id_group, start=clock.now - 900)

    def alter(request: web.Request, answer: Any) -> Any:
        if request.path == LIST:
            answer["items"] = [row for row in answer["items"] if row["id_data_session"] != hidden]
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        assert started(await watch.poll()) == {other}
        clock.forward(900)
        cloud.change(other, label="the watermark moves on")
        await watch.poll()
        between.alter = lambda _, answer: answer
        assert started(await watch.poll_for(3700, every=60)) == {hidden}


@BY_STRATEGY
async def test_devices_that_are_added_are_looked_up_at_once_and_without_their_history(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    first, second = cloud.add_device("BaceGo-1"), cloud.add_device("BaceGo-2")
    async with watching(cloud, tmp_path / "b.db", clock, groups=["BaceGo-1"]) as watch:
        await watch.poll()
        clock.forward(100)
        of_first = cloud.open_session(first.id_group)
        over, active = cloud.open_session(second.id_group), cloud.open_session(second.id_group)
        clock.forward(60)
        cloud.end_session(over)
        assert started(await watch.poll_for(60, every=10)) == {of_first}
        clock.forward(1000)
        cloud.change(of_first, label="the watermark moves on")
        await watch.poll()
    async with watching(cloud, tmp_path / "b.db", clock, groups=["BaceGo-1", second.id_group]) as watch:
        clock.forward(10)
        assert started(await watch.poll()) == {active}
        assert started(await watch.poll_for(3700, every=60)) == set()


async def test_a_stale_answer_with_the_same_stamp_is_asked_once_more(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        clock.forward(30)
        cloud.end_session(session)
        assert types(await watch.poll()) == ["session.started", "session.ended"]

        def stale(request: web.Request, answer: Any) -> Any:
            for row in answer.get("items", []) if request.path == LIST else []:
                row["end"] = None
            return answer

        between.alter = stale
        assert types(await watch.poll_for(60, every=10)) == []
        between.alter = lambda _, answer: answer
        assert types(await watch.poll_for(60, every=10)) == []
        cloud.change(session, end=None, is_ingestion_finished=False)
        assert types(await watch.poll_for(10, every=10)) == ["session.reopened"]


async def test_a_change_within_the_second_of_the_last_one_is_believed(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        assert types(await watch.poll()) == ["session.started"]
        cloud.end_session(session)
        assert types(await watch.poll()) == ["session.ended"]


@pytest.mark.parametrize("stamp", ["the same", "an older one", "none"])
async def test_a_session_twice_in_one_page_is_one_session(clock: Clock, tmp_path: Path, stamp: str) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")

    def twice(request: web.Request, answer: Any) -> Any:
        rows = answer.get("items", []) if request.path == LIST else []
        for row in list(rows):
            ghost = row | {"end": None, "label": "Ghost"}
            if stamp != "the same":
                ghost["updated_at"] = None if stamp == "none" else row["updated_at"] - 5
            rows.append(ghost)
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        between.alter = twice
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        found = await watch.poll_for(60, every=5)
        cloud.end_session(session)
        found += await watch.poll_for(120, every=5)
        assert types(found) == ["session.started", "session.ended"]


@pytest.mark.parametrize("quirks", [(), ("filters-ignored",)], ids=["delta", "full scan"])
async def test_a_cloud_that_has_nothing_for_a_while_removes_nothing(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")

    def maintenance(request: web.Request, answer: Any) -> Any:
        if request.path == f"{LIST}/view":
            return 404
        return answer | {"items": [], "_meta": {"totalCount": 0, "pageCount": 0, "currentPage": 1}}

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        sessions = {cloud.open_session(device.id_group) for _ in range(3)}
        assert started(await watch.poll()) == sessions
        clock.forward(70)
        between.alter = maintenance
        assert types(await watch.poll_for(240, every=10)) == []
        between.alter = lambda _, answer: answer
        assert types(await watch.poll_for(400, every=10)) == []


@pytest.mark.parametrize("status", [403, 500, 502, 503])
async def test_only_404_and_410_say_that_a_session_is_gone(clock: Clock, tmp_path: Path, status: int) -> None:
    cloud = simulated(clock, "filters-ignored")
    device = cloud.add_device("BaceGo-1")
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        session = cloud.open_session(device.id_group)
        await watch.poll()
        cloud.open_session(device.id_group)
        between.alter = lambda request, answer: status if request.path == f"{LIST}/view" else answer
        for _ in range(30):
            clock.forward(60)
            try:
                assert "session.removed" not in types(await watch.poll())
            except CloudError:
                continue
        between.alter = lambda _, answer: answer
        cloud.remove_session(session)
        assert "session.removed" in types(await watch.poll_for(900))


@pytest.mark.parametrize("when", ["always", "until the first update"])
async def test_sessions_without_updated_at_are_reported_in_time(clock: Clock, tmp_path: Path, when: str) -> None:
    """No list of updates shows them: `null >= x` is not true."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    known: set[str] = set()

    def unstamped(request: web.Request, answer: Any) -> Any:
        rows = answer.get("items", [answer])
        for row in rows:
            if when == "always" or row.get("end") is None:
                row["updated_at"] = None
        if "updated_at" in request.query_string and "filter" in request.query_string:
            answer["items"] = [row for row in rows if row["updated_at"] is not None]
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = unstamped
        known.add(cloud.open_session(device.id_group))
        assert started(await watch.poll()) == known
        clock.forward(300)
        later = cloud.open_session(device.id_group)
        assert started(await watch.poll_for(30, every=10)) == {later}
        cloud.end_session(later)
        assert "session.ended" in types(await watch.poll_for(130, every=10))


async def test_what_a_first_start_knows_is_kept_though_the_poll_fails_later(clock: Clock, tmp_path: Path) -> None:
    """A session that opens and closes while the first polls fail is reported."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(30, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lambda request, answer: 503 if "filter" in request.query_string else answer
        with pytest.raises(CloudError):
            await watch.poll()
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        clock.forward(60)
        cloud.end_session(session)
        between.alter = lambda _, answer: answer
        assert started(await watch.poll()) == {session}


async def test_names_of_unreadable_records_are_logged_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "filters-ignored")
    cloud.add_device("BaceGo-1")
    history = cloud.add_history(150, first_start=clock.now - 300_000, spacing=1000, duration=600)
    cloud.quirks = replace(cloud.quirks, broken_rows=(history[70], history[71], history[149]))
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll_for(1200, every=10)
    named = [one["record"] for one in logs if one["event"] == "cloud.record_unreadable"]
    assert len(named) == len(set(named)) <= 3


@pytest.mark.parametrize("quirks", [("filters-ignored",), ("filters-ignored", "sort-ignored")], ids="+".join)
async def test_smaller_pages_than_asked_for_hide_no_row_behind_a_broken_one(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks, "per-page-max 20")
    cloud.add_device("BaceGo-1")
    history = cloud.add_history(150, first_start=clock.now - 300_000, spacing=1000, duration=600)
    broken = sorted(history)[25]
    cloud.quirks = replace(cloud.quirks, broken_rows=(broken,))
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        assert started(await watch.poll_for(1800, every=30)) == set(history) - {broken}


async def test_one_row_with_a_stamp_ahead_does_not_blind_a_first_start(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    history = cloud.add_history(5, first_start=clock.now - 40_000, spacing=1000, duration=600)

    def ahead(request: web.Request, answer: Any) -> Any:
        for row in answer.get("items", []) if request.path == LIST else []:
            if row["id_data_session"] == history[2]:
                row["updated_at"] = clock.now + 20 * 3600
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = ahead
        await watch.poll()
        clock.forward(60)
        session = cloud.open_session(device.id_group)
        clock.forward(5)
        cloud.end_session(session)
        assert started(await watch.poll_for(30, every=10)) == {session}


async def test_pages_without_figures_are_read_to_the_end(clock: Clock, tmp_path: Path) -> None:
    """A proxy may strip the headers, and a serializer leave `_meta` out."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")

    def bare(_: web.Request, answer: Any) -> Any:
        answer.pop("_meta", None)
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        between.alter = bare
        clock.forward(10)
        sessions = {cloud.open_session(device.id_group) for _ in range(150)}
        assert started(await watch.poll_for(100, every=10)) == sessions


async def test_an_active_row_that_cannot_be_read_costs_few_requests_however_often_it_changes(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    bad = ""

    def odd(request: web.Request, answer: Any) -> Any:
        for row in answer.get("items", []) if request.path == LIST else []:
            if row["id_data_session"] == bad:
                row["start"] = "soon"
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = odd
        await watch.poll()
        clock.forward(10)
        bad = cloud.open_session(device.id_group)
        cloud.open_session(device.id_group)
        for number in range(60):
            clock.forward(10)
            cloud.change(bad, label=f"take {number}")
            await watch.list_poll.poll()
        watch.server.requests.clear()
        for number in range(10):
            clock.forward(10)
            cloud.change(bad, label=f"again {number}")
            await watch.list_poll.poll()
        assert watch.api_requests() <= 10 * 6
        assert len(watch.list_poll.unreadable) <= 2


async def test_one_query_that_always_fails_stops_no_other(clock: Clock, tmp_path: Path) -> None:
    """`filter[end]=NULL` without an index times out on a large account."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    long_ago = cloud.open_session(device.id_group, start=clock.now - 90_000)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lambda request, answer: 504 if "NULL" in request.query_string else answer
        assert started(await watch.poll()) == {long_ago}
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        assert started(await watch.poll_for(20, every=10)) == {session}


async def test_a_refusal_that_passes_does_not_demote_the_strategy_for_long(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.open_session(cloud.add_device("BaceGo-1").id_group)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        between.alter = lambda request, answer: 404 if "updated_at" in request.query_string else answer
        await watch.poll_for(10, every=10)
        assert watch.list_poll.strategy == "full scan"
        between.alter = lambda _, answer: answer
        await watch.poll_for(3700, every=60)
        assert watch.list_poll.strategy == "delta"


async def test_what_was_learned_of_the_server_is_known_after_a_restart(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "updated-filter-ignored")
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(3, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
    clock.forward(10)
    session = cloud.open_session(device.id_group)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert started(await watch.poll()) == {session}
        assert watch.list_poll.strategy == "full scan"
        assert not any("updated_at" in name for seen in watch.server.requests for name, _ in seen.query)


async def test_two_answers_that_always_differ_are_asked_about_now_and_then(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")

    def cached(request: web.Request, answer: Any) -> Any:
        for row in answer.get("items", []) if request.path == LIST else []:
            row["label"] = "as the list's cache has it"
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = cached
        await watch.poll()
        for _ in range(10):
            cloud.open_session(device.id_group)
        await watch.poll_for(30, every=10)
        watch.server.requests.clear()
        for _ in range(10):
            clock.forward(10)
            await watch.list_poll.poll()
        assert sum(seen.path == f"{LIST}/view" for seen in watch.server.requests) <= 10
        assert "session.updated" not in types((await watch.all_events())[-1:])


async def test_points_that_a_replica_does_not_have_yet_come_before_the_csv(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    lags = False

    def lagging(request: web.Request, answer: Any) -> Any:
        if lags and "downsampled" in request.path:
            answer["items"] = answer["items"][:50]
            answer["_meta"]["totalCount"] = len(answer["items"])
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lagging
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        cloud.add_points(session, series, [(clock.now + 0.1 * one, 1.0) for one in range(80)])
        clock.forward(20)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        lags = True
        found = await watch.poll()
        assert types(found) == ["session.datapoints", "session.ended"], "the alarm does not wait"
        lags = False
        found += await watch.poll_for(60, every=10)
    assert types(found) == ["session.datapoints", "session.ended", "session.datapoints", "session.csv_ready"]
    assert len(points(found)) == 80


async def test_what_was_asked_once_more_in_a_poll_that_failed_is_asked_again(clock: Clock, tmp_path: Path) -> None:
    """Ended and ingested within the second of the last change, and the cloud goes away in the middle of asking."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    views = 0

    def fails_at_the_second_view(request: web.Request, answer: Any) -> Any:
        nonlocal views
        views += request.path == f"{LIST}/view"
        return 503 if views >= 2 else answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        sessions = [cloud.open_session(device.id_group) for _ in range(3)]
        await watch.poll()
        for one in sessions:
            cloud.end_session(one)
            cloud.finish_ingestion(one)
        between.alter = fails_at_the_second_view
        with pytest.raises(CloudError):
            await watch.poll()
        between.alter = lambda _, answer: answer
        assert types(await watch.poll_for(30, every=5)).count("session.csv_ready") == 3


async def test_a_head_that_was_read_in_part_is_read_to_its_end(clock: Clock, tmp_path: Path) -> None:
    """Its first page shows nothing new the second time, and new sessions are on the second."""
    cloud = simulated(clock, "updated-filter-ignored")
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(3, first_start=clock.now - 40_000, spacing=1000, duration=600)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll_for(100, every=10)
        sessions = {cloud.open_session(device.id_group, start=clock.now + 0.01 * one) for one in range(150)}
        between.alter = lambda request, answer: 503 if request.query.get("page") == "2" else answer
        with pytest.raises(CloudError):
            await watch.list_poll.poll()
        between.alter = lambda request, answer: answer if request.query.get("sort") != "id_data_session" else 503
        with suppress(CloudError):  # of the backfill, which would find them, too
            await watch.list_poll.poll()
        assert started(await watch.all_events()) == sessions


async def test_devices_are_added_by_the_clouds_clock_also_right_after_a_restart(clock: Clock, tmp_path: Path) -> None:
    """Ours is an hour ahead; a session that began and ended after the device was added is no history."""
    cloud = simulated(clock)
    cloud.add_device("BaceGo-1")
    second = cloud.add_device("BaceGo-2")
    ours = Clock(clock.now + 3600)
    async with watching(cloud, tmp_path / "b.db", ours, groups=["BaceGo-1"]) as watch:
        await watch.poll()
    async with watching(cloud, tmp_path / "b.db", ours, groups=["BaceGo-1", "BaceGo-2"]) as watch:
        await watch.poll()
        for one in (clock, ours):
            one.forward(60)
        session = cloud.open_session(second.id_group)
        for one in (clock, ours):
            one.forward(60)
        cloud.end_session(session)
        assert started(await watch.poll()) == {session}


async def test_rows_that_are_updated_while_the_list_is_read_do_not_look_like_another_order(
    clock: Clock, tmp_path: Path
) -> None:
    """Each that comes into the list moves the ones behind it, so that the next page begins with rows seen before."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    old = sorted(cloud.open_session(device.id_group) for _ in range(20))
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll_for(300, every=10)
        new = {cloud.open_session(device.id_group) for _ in range(300)}

        def alter(request: web.Request, answer: Any) -> Any:
            if request.query.get("page") == "1" and "filter[updated_at][gte]" in request.query:
                for one in old[:3]:
                    cloud.change(one, label="updated meanwhile")
            return answer

        between.alter = alter
        await watch.list_poll.poll()
        assert watch.list_poll.strategy == "delta"
        assert started(await watch.all_events()) >= new
