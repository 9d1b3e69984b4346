"""Many active data sessions in one request: few requests, and no point lost, twice, or under the wrong session."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bace_bridge.errors import CloudBadGateway
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.batches import MOST_IDS
from bace_bridge.polling.rules.windows import NO_SUCH_SESSION, Window
from bace_bridge.simulator.samples import Resolution
from tests.integration.altered_cloud import altered
from tests.integration.fleet import (
    IN,
    INTERVAL,
    POINTS,
    Fleet,
    alone,
    batches,
    check,
    fetched_alone,
    fetches,
    ids,
    published,
)
from tests.integration.polling_line import NOON, Clock, simulated, types, watching


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_sixty_sessions_cost_few_requests(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 60)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 20)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 4)
        assert {len(ids(one)) for one in fetches(watch, before)} == {20}
        assert len(fetches(watch, before)) == 3 * 3 + 6, "in one of four rounds the hour before is read, too"
        await check(watch, cloud, fleet.sessions)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


async def test_sessions_begin_in_a_batch_where_it_shows_all_that_they_count(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 60)
    empty = fleet.sessions[3]
    fleet.devices.append(cloud.add_device("BaceGo-long"))
    long = cloud.open_session(fleet.devices[-1].id_group, start=int(NOON) - 7200)
    fleet.sessions.append(long)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 1, quiet=[empty])
        assert len(fetches(watch)) < 30
        assert [one for one in fleet.sessions if alone(watch, one)] == [long]
        assert any(empty in ids(one) for one in fetches(watch))
        await check(watch, cloud, fleet.sessions)
        await fleet.goes_on(watch, 5)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


@pytest.mark.parametrize("changed", [False, True])
async def test_sessions_without_datapoints_are_fetched_alone_in_every_fifth_round_only(
    clock: Clock, tmp_path: Path, changed: bool
) -> None:
    """Gateways that were switched on without a sensor, or sessions that were reopened or labelled anew since."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 60)
    silent = fleet.sessions[20:]
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 1, quiet=silent)
        if changed:
            clock.forward(5)
            for one in silent[:20]:
                cloud.change(one, label="new")
            for one in silent[20:]:
                cloud.end_session(one)
            await watch.poll()
            clock.forward(5)
            for one in silent[20:]:
                cloud.change(one, end=None, is_ingestion_finished=False)
        await fleet.goes_on(watch, 19, quiet=silent)
        before = len(watch.server.requests)
        for _ in range(20):
            clock.forward(INTERVAL)
            for one in fleet.sessions[:20]:
                fleet.measure(one)
            await watch.list_poll.poll()
            await watch.fetch_round(checks=100)
        singles = fetched_alone(watch, silent, before)
        assert 20 * len(silent) / 6 < len(singles) <= len(silent) * (20 / 5 + 1), "and once to settle the hour before"
        assert len(batches(watch, before)) < 20 * 6
        await fleet.goes_on(watch, 2)
        await check(watch, cloud, fleet.sessions)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 4)
        assert not any(alone(watch, one, before) for one in fleet.sessions)
        await check(watch, cloud, fleet.sessions)


async def test_devices_that_stopped_hours_ago_are_fetched_alone_in_every_fifth_round_only(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 20)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 4)
        clock.forward(3 * 3600)
        await fleet.goes_on(watch, 20, quiet=fleet.sessions)
        before = len(watch.server.requests)
        for _ in range(20):
            clock.forward(INTERVAL)
            await watch.list_poll.poll()
            await watch.fetch_round(checks=100)
        assert 20 * 20 / 6.5 < len(fetched_alone(watch, fleet.sessions, before)) <= 20 * 20 / 5
        late = fleet.sessions[4]
        fleet.measure(late, at=NOON + 2000)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3, quiet=fleet.sessions)
        assert alone(watch, late, before)
        await check(watch, cloud, fleet.sessions)


