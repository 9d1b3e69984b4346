from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from bace_bridge.errors import StoreError
from bace_bridge.simulator.samples import Resolution
from bace_bridge.store.journal import Journal
from tests.integration.polling_line import Clock, data, points, simulated, types, watching

STRATEGIES = [(), ("filters-ignored",), ("updated-filter-ignored",)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
async def test_a_session_travels_from_start_to_csv(clock: Clock, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1", datatypes=(6000,))
    cloud.add_history(150, first_start=clock.now - 90_000, spacing=500, duration=300)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert types(await watch.poll()) == []
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        series = device.series[0].id_container_data_latest
        cloud.add_points(session, series, [(clock.now + one, 60.0 + one) for one in range(5)])
        reported = await watch.poll()
        assert types(reported) == ["session.started", "session.datapoints"]
        assert data(reported[0])["device"] == {"id": device.id_group, "label": "BaceGo-1"}
        assert [point["avg"] for point in points(reported)] == [60, 61, 62, 63, 64]
        assert {point["revision"] for point in points(reported)} == {0}

        clock.forward(20)
        assert types(await watch.poll()) == []
        cloud.add_points(session, series, [(clock.now, 70.0)])
        clock.forward(20)
        cloud.end_session(session)
        reported = await watch.poll()
        assert types(reported) == ["session.datapoints", "session.ended"]

        cloud.add_points(session, series, [(clock.now - 5, 71.0)])
        clock.forward(60)
        cloud.finish_ingestion(session)
        reported = await watch.poll()
        assert types(reported) == ["session.datapoints", "session.csv_ready"]
        assert data(reported[1])["csv"]["url"].endswith(f"/api/v2/data-session/{session}/download-csv")
        assert data(reported[1])["csv"]["revision"] == 0
        for _ in range(5):
            clock.forward(60)
            assert types(await watch.poll()) == []


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
async def test_a_session_that_opened_and_closed_between_two_polls(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(1)
        session = cloud.open_session(device.id_group)
        cloud.add_points(session, device.series[0].id_container_data_latest, [(clock.now + 1, 60.0)])
        clock.forward(3)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        reported = await watch.poll()
    assert types(reported) == ["session.started", "session.datapoints", "session.ended", "session.csv_ready"]


async def test_a_session_recorded_offline_is_reported_days_later(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.open_session(device.id_group)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert types(await watch.poll()) == ["session.started"]
        clock.forward(3 * 86400)
        start = int(clock.now - 2.5 * 86400)
        session = cloud.open_session(device.id_group, start=start, created_at=int(clock.now))
        cloud.add_points(
            session, device.series[0].id_container_data_latest, [(start + 60.0, 1.0), (start + 7300.0, 2.0)]
        )
        cloud.end_session(session, end=start + 7200)
        cloud.finish_ingestion(session)
        reported = [one for one in await watch.poll() if one.event.session_id == session]
    assert types(reported) == [
        "session.started",
        "session.datapoints",
        "session.datapoints",
        "session.ended",
        "session.csv_ready",
    ]
    assert len(points(reported)) == 2


async def test_history_is_not_reported_and_active_sessions_are(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    old = cloud.open_session(device.id_group, start=int(clock.now - 40 * 86400), created_at=int(clock.now - 40 * 86400))
    cloud.add_history(3000, first_start=clock.now - 3_000_000, spacing=900, duration=300)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        reported = await watch.poll()
        assert [(one.event.type, one.event.session_id) for one in reported] == [("session.started", old)]
        assert watch.api_requests() < 12
        cloud_requests = watch.api_requests()
        clock.forward(10)
        await watch.list_poll.poll()
        assert watch.api_requests() - cloud_requests == 1


async def test_everything_that_can_change_is_reported_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        steps: list[tuple[Callable[[], object], list[str]]] = [
            (lambda: None, ["session.started"]),
            (lambda: cloud.change(session, label="Night"), ["session.updated"]),
            (
                lambda: cloud.change(session, id_person="4c1c81ca-0000-0000-0000-000000000001"),
                ["session.updated"],
            ),
            (lambda: cloud.end_session(session), ["session.ended"]),
            (lambda: cloud.change(session, end=None, is_ingestion_finished=False), ["session.reopened"]),
            (lambda: cloud.end_session(session), ["session.ended"]),
            (lambda: cloud.finish_ingestion(session), ["session.csv_ready"]),
            (lambda: cloud.change(session, archived_at=1_700_000_000, is_archived=True), []),
            (
                lambda: cloud.add_points(session, device.series[0].id_container_data_latest, [(clock.now, 3.0)]),
                ["session.datapoints", "session.csv_ready"],
            ),
        ]
        for change, expected in steps:
            clock.forward(61)
            change()
            assert types(await watch.poll()) == expected
        cloud.remove_session(session)
        assert types(await watch.poll_for(1200)) == ["session.removed"]
        ids = [one.event.id for one in await watch.all_events()]
        assert len(ids) == len(set(ids))
        assert not any("." in one for one in ids)


async def test_changed_points_are_reported_with_the_next_revision(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=0)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        series = device.series[0].id_container_data_latest
        seen = []
        for value in (1.0, 2.0, 3.0):
            clock.forward(15)
            cloud.add_points(session, series, [(clock.now - 10 + value, value)])
            seen += [(point["count"], point["max"], point["revision"]) for point in points(await watch.poll())]
    assert [count for count, _, _ in seen][:1] == [1]
    assert seen[-1][1] == 3.0


async def test_a_restart_goes_on_where_it_was(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    session = cloud.open_session(device.id_group)
    series = device.series[0].id_container_data_latest
    cloud.add_points(session, series, [(clock.now + one, 1.0) for one in range(10)])
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert types(await watch.poll()) == ["session.started", "session.datapoints"]
    clock.forward(100)
    cloud.end_session(session)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert types(await watch.poll()) == ["session.ended"]
        assert [seen.path for seen in watch.server.requests if "token" in seen.path] == []


async def test_a_long_silent_session_costs_few_requests(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    start = int(clock.now - 400 * 86400)
    session = cloud.open_session(device.id_group, start=start, created_at=start)
    series = device.series[0].id_container_data_latest
    cloud.add_points(session, series, [(start + 100.0, 1.0), (clock.now - 30, 2.0)])
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        reported = await watch.poll()
        assert len(points(reported)) == 2
        before = watch.api_requests()
        for _ in range(4):
            clock.forward(15)
            await watch.poll()
        assert watch.api_requests() - before <= 4 * 5


async def test_finest_reads_down_to_raw_points(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=900.0)
    device = cloud.add_device("BaceGo-1")
    session = cloud.open_session(device.id_group, start=int(clock.now - 3600))
    series = device.series[0].id_container_data_latest
    samples = [(clock.now - 3600 + 10 * one, float(one)) for one in range(360)]
    cloud.add_points(session, series, samples)
    async with watching(cloud, tmp_path / "b.db", clock, resolution="finest") as watch:
        reported = await watch.poll()
        assert sorted(point["avg"] for point in points(reported)) == [float(one) for one in range(360)]
        clock.forward(60)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        assert types(await watch.poll()) == ["session.ended", "session.csv_ready"]


async def test_a_point_from_before_the_start_is_corrected_before_the_csv(clock: Clock, tmp_path: Path) -> None:
    """The session starts on the hour, so the point lies in a window of its own that ends where the session begins."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group, start=clock.now)
        await watch.poll()
        clock.forward(15)
        before = clock.now - 45
        cloud.add_points(session, series, [(before, 1.0)])
        reported = points(await watch.poll())
        clock.forward(15)
        cloud.add_points(session, series, [(before, 2.0)])
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        reported += points(await watch.poll())
        assert types(await watch.all_events())[-2:] == ["session.ended", "session.csv_ready"]
    assert [(one["avg"], one["revision"]) for one in reported] == [(1.0, 0), (2.0, 1)]


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
async def test_the_oldest_session_of_the_list_is_removed_when_it_is_over(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        await watch.poll()
        clock.forward(900)
        cloud.open_session(device.id_group)
        for _ in range(2):
            await watch.poll()
            clock.forward(10)
        cloud.remove_session(session)
        reported = await watch.poll_for(1200)
    assert [(one.event.type, one.event.session_id) for one in reported] == [("session.removed", session)]


@pytest.mark.parametrize("back", [4000, 90_000])
async def test_points_that_are_added_while_a_session_is_read_are_published_before_its_csv(
    clock: Clock, tmp_path: Path, back: float
) -> None:
    """The row with the new count comes after the reading has begun: that reading is not the complete one any more."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        session = cloud.open_session(device.id_group, start=clock.now - 900)
        cloud.add_points(session, series, [(clock.now - 800, 1.0)])
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        await watch.list_poll.poll()
        (known,) = await watch.journal.due_fetches(clock(), 9)
        clock.forward(1)
        cloud.add_points(session, series, [(clock.now - back, 2.0)])
        await watch.list_poll.poll()
        await watch.fetch(known).make()
        await watch.poll()
        reported = await watch.all_events()
    assert sorted(one["avg"] for one in points(reported)) == [1.0, 2.0]
    assert types(reported)[-1] == "session.csv_ready"
    assert [data(one)["csv"]["datapoint_count"] for one in reported if one.event.type == "session.csv_ready"] == [2]


async def test_a_second_end_at_the_same_time_is_another_event(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        clock.forward(60)
        end = clock.now
        reported = []
        changes: list[Callable[[], object]] = [
            lambda: cloud.end_session(session, end=end),
            lambda: cloud.change(session, end=None, is_ingestion_finished=False),
            lambda: cloud.end_session(session, end=end),
        ]
        for change in changes:
            clock.forward(61)
            change()
            reported += await watch.poll()
    assert types(reported) == ["session.started", "session.ended", "session.reopened", "session.ended"]
    assert len({one.event.id for one in reported}) == 4


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_the_list_is_asked_for_from_the_newest_update_on_whatever_our_clock_says(
    clock: Clock, tmp_path: Path, ahead: float
) -> None:
    theirs = Clock(clock.now + ahead)
    cloud = simulated(theirs)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        for _ in range(5):
            cloud.open_session(device.id_group)
            await watch.list_poll.poll()
            for one in (clock, theirs):
                one.forward(600)
        await watch.list_poll.poll()
        bounds = [dict(seen.query).get("filter[updated_at][gte]") for seen in watch.server.requests]
    newest = theirs.now - 600
    assert newest - 300 <= float([one for one in bounds if one][-1] or 0) <= newest + 1


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
async def test_of_groups_that_are_named_only_theirs_are_published(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    """A session that leaves a named group is followed, and one that comes into it begins there."""
    cloud = simulated(clock, *quirks)
    ours, foreign = (cloud.add_device(f"BaceGo-{one}") for one in range(2))
    cloud.add_history(3, groups=[foreign.id_group], first_start=clock.now - 90_000, spacing=500, duration=300)
    async with watching(cloud, tmp_path / "b.db", clock, groups=[ours.id_group]) as watch:
        await watch.poll()
        clock.forward(10)
        mine, other = cloud.open_session(ours.id_group), cloud.open_session(foreign.id_group)
        cloud.add_points(other, foreign.series[0].id_container_data_latest, [(clock.now, 1.0)])
        reported = [await watch.poll()]
        for group in (foreign, ours):
            clock.forward(61)
            cloud.move_session(mine if group is foreign else other, group.id_group)
            reported.append(await watch.poll())
    names = [[(one.event.type, one.event.session_id) for one in some] for some in reported]
    assert names[0] == [("session.started", mine)]
    assert names[1] == [("session.updated", mine)]
    assert names[2][0] == ("session.started", other)
    assert {session for _, session in names[2]} == {other}


async def test_a_session_that_moves_changes_the_device_that_it_leaves_too(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    before, after = (cloud.add_device(f"BaceGo-{one}") for one in range(2))
    changed: list[Collection[str]] = []
    async with watching(
        cloud, tmp_path / "b.db", clock, journal=lambda file: Journal(file, changed=changed.append)
    ) as watch:
        session = cloud.open_session(before.id_group)
        await watch.poll()
        clock.forward(10)
        cloud.move_session(session, after.id_group)
        changed.clear()
        await watch.list_poll.poll()
    assert [set(one) for one in changed] == [{before.id_group, after.id_group}]


async def test_a_value_that_is_corrected_nine_minutes_after_its_hour_is_published(clock: Clock, tmp_path: Path) -> None:
    """Gateways upload late: until ten minutes after its end an hour is read again while the session goes on."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        session = cloud.open_session(device.id_group)
        cloud.add_points(session, series, [(clock.now + 3000, 1.0)])
        await watch.poll()
        clock.forward(3600)
        await watch.poll()
        clock.forward(540)
        await watch.poll()
        cloud.add_points(session, series, [(clock.now - 540 - 600, 2.0)])
        clock.forward(15)
        reported = points(await watch.poll())
    assert [(one["avg"], one["revision"]) for one in reported] == [(2.0, 1)]


async def test_where_a_first_start_began_is_kept_though_the_store_failed_at_first(clock: Clock, tmp_path: Path) -> None:
    """Else another first start, after a restart, would take for history what came meanwhile."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(1, first_start=clock.now - 1000, spacing=500, duration=300)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.file.read(
            lambda connection: connection.execute(
                "create temp trigger broken before insert on main.facts when new.name = 'watch' "
                "begin select raise(abort, 'broken'); end"
            )
        )
        with pytest.raises(StoreError):
            await watch.list_poll.poll()
        await watch.file.read(lambda connection: connection.execute("drop trigger broken"))
        clock.forward(10)
        await watch.list_poll.poll()
    clock.forward(10)
    session = cloud.open_session(device.id_group)
    clock.forward(10)
    cloud.end_session(session)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert types(await watch.poll()) == ["session.started", "session.ended"]


async def test_a_devices_new_label_is_seen_within_an_hour_where_sessions_do_not_bring_it(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock, "no-expand")
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        session = cloud.open_session(device.id_group)
        reported = await watch.poll()
        cloud.rename_device(device.id_group, "Anna's")
        clock.forward(3660)
        cloud.change(session, label="Night")
        reported += await watch.poll()
    assert [data(one)["device"]["label"] for one in reported] == ["BaceGo-1", "Anna's"]
