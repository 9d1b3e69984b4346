"""Datapoints as real servers were seen to serve them: twice, in no order, of other sessions, ahead of our clock."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.events.types import LoggedEvent
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import Resolution
from tests.integration.polling_line import Clock, points, simulated, types, watching

POINTS = "/api/v2/data-downsampled"
HOUR = 3600.0
DAY = 86400.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def series_of(cloud: SimulatedCloud, session: str) -> str:
    return next(cloud.series_of(cloud.session(session))).id_container_data_latest


def over_session(cloud: SimulatedCloud, start: float, end: float, *, every: float, group: str | None = None) -> str:
    """A data session that is over and ingested, with a sample of one series each `every` seconds."""
    session = cloud.open_session(group or cloud.add_device("BaceGo-1").id_group, start=start)
    count = int((end - start) / every)
    cloud.add_points(
        session, series_of(cloud, session), [(start + 0.5 + every * one, float(one)) for one in range(count)]
    )
    cloud.end_session(session, end=end)
    cloud.finish_ingestion(session)
    return session


def values(events: Sequence[LoggedEvent], session: str | None = None) -> list[float]:
    chosen = [one for one in events if session in {None, one.event.session_id}]
    return sorted(point["avg"] for point in points(chosen))


@pytest.mark.parametrize(
    "quirks",
    [
        ("per-page-max 500",),
        ("per-page-max 7",),
        ("sort-ignored", "per-page-max 500"),
        ("sort-ignored", "unstable-order", "per-page-max 500"),
        ("unstable-order", "per-page-max 50"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("twice", ["duplicate-points", "conflicting-points"])
async def test_rows_that_come_twice_lose_no_point(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], twice: str
) -> None:
    cloud = simulated(clock, *quirks, twice)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        over_session(cloud, clock.now - 1200, clock.now - 500, every=1.0)
        told = await watch.poll()
        assert types(told)[-2:] == ["session.ended", "session.csv_ready"]
        found = points(told)
    assert len({one["timestamp"] for one in found}) == len(found) == 700
    if twice == "duplicate-points":
        assert values(told) == [float(one) for one in range(700)]


async def test_two_rows_with_other_values_are_one_point_that_does_not_change(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "conflicting-points", "tie-shuffle")
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now - 300)
    cloud.add_points(session, series_of(cloud, session), [(clock.now - 299.5 + one, float(one)) for one in range(200)])
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert len(points(await watch.poll())) == 200
        for _ in range(6):
            clock.forward(15)
            assert points(await watch.poll()) == []


@pytest.mark.parametrize("length", [2 * HOUR, DAY + 900, 3 * DAY])
async def test_a_probe_that_cannot_be_read_decides_nothing(clock: Clock, tmp_path: Path, length: float) -> None:
    """The probe's answer has two pages that do not fit together; each hour's window has one."""
    cloud = simulated(clock, "sort-ignored", "unstable-order", "per-page-max 20")
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll()
            clock.forward(10)
            over_session(cloud, clock.now - length - 10, clock.now - 10, every=length / 700 if length < DAY else 300)
            told = await watch.poll()
            assert types(told)[-2:] == ["session.ended", "session.csv_ready"]
            assert values(told) == [float(one) for one in range(700 if length < DAY else int(length / 300))]
    assert not [one for one in logs if one["log_level"] in {"warning", "error"}]
    assert any(one["event"] == "datapoints.not_probed" for one in logs) is (length > DAY)


async def test_a_long_active_session_is_read_live_without_a_probe(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "sort-ignored", "unstable-order", "per-page-max 20")
    start = clock.now - 60 * HOUR
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=start)
    series = series_of(cloud, session)
    cloud.add_points(session, series, [(start + 0.5 + 300 * one, 1.0) for one in range(700)])
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert len(points(await watch.poll())) == 700
        clock.forward(15)
        cloud.add_points(session, series, [(clock.now - 1, 2.0)])
        assert values(await watch.poll()) == [2.0]


async def test_a_window_whose_pages_do_not_fit_together_is_halved(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "sort-ignored", "unstable-order", "per-page-max 100")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        session = over_session(cloud, clock.now - HOUR, clock.now - 10, every=3.0)
        told = await watch.poll()
        assert values(told) == [float(one) for one in range(1196)]
        assert types(told)[-1] == "session.csv_ready"
        assert any(one.split for one in (await watch.journal.windows([session]))[session].values())
        assert not [one for one in (await watch.journal.windows([session]))[session].values() if one.failures]


async def test_what_fits_in_no_half_is_left_out_with_the_true_reason(clock: Clock, tmp_path: Path) -> None:
    """Three samples a second in no order, ten rows a page: not even a minute comes in pages that fit together."""
    cloud = simulated(clock, "sort-ignored", "unstable-order", "per-page-max 10")
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll()
            clock.forward(10)
            over_session(cloud, clock.now - 600, clock.now - 560, every=1 / 3)
            assert types(await watch.poll()) == ["session.started", "session.ended", "session.csv_ready"]
    (said,) = [one for one in logs if one["event"] == "datapoints.window_left_out"]
    assert said["reason"] == "the pages of the answer do not fit together"


async def test_an_endpoint_that_ignores_the_session_publishes_nothing_of_others(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "session-filter-ignored")
    group = cloud.add_device("BaceGo-1").id_group
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll()
            clock.forward(10)
            first = over_session(cloud, clock.now - 3000, clock.now - 2500, every=5.0, group=group)
            second = over_session(cloud, clock.now - 2000, clock.now - 1500, every=10.0, group=group)
            other = over_session(
                cloud, clock.now - 3000, clock.now - 1500, every=15.0, group=cloud.add_device("BaceGo-2").id_group
            )
            told = await watch.poll()
            assert values(told, first) == [float(one) for one in range(100)]
            assert values(told, second) == [float(one) for one in range(50)]
            assert values(told, other) == [float(one) for one in range(100)]
            assert types(told).count("session.csv_ready") == 3
            assert watch.endpoint.problem
            assert "filter[id_data_session]" in watch.endpoint.problem
    assert [one["event"] for one in logs if one["log_level"] == "error"] == ["cloud.session_filter_not_honoured"]


async def test_an_endpoint_that_begins_to_ignore_the_session_is_noticed(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    ways = cloud.quirks
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now - 100)
    other = cloud.open_session(cloud.add_device("BaceGo-2").id_group, start=clock.now - 100)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        cloud.add_points(session, series_of(cloud, session), [(clock.now - 5.5, 1.0)])
        await watch.poll()
        cloud.quirks = simulated(clock, "session-filter-ignored").quirks
        clock.forward(15)
        cloud.add_points(other, series_of(cloud, other), [(clock.now - 5.5, 2.0)])
        told = await watch.poll()
        assert (values(told, session), values(told, other)) == ([], [2.0])
        assert watch.endpoint.problem
        clock.forward(2 * HOUR)
        assert points(await watch.poll()) == []
        cloud.quirks = ways
        clock.forward(6 * HOUR)
        cloud.add_points(session, series_of(cloud, session), [(clock.now - 5.5, 3.0)])
        assert values(await watch.poll()) == [3.0]
        assert not watch.endpoint.problem, "asked again after a while"


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_endpoint_that_is_forbidden_costs_next_to_nothing(clock: Clock, tmp_path: Path, status: int) -> None:
    cloud = simulated(clock)
    group = cloud.add_device("BaceGo-1").id_group
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            sessions = [cloud.open_session(group, start=clock.now - 100) for _ in range(9)]
            cloud.add_points(sessions[0], series_of(cloud, sessions[0]), [(clock.now - 5.5, 1.0)])
            watch.server.faults.answer(POINTS, status=status, body='{"message": "no"}', times=10**9)
            await watch.poll()
            asked = sum(one.path == POINTS for one in watch.server.requests)
            assert asked <= 4
            for _ in range(40):
                clock.forward(15)
                await watch.fetch_due()
            assert sum(one.path == POINTS for one in watch.server.requests) <= asked + 2
            assert watch.endpoint.problem
            for session in sessions[:2]:
                cloud.end_session(session)
            assert types(await watch.poll()) == ["session.ended"] * 2
            cloud.finish_ingestion(sessions[0])
            clock.forward(15)
            assert types(await watch.poll()) == ["session.csv_ready"]
            watch.server.faults.waiting.clear()
            told = await watch.poll_for(7 * HOUR, every=600)
            assert not watch.endpoint.problem
            assert values(told) == [1.0]
    said = [one["event"] for one in logs if one["event"].startswith("datapoints.")]
    assert said == ["datapoints.forbidden", "datapoints.allowed_again"]


async def test_one_session_that_is_forbidden_says_nothing_of_the_endpoint(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    group = cloud.add_device("BaceGo-1").id_group
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        hidden, seen = (cloud.open_session(group, start=clock.now - 100) for _ in range(2))
        cloud.add_points(seen, series_of(cloud, seen), [(clock.now - 5.5, 1.0)])
        watch.server.faults.answer(POINTS, status=403, body='{"message": "no"}', times=10**9, holding=hidden)
        assert values(await watch.poll()) == [1.0]
        assert not watch.endpoint.problem


@pytest.mark.parametrize("ahead", [300.0, 900.0, 3 * HOUR, DAY, 400 * DAY])
@pytest.mark.parametrize("start_too", [False, True], ids=["the points", "and the start"])
async def test_a_device_whose_clock_is_ahead_is_read_live(
    clock: Clock, tmp_path: Path, ahead: float, start_too: bool
) -> None:
    cloud = simulated(clock)
    clock.now += HOUR - 200
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now + ahead * start_too)
        series = series_of(cloud, session)
        for one in range(4):
            clock.forward(15)
            cloud.add_points(session, series, [(clock.now + ahead - 0.5, float(one))])
            assert values(await watch.poll()) == [float(one)]
        before = watch.api_requests()
        for one in range(60):
            clock.forward(15)
            cloud.add_points(session, series, [(clock.now + ahead - 0.5, float(one))])
            assert values(await watch.poll()) == [float(one)]
        assert (watch.api_requests() - before) / 60 <= 6
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        assert types(await watch.poll()) == ["session.ended", "session.csv_ready"]


async def test_a_session_that_starts_ahead_has_its_points_of_now_read(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now + DAY)
        for one in range(4):
            clock.forward(15)
            cloud.add_points(session, series_of(cloud, session), [(clock.now - 0.5, float(one))])
            assert values(await watch.poll()) == [float(one)]


@pytest.mark.parametrize("before", [0.5, 30.0, 500.0])
async def test_points_just_before_the_start_need_no_probe(clock: Clock, tmp_path: Path, before: float) -> None:
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now)
        cloud.add_points(session, series_of(cloud, session), [(clock.now - before, 1.0), (clock.now + 0.5, 2.0)])
        clock.forward(1)
        assert values(await watch.poll()) == [1.0, 2.0]


@pytest.mark.parametrize("start", [2**31 - 10.0, 2.4e11, -3e9])
async def test_no_filter_holds_more_than_a_database_takes(clock: Clock, tmp_path: Path, start: float) -> None:
    """PostgreSQL answers a larger one with a 500, and would for each session with such a time."""
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=start)
        cloud.add_points(session, series_of(cloud, session), [(clock.now - 0.5, 1.0)])
        cloud.end_session(session, end=start + 60)
        cloud.finish_ingestion(session)
        told = await watch.poll()
        assert types(told)[-2:] == ["session.ended", "session.csv_ready"]
        assert values(told) == [1.0]
        asked = [pair for seen in watch.server.requests if seen.path == POINTS for pair in seen.query]
    assert all(abs(int(value)) < 2**31 for name, value in asked if name.startswith("filter[timestamp_seconds]"))


@pytest.mark.parametrize("raw", [60.0, 900.0])
async def test_finest_takes_no_lone_bucket_for_a_sample(clock: Clock, tmp_path: Path, raw: float) -> None:
    """Each minute holds one sample, so that every bucket counts 1."""
    cloud = simulated(clock, "bucket-start")
    cloud.resolution = Resolution(raw=raw)
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now)
    series = series_of(cloud, session)
    made = []
    async with watching(cloud, tmp_path / "b.db", clock, resolution="finest") as watch:
        for one in range(12):
            made.append(clock.now + 17.25)
            cloud.add_points(session, series, [(made[-1], float(one))])
            clock.forward(60)
            await watch.poll()
        cloud.add_points(session, series, [(made[-1] + 5, 12.0)])
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        await watch.poll()
        found = points(await watch.all_events())
    assert [one["timestamp"][17:] for one in found] == ["17.250Z"] * 12 + ["22.250Z"]
    assert {one["revision"] for one in found} == {0}


async def test_samples_on_the_full_minute_are_samples(clock: Clock, tmp_path: Path) -> None:
    """They look like buckets of one: their newest minute is asked for, and the window stays whole."""
    cloud = simulated(clock)
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now)
    cloud.add_points(session, series_of(cloud, session), [(clock.now + 60 * one, 1.0) for one in range(10)])
    clock.forward(900)
    async with watching(cloud, tmp_path / "b.db", clock, resolution="finest") as watch:
        assert len(points(await watch.poll())) == 10
        assert not any(one.split for one in (await watch.journal.windows([session]))[session].values())


async def test_a_row_that_cannot_be_read_is_named_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now - 60)
    cloud.add_points(session, series_of(cloud, session), [(clock.now - 30.5, 1.0)])
    body = (
        '{"items": [{"id_container_data_latest": "x", "datatype": 1, "timestamp_seconds": "soon"},'
        ' {"id_container_data_latest": "x", "datatype": 1, "timestamp_seconds": 1764590390.5, "avg_val": 1}]}'
    )
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll()
            watch.server.faults.answer(POINTS, status=200, body=body, times=10**9, holding=session)
            for _ in range(5):
                clock.forward(15)
                await watch.poll()
    assert [one["event"] for one in logs].count("cloud.datapoint_unreadable") == 1