async def test_of_sessions_without_datapoints_rows_of_a_moved_one_are_its_own(clock: Clock, tmp_path: Path) -> None:
    """Its rows are of the group of a session that has shown nothing either, and both are in one request."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 8)
    moved, spare = fleet.sessions[0], cloud.add_device("BaceGo-spare")
    cloud.move_session(moved, spare.id_group)
    fleet.devices.append(fleet.devices[0])
    fleet.sessions.append(cloud.open_session(fleet.devices[0].id_group))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 8, quiet=fleet.sessions)
        assert {*fleet.sessions} == {one for request in batches(watch) for one in ids(request)}
        await fleet.goes_on(watch, 8, quiet=fleet.sessions[1:])
        await check(watch, cloud, fleet.sessions)
        await fleet.goes_on(watch, 8)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


@pytest.mark.parametrize("later", [False, True])
async def test_rows_of_a_session_that_was_moved_before_it_was_seen_are_its_own(
    clock: Clock, tmp_path: Path, later: bool
) -> None:
    """The session that is active on its device now is in the same request, and neither was ever fetched."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 6)
    moved, spare = fleet.sessions[0], cloud.add_device("BaceGo-spare", datatypes=(6000,))
    clock.forward(20)
    fleet.measure(moved)
    cloud.move_session(moved, spare.id_group)
    if later:  # it has rows of both devices
        cloud.add_points(moved, spare.series[0].id_container_data_latest, [(clock.now - 1, 1.0)])
    fleet.devices.append(fleet.devices[0])
    fleet.sessions.append(cloud.open_session(fleet.devices[0].id_group))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 1, quiet=[moved])
        assert {*fleet.sessions} == {one for request in batches(watch) for one in ids(request)}
        await fleet.goes_on(watch, 1)
        await check(watch, cloud, fleet.sessions)
        await fleet.goes_on(watch, 5)
        assert alone(watch, moved)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


@pytest.mark.parametrize(
    "quirks",
    [
        ("header-limit 4096",),
        ("header-limit 4096", "per-page-max 50"),
        ("no-in-filter",),
        ("in-filter-ignored",),
        ("filters-ignored",),
        ("data-filters-ignored",),
        ("session-filter-ignored",),
        ("tie-shuffle", "per-page-max 50"),
        ("unstable-order", "per-page-max 100"),
        ("duplicate-points",),
        ("numbers-as-strings", "object-items"),
        ("int4", "bad-uuid-500"),
        ("error-every 7",),
    ],
    ids=" ".join,
)
async def test_each_point_once_under_its_session_whatever_the_cloud_is_like(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    fleet = Fleet(cloud, clock, 24)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 30)
        honoured = not {"no-in-filter", "in-filter-ignored", "data-filters-ignored", "session-filter-ignored"} & {
            *quirks
        }
        assert bool(batches(watch, len(watch.server.requests) // 2)) is honoured
        await fleet.ends(watch)
        # Where the time is ignored the answers are of whole days.
        await check(watch, cloud, fleet.sessions, width=86400.0 if "data-filters-ignored" in quirks else 0.0)


async def test_aggregates_that_grow_come_with_their_revisions(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=0.0)
    fleet = Fleet(cloud, clock, 12)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        await fleet.goes_on(watch, 10)
        assert len(batches(watch)) > 10
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions, width=60.0)


async def test_sparse_points_are_not_taken_for_samples(clock: Clock, tmp_path: Path) -> None:
    """A minute with one sample comes as that sample; a shorter interval shows more of a minute with several."""
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=900.0)
    fleet = Fleet(cloud, clock, 8, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        clock.forward(3000)
        for _ in range(6):
            clock.forward(60 - INTERVAL)
            await fleet.goes_on(watch, 1)
        await fleet.goes_on(watch, 6)
        assert batches(watch)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions, width=60.0)


