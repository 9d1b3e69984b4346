"""Long sessions with few points: few requests, and every point once, as its hour shows it."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bace_bridge.events.types import LoggedEvent
from bace_bridge.formats import iso_utc
from bace_bridge.polling.reading import pages
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.polling.rules.fetches import PointQuery
from bace_bridge.polling.rules.windows import SPAN, window_at
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import Resolution
from tests.integration.altered_cloud import Alter, altered
from tests.integration.polling_line import Clock, Watching, points, simulated, types, watching

POINTS = "/api/v2/data-downsampled"
HOUR, DAY = 3600.0, 86400.0
Samples = dict[str, list[tuple[float, float]]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def at_random(cloud: SimulatedCloud, session: str, start: float, days: float, count: int, *, on: float = 0) -> Samples:
    """So many samples of each series, at random times; `on`: on multiples of so many seconds."""
    dice = random.Random(5)
    made: Samples = {}
    for series in cloud.series_of(cloud.session(session)):
        times = sorted({start + dice.uniform(0, days * DAY - 60) for _ in range(count)})
        times = sorted({at // on * on for at in times}) if on else times
        made[series.id_container_data_latest] = [(at, float(one)) for one, at in enumerate(times)]
    return made


def over_session(
    cloud: SimulatedCloud, clock: Clock, *, days: float, count: int, series: int = 1, on: float = 0
) -> str:
    """It is over and ingested when it is seen for the first time."""
    device = cloud.add_device(f"BaceGo-{len(cloud.devices)}", datatypes=tuple(range(6000, 6000 + series)))
    start = clock.now - days * DAY
    session = cloud.open_session(device.id_group, start=start, created_at=clock.now)
    for name, samples in at_random(cloud, session, start, days, count, on=on).items():
        cloud.add_points(session, name, samples)
    cloud.end_session(session, end=clock.now - 5)
    cloud.finish_ingestion(session)
    return session


async def as_the_hours_show(watch: Watching, session: str) -> set[tuple[Any, ...]]:
    """What the cloud serves hour by hour."""
    found = set()
    tracks = watch.server.cloud.samples.of(session).values()
    for start in {window_at(at).start for track in tracks for at in track.times}:
        query = PointQuery(session, start, start + SPAN)
        async for page in pages(partial(watch.api.point_page, query.params, urgency=Urgency.LIVE)):
            for row in page.items:
                found.add((row.series_id, iso_utc(row.timestamp), row.min, row.max, row.avg, row.count))
    return found


def emitted(reported: Sequence[LoggedEvent]) -> list[tuple[Any, ...]]:
    assert {one["revision"] for one in points(reported)} <= {0}
    names = ("series_id", "timestamp", "min", "max", "avg", "count")
    return [tuple(one[name] for name in names) for one in points(reported)]


@pytest.mark.parametrize(
    ("quirks", "raw", "series", "on", "days", "most"),
    [
        ((), 3600.0, 1, 0, 40, 60),
        ((), 3600.0, 3, 0, 40, 60),
        ((), 900.0, 1, 0, 10, 20),
        ((), 0.0, 1, 0, 10, 20),
        ((), 3600.0, 1, 1, 10, 20),
        ((), 3600.0, 1, 60, 10, 20),
        (("no-interval-raw", "tie-shuffle"), 3600.0, 1, 0, 10, 20),
        (("bucket-start",), 3600.0, 1, 0, 10, 180),
        (("bucket-start",), 0.0, 1, 0, 10, 30),
        (("long-by-day 7d",), 3600.0, 1, 0, 10, 300),
        (("data-filters-ignored",), 3600.0, 1, 0, 10, 20),
        (("duplicate-points", "numbers-as-strings"), 3600.0, 3, 0, 10, 20),
        (("sort-ignored", "unstable-order", "per-page-max 20"), 3600.0, 1, 0, 10, 700),
    ],
)
async def test_few_points_in_many_days(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], raw: float, series: int, on: float, days: int, most: int
) -> None:
    cloud = simulated(clock, *quirks)
    cloud.resolution = Resolution(raw=raw)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        session = over_session(cloud, clock, days=days, count=24 * days // series, series=series, on=on)
        before = watch.api_requests()
        reported = await watch.poll()
        assert types(reported)[-1] == "session.csv_ready"
        assert watch.api_requests() - before <= most
        found = emitted(reported)
        assert len(found) == len(set(found))
        assert set(found) == await as_the_hours_show(watch, session)


@pytest.mark.parametrize("series", [1, 3])
async def test_what_was_followed_live_is_read_again_in_few_requests(clock: Clock, tmp_path: Path, series: int) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1", datatypes=tuple(range(6000, 6000 + series)))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        start = clock.now
        session = cloud.open_session(device.id_group, start=start)
        samples = at_random(cloud, session, start, 5, 120 // series)
        while clock.now < start + 5 * DAY:
            clock.forward(HOUR)
            for name, made in samples.items():
                due = [one for one in made if clock.now - HOUR <= one[0] < clock.now]
                cloud.add_points(session, name, due)
            await watch.poll()
        late = next(iter(samples))
        cloud.add_points(session, late, [(start + 3 * DAY + 17.5, 999.0)])
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        before = watch.api_requests()
        reported = await watch.poll()
        assert types(reported)[-2:] == ["session.ended", "session.csv_ready"]
        assert [one["avg"] for one in points(reported)] == [999.0]
        assert watch.api_requests() - before <= 25
        found = emitted(await watch.all_events())
        assert len(found) == len(set(found))
        assert set(found) == await as_the_hours_show(watch, session)


async def test_a_long_active_session_is_probed_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    start = clock.now - 40 * DAY
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=start, created_at=start)
    (samples,) = at_random(cloud, session, start, 40, 940).items()
    cloud.add_points(session, *samples)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        assert {one[0] for one in emitted(await watch.poll())} == {samples[0]}
        for _ in range(8):
            clock.forward(15)
            before = watch.api_requests()
            cloud.add_points(session, samples[0], [(clock.now - 0.5, 1.0)])
            assert len(points(await watch.poll())) == 1
            assert watch.api_requests() - before <= 4
        clock.forward(15)
        cloud.add_points(session, samples[0], [(start + 7 * DAY + 0.5, 2.0)])
        assert [one["avg"] for one in points(await watch.poll())] == [2.0], "late, in an hour that was empty"
        found = emitted(await watch.all_events())
        assert len(found) == len(set(found))
        assert set(found) == await as_the_hours_show(watch, session)


async def test_minutes_are_not_taken_for_samples_because_some_samples_are_on_full_minutes(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock, "bucket-start")
    start = clock.now - 4 * DAY
    live = cloud.open_session(cloud.add_device("BaceGo-live").id_group)
    (series, *_) = cloud.series_of(cloud.session(live))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        cloud.add_points(live, series.id_container_data_latest, [(clock.now - 0.5, 1.0)])
        await watch.poll()
        clock.forward(10)
        session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=start, created_at=clock.now)
        (series, *_) = cloud.series_of(cloud.session(session))
        for day in range(1, 4):
            times = [3600.0 + 60 * one for one in range(20)] + [7217.5 + 60 * one for one in range(5)]
            begin = start // DAY * DAY + day * DAY
            cloud.add_points(session, series.id_container_data_latest, [(begin + at, at) for at in times])
        cloud.end_session(session, end=clock.now - 5)
        cloud.finish_ingestion(session)
        assert set(emitted(await watch.poll())) == await as_the_hours_show(watch, session)


def asked_for(request: web.Request) -> float:
    """The seconds of the interval of datapoints that a request names."""
    bounds = [float(request.query.get(f"filter[timestamp_seconds][{one}]", 0)) for one in ("gte", "lt")]
    return bounds[1] - bounds[0] if request.path == POINTS else 0.0


def shifted(by: float) -> Alter:
    """Long buckets begin at other times: those of another time zone."""

    def alter(request: web.Request, answer: Any) -> Any:
        for row in answer["items"] if asked_for(request) > DAY else ():
            row["timestamp_seconds"] += by if row["count_val"] > 1 else 0
        return answer

    return alter


def rounded(request: web.Request, answer: Any) -> Any:
    """In an answer for a day a sample has not quite its own time."""
    for row in answer["items"] if asked_for(request) == DAY else ():
        row["timestamp_seconds"] += 0.125
    return answer


def thinned(request: web.Request, answer: Any) -> Any:
    """In an answer for a day some hours lack their last sample."""
    if asked_for(request) == DAY:
        by_hour: dict[float, list[Any]] = {}
        for row in answer["items"]:
            by_hour.setdefault(row["timestamp_seconds"] // HOUR, []).append(row)
        answer["items"] = [row for rows in by_hour.values() for row in (rows[:1] if len(rows) == 2 else rows)]
    return answer


@pytest.mark.parametrize(
    "alter",
    [shifted(-HOUR), shifted(-1800.0), shifted(1800.0), rounded, thinned],
    ids=["an hour earlier", "half an hour earlier", "half an hour later", "rounded", "thinned"],
)
@pytest.mark.parametrize("quirks", [(), ("long-by-day 3d",)], ids=["by the hour", "by the day"])
async def test_what_is_coarse_is_never_what_is_published(
    clock: Clock, tmp_path: Path, alter: Alter, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        await watch.poll()
        clock.forward(10)
        session = over_session(cloud, clock, days=4, count=240)
        reported = await watch.poll()
        assert types(reported)[-1] == "session.csv_ready"
        assert set(emitted(reported)) == await as_the_hours_show(watch, session)


async def test_what_was_read_by_the_day_is_not_emitted_again_by_the_hour(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        clock.forward(10)
        session = over_session(cloud, clock, days=4, count=240)
        before = watch.api_requests()
        assert types(await watch.poll())[-1] == "session.csv_ready"
        assert watch.api_requests() - before <= 60
        between.alter = rounded
        cloud.add_points(session, next(iter(cloud.samples.of(session))), [(clock.now - 2 * DAY, 999.0)])
        clock.forward(61)
        before = watch.api_requests()
        reported = await watch.poll()
        assert watch.api_requests() - before >= 80
        assert types(reported) == ["session.datapoints", "session.csv_ready"]
        assert [(one["avg"], one["revision"]) for one in points(reported)] == [(999.0, 0)]