async def test_of_many_pages_buckets_are_not_taken_for_samples(clock: Clock, tmp_path: Path) -> None:
    """The end of such an hour would come as samples."""
    cloud = simulated(clock, "per-page-max 10")
    cloud.resolution = Resolution(raw=900.0)
    fleet = Fleet(cloud, clock, 1, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        for every in (*([60.0] * 50), *([INTERVAL] * 30)):
            clock.forward(every - INTERVAL)
            await fleet.goes_on(watch, 1)
        clock.forward(2000)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions, width=60.0)


async def test_late_points_and_corrections_are_published(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        clock.forward(1000)
        await fleet.goes_on(watch, 30)
        before = len(watch.server.requests)
        soon, late, corrected = fleet.sessions[2:5]
        fleet.measure(soon, at=clock.now - 200)
        fleet.measure(soon, at=clock.now - 1 - 10 * INTERVAL)
        await fleet.goes_on(watch, 1)
        await check(watch, cloud, fleet.sessions)
        fleet.measure(late, at=clock.now - 330)
        await fleet.goes_on(watch, 5)
        await check(watch, cloud, fleet.sessions)
        assert not any(alone(watch, one, before) for one in fleet.sessions), "every fourth round looks further back"
        fleet.measure(late, at=clock.now - 700)
        fleet.measure(corrected, at=clock.now - 1 - 35 * INTERVAL)
        await fleet.goes_on(watch, 12)
        assert [alone(watch, one, before) for one in (soon, late, corrected)] == [0, 1, 0]
        clock.forward(3600)
        await fleet.goes_on(watch, 8)
        await check(watch, cloud, fleet.sessions)
        found = published(await watch.all_events())
        assert max(len(chain) for chain in found.values()) == 2


async def test_two_sessions_of_a_device_are_never_in_one_request(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    second = cloud.open_session(fleet.devices[0].id_group)
    fleet.devices.append(fleet.devices[0])
    fleet.sessions.append(second)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 10)
        assert batches(watch)
        asked = {one for request in batches(watch) for one in ids(request)}
        assert asked == {*fleet.sessions} - {fleet.sessions[0], second}
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


async def test_an_earlier_session_of_the_same_hour_and_device_gives_no_points(clock: Clock, tmp_path: Path) -> None:
    """A server that ignores `in` for a while would show them, under the same group."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        await fleet.ends(watch)
        earlier = list(fleet.sessions)
        clock.forward(5)
        fleet.sessions = [cloud.open_session(device.id_group) for device in fleet.devices]
        cloud.quirks = replace(cloud.quirks, in_filter_ignored=True)
        watch.batches = watch.made_anew()
        await fleet.goes_on(watch, 5)
        await check(watch, cloud, [*earlier, *fleet.sessions])


async def test_a_server_that_ignores_in_from_some_time_on_is_found_out_by_a_foreign_row(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        with capture_logs() as logs:
            await fleet.goes_on(watch, 5)
            cloud.quirks = replace(cloud.quirks, in_filter_ignored=True)
            other = Fleet(cloud, clock, 0)
            other.devices = [cloud.add_device("BaceGo-other", datatypes=(6000,))]
            other.sessions = [cloud.open_session(other.devices[0].id_group)]
            clock.forward(1)
            other.measure(other.sessions[0])
            before = len(watch.server.requests)
            await fleet.goes_on(watch, 5)
            assert len(batches(watch, before)) == 1
            cloud.quirks = replace(cloud.quirks, in_filter_ignored=False)
            clock.forward(3600)
            before = len(watch.server.requests)
            await fleet.goes_on(watch, 5)
            assert batches(watch, before)
        names = [one["event"] for one in logs]
        assert names.count("cloud.in_filter_not_honoured") == names.count("cloud.in_filter_honoured_again") == 1
        await fleet.ends(watch)
        await check(watch, cloud, [*fleet.sessions, *other.sessions])


async def test_a_server_that_ignores_in_from_some_time_on_is_found_out_by_a_row_of_an_earlier_session(
    clock: Clock, tmp_path: Path
) -> None:
    """All rows are of the groups that were asked for, and hours that come as aggregates are read as a whole."""
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=0.0)
    fleet = Fleet(cloud, clock, 10, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        await fleet.ends(watch)
        earlier = list(fleet.sessions)
        clock.forward(700)
        fleet.sessions = [cloud.open_session(device.id_group) for device in fleet.devices]
        await fleet.goes_on(watch, 3)
        assert batches(watch)
        cloud.quirks = replace(cloud.quirks, in_filter_ignored=True)
        await fleet.goes_on(watch, 9)
        await check(watch, cloud, [*earlier, *fleet.sessions], width=60.0)


async def test_a_server_that_ignores_the_time_from_some_time_on_is_found_out(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        cloud.quirks = replace(cloud.quirks, data_filters_ignored=True)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 5)
        assert len(batches(watch, before)) == 1


async def test_the_longer_a_round_takes_the_less_is_read_again(clock: Clock, tmp_path: Path) -> None:
    """Else a round that takes long has answers of two pages, and takes longer for that."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 38, series=5)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 24)
        before = len(watch.server.requests)
        for _ in range(4):
            for _ in range(4):
                clock.forward(INTERVAL)
                for session in fleet.sessions:
                    fleet.measure(session)
            await watch.list_poll.poll()
            await watch.fetch_round()
        assert max(len(ids(one)) for one in batches(watch, before)) == 19
        assert {dict(one.query)["page"] for one in batches(watch, before)} == {"1"}
        await check(watch, cloud, fleet.sessions)


async def test_the_size_that_passes_a_proxy_is_learned(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "header-limit 4096")
    fleet = Fleet(cloud, clock, 40)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 12)
        assert 7 <= watch.batches.points.size.ids < MOST_IDS
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 20)
        assert {one.status for one in fetches(watch, before)} == {200}
        clock.forward(3600)
        await fleet.goes_on(watch, 12)
        assert {one.status for one in fetches(watch, before)} == {200, 502}
        assert 7 <= watch.batches.points.size.ids < MOST_IDS
        await check(watch, cloud, fleet.sessions)


async def test_an_outage_makes_no_batch_smaller(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        size = watch.batches.points.size
        clock.forward(INTERVAL)
        due = await watch.journal.due_fetches(clock(), 100)
        (batch, *_) = (await watch.batches.plan(due, checks=0)).batches
        watch.server.faults.answer(POINTS, status=502, times=100)
        assert isinstance(await watch.batches.read_batch(batch), CloudBadGateway)
        assert watch.batches.points.size == size
        watch.server.faults.waiting.clear()
        assert await watch.batches.read_batch(batch) is None


async def test_batches_that_take_the_cloud_too_long_are_made_smaller(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)

    def is_slow(request: web.Request, answer: Any) -> Any:
        return 504 if request.path == POINTS and len(request.query.getall(IN, [])) > 4 else answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await fleet.goes_on(watch, 4)
        between.alter = is_slow
        for _ in range(12):
            clock.forward(INTERVAL)
            for session in fleet.sessions:
                fleet.measure(session)
            await watch.list_poll.poll()
            plan = await watch.batches.plan(await watch.journal.due_fetches(clock(), 100), checks=2)
            for batch in plan.batches:
                await watch.batches.read_batch(batch)
            for known in plan.singles:
                assert await watch.batches.alone(watch.fetch(known)) is None
        assert 3 <= watch.batches.points.size.ids <= 4
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3)
        assert batches(watch, before)
        await check(watch, cloud, fleet.sessions)


async def test_after_a_restart_what_was_fetched_together_still_is(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 12)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 30)
        watch.batches = watch.made_anew()
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 4)
        assert not any(alone(watch, one, before) for one in fleet.sessions)
        since = {dict(one.query)["filter[timestamp_seconds][gte]"] for one in batches(watch, before)}
        assert str(int(NOON)) not in since
        moved, spare = fleet.sessions[0], cloud.add_device("BaceGo-spare")
        clock.forward(1)
        cloud.move_session(moved, spare.id_group)
        watch.batches = watch.made_anew()
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 4)
        assert not any(moved in ids(one) for one in batches(watch, before))
        watch.batches = watch.made_anew()
        clock.forward(3 * 3600)
        for session in fleet.sessions:
            fleet.measure(session, at=clock.now - 5000)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 1)
        assert {*fleet.sessions} - {moved} <= {one for request in batches(watch, before) for one in ids(request)} | {
            one for one in fleet.sessions if alone(watch, one, before)
        }
        await fleet.goes_on(watch, 6)
        assert all(alone(watch, one, before) for one in fleet.sessions), "the hours between were never read"
        await check(watch, cloud, fleet.sessions)


async def test_a_session_that_was_moved_is_fetched_alone(clock: Clock, tmp_path: Path) -> None:
    """Its rows go on to be of the device that measured them, which may have another active data session."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    moved, spare = fleet.sessions[0], cloud.add_device("BaceGo-spare")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        clock.forward(1)
        cloud.move_session(moved, spare.id_group)
        fleet.devices.append(fleet.devices[0])
        fleet.sessions.append(cloud.open_session(fleet.devices[0].id_group))
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 10)
        assert batches(watch, before)
        assert not any(moved in ids(one) for one in batches(watch, before))
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


async def test_where_datapoints_may_not_be_read_any_more_each_session_waits(clock: Clock, tmp_path: Path) -> None:
    """What the store tells of a session does not make another batch of it, again and again."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 5)
        cloud.quirks = replace(cloud.quirks, forbidden=(POINTS,))
        await fleet.goes_on(watch, 2)
        assert not await watch.journal.due_fetches(clock(), 100)
        cloud.quirks = replace(cloud.quirks, forbidden=())
        clock.forward(600)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3)
        assert batches(watch, before)
        await check(watch, cloud, fleet.sessions)


@pytest.mark.parametrize("quirks", [(), ("series-truncated",)])
async def test_an_answer_of_a_hundred_series_is_split(clock: Clock, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    cloud = simulated(clock, *quirks)
    fleet = Fleet(cloud, clock, 7, series=20)
    few = [replace(device, series=device.series[:4]) for device in fleet.devices]
    many, fleet.devices = fleet.devices, few
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 4)
        assert max(len(ids(one)) for one in batches(watch)) == 7
        fleet.devices = many
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 1)
        assert [len(ids(one)) for one in batches(watch, before)] == [7, 4, 3]
        await fleet.goes_on(watch, 5)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 6)
        assert max(len(ids(one)) for one in batches(watch, before)) == 4
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


@pytest.mark.parametrize("how", ["500", "unreadable"])
async def test_a_broken_row_leaves_the_other_sessions_their_batches(clock: Clock, tmp_path: Path, how: str) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 12)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await fleet.goes_on(watch, 4)
        broken = fleet.sessions[5]
        stamp = clock.now + INTERVAL - 1
        series = {one.id_container_data_latest for one in fleet.devices[5].series}

        def breaks(request: web.Request, answer: Any) -> Any:
            for row in answer["items"] if request.path == POINTS else []:
                if row["id_container_data_latest"] in series and row["timestamp_seconds"] == stamp:
                    if how == "500":
                        return 500
                    row["timestamp_seconds"] = "soon"
            return answer

        between.alter = breaks
        await fleet.goes_on(watch, 3)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3)
        asked = {one for request in batches(watch, before) for one in ids(request)}
        assert asked == {*fleet.sessions} - {broken}
        found = {(session, stamp) for session, _, stamp in published(await watch.all_events())}
        newest = iso_utc(clock.now - 1)
        assert {(one, newest) in found for one in fleet.sessions if one != broken} == {True}
        between.alter = lambda _, answer: answer
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


async def test_what_a_batch_does_not_show_is_asked_for_alone(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    quiet = fleet.sessions[4]
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 4)
        clock.forward(4300)  # the next hour, when the one before is settled
        await fleet.goes_on(watch, 10, quiet=[quiet])
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 18, quiet=[quiet])
        assert alone(watch, quiet, before) == 3
        assert alone(watch, fleet.sessions[0], before) == 0
        fleet.measure(quiet, at=clock.now - 700)
        await fleet.goes_on(watch, 2, quiet=[quiet])
        await check(watch, cloud, fleet.sessions)


async def test_the_last_read_of_a_window_is_of_one_session(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        clock.forward(3500)
        await fleet.goes_on(watch, 12)
        for session in fleet.sessions:
            fleet.measure(session, at=NOON + 3590)
        clock.forward(400)
        await fleet.goes_on(watch, 25)
        for session in fleet.sessions:
            states = (await watch.journal.windows([session]))[session]
            assert states[Window(int(NOON), int(NOON) + 3600)].settled
            assert any(
                ("filter[id_data_session]", session) in one.query
                and ("filter[timestamp_seconds][gte]", str(int(NOON))) in one.query
                and one.at >= NOON + 4200
                for one in fetches(watch)
            )
        await check(watch, cloud, fleet.sessions)


async def test_sessions_that_show_nothing_do_not_hold_up_the_last_reads_of_others(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 24, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 6)
        clock.forward(4200)
        for _ in range(40):
            clock.forward(INTERVAL)
            await watch.list_poll.poll()
            await watch.fetch_round(checks=1)
        first = Window(int(NOON), int(NOON) + 3600)
        assert all([(await watch.journal.windows([one]))[one][first].settled for one in fleet.sessions])


@pytest.mark.parametrize("sessions", [2, 8])
async def test_what_was_measured_offline_is_published_while_new_points_come(
    clock: Clock, tmp_path: Path, sessions: int
) -> None:
    """Its windows are settled, and no fetch finds nothing new."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, sessions, series=1)
    offline = fleet.sessions[1]
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 4)
        for _ in range(12):
            clock.forward(600)
            await fleet.goes_on(watch, 3, quiet=[offline])
        for one in range(6):
            fleet.measure(offline, at=NOON + 2400 + 600 * one)
        await fleet.goes_on(watch, 12)
        await check(watch, cloud, fleet.sessions)
        fleet.measure(offline, at=NOON + 2500)
        clock.forward(3600)
        before = len(fetches(watch))
        await fleet.goes_on(watch, 12)
        await check(watch, cloud, fleet.sessions)
        assert len(fetches(watch)) - before < 60


async def test_rows_that_only_batches_show_are_published_under_no_session(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 10)
    group = fleet.devices[3].id_group

    def adds(request: web.Request, answer: Any) -> Any:
        if IN in request.query and (like := [row for row in answer["items"] if row["id_group"] == group]):
            answer["items"].append({**like[-1], "id_container_data_latest": "of nobody"})
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await fleet.goes_on(watch, 1)
        between.alter = adds
        await fleet.goes_on(watch, 12)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3)
        assert [bool(alone(watch, one, before)) for one in fleet.sessions] == [one == 3 for one in range(10)]
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


def as_number(text: str) -> int:
    return int(text.replace("-", ""), 16) % 10**9


def with_group_numbers(_: web.Request, answer: Any) -> Any:
    if isinstance(answer, list):
        return [with_group_numbers(_, one) for one in answer]
    if not isinstance(answer, dict):
        return answer
    return {
        name: as_number(value) if name == "id_group" else with_group_numbers(_, value) for name, value in answer.items()
    }


def with_figures(**figures: int) -> Callable[[web.Request, Any], Any]:
    def alter(request: web.Request, answer: Any) -> Any:
        return {**answer, "_meta": {**answer["_meta"], **figures}} if request.path == POINTS else answer

    return alter


@pytest.mark.parametrize(
    "alter",
    [
        with_group_numbers,
        with_figures(totalCount=10**9),
        with_figures(totalCount=0, pageCount=0, currentPage=0, perPage=0),
    ],
)
async def test_odd_figures_and_groups_stop_no_batches(
    clock: Clock, tmp_path: Path, alter: Callable[[web.Request, Any], Any]
) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 8)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        await fleet.goes_on(watch, 3)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3)
        assert not any(alone(watch, one, before) for one in fleet.sessions)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


async def test_a_gateway_that_breaks_on_each_batch_is_no_outage(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 8)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = lambda request, answer: 502 if IN in request.query else answer
        await fleet.goes_on(watch, 3)
        await check(watch, cloud, fleet.sessions)


async def test_a_device_whose_rows_name_no_group_makes_no_other_one_be_fetched_alone(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 12)
    odd = fleet.devices[4].id_group

    def alter(request: web.Request, answer: Any) -> Any:
        for row in answer["items"] if request.path == POINTS else ():
            row["id_group"] = None if row["id_group"] == odd else row["id_group"]
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        await fleet.goes_on(watch, 3)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 10)
        assert [bool(alone(watch, one, before)) for one in fleet.sessions] == [one == 4 for one in range(12)]
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)


async def test_a_series_that_begins_later_is_published_and_stays_in_the_batch(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 8, series=6)
    every = list(fleet.devices)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        for count in (1, 2, 3, 4, 5, 6):
            fleet.devices = [replace(device, series=device.series[:count]) for device in every]
            await fleet.goes_on(watch, 3)
        before = len(watch.server.requests)
        await fleet.goes_on(watch, 3)
        assert {one for request in batches(watch, before) for one in ids(request)} == {*fleet.sessions}
        await check(watch, cloud, fleet.sessions)


@pytest.mark.parametrize("sessions", [1, 8])
async def test_a_cloud_that_shows_only_first_pages_is_asked_for_less(
    clock: Clock, tmp_path: Path, sessions: int
) -> None:
    """It is no outage: that would hold up the other sessions, and end never."""
    cloud = simulated(clock, "per-page-max 20")
    fleet = Fleet(cloud, clock, sessions, series=1)
    first: dict[Any, Any] = {}

    def alter(request: web.Request, answer: Any) -> Any:
        asked = tuple(one for one in request.query.items() if one[0] != "page")
        if request.path == POINTS and request.query.get("page", "1") == "1":
            first[asked] = answer
        return first.get(asked, answer)

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        await fleet.goes_on(watch, 30)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)
        assert types(await watch.all_events()).count("session.csv_ready") == sessions


async def test_a_hiccup_makes_no_rows_of_a_moved_session_those_of_another(clock: Clock, tmp_path: Path) -> None:
    """Its rows are of another group than it is: whether they are its own has to be asked, and was not answered."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 1, series=1)
    (moved,) = fleet.sessions

    def breaks(request: web.Request, answer: Any) -> Any:
        as_canary = request.path == POINTS and request.query.get("filter[id_data_session]") == NO_SUCH_SESSION
        return 500 if as_canary and request.query["filter[timestamp_seconds][gte]"] != "0" else answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await fleet.goes_on(watch, 2)
        clock.forward(1)
        cloud.move_session(moved, cloud.add_device("BaceGo-spare").id_group)
        fleet.measure(moved)
        between.alter = breaks
        await fleet.goes_on(watch, 1)
        assert (await watch.journal.known([moved]))[moved].failed_fetches == 1
        between.alter = lambda _, answer: answer
        clock.forward(60)
        await fleet.ends(watch)
        await check(watch, cloud, fleet.sessions)
