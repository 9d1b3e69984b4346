"""Random histories of several sessions in the simulated cloud, watched over real HTTP into a real store.

The watcher is restarted at any point, also in the middle of a poll; polls fail; the list shifts while its pages are
walked; sessions appear that were recorded offline. At the end everything that the cloud serves has been reported, every
session's events stand in the order of the contract, and what is found again has the same id. What this has taught
stands below it.
"""

import asyncio
import shutil
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bace_bridge.errors import CloudError
from bace_bridge.events.types import LoggedEvent
from bace_bridge.formats import iso_utc
from bace_bridge.polling.reading import pages
from bace_bridge.polling.rules.changes import Page, Urgency
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.fetches import PointQuery
from bace_bridge.polling.rules.windows import SPAN, window_at
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import Resolution
from tests.integration.polling_line import Clock, Watching, data, points, simulated, types, watching
from tests.models import examples

STRATEGIES = ("", "filters-ignored", "updated-filter-ignored")
OTHER_QUIRKS = (
    (),
    ("tie-shuffle",),
    ("per-page-max 2", "tie-shuffle"),
    ("numbers-as-strings", "booleans-as-ints", "no-date"),
    ("no-expand", "unknown-fields"),
    ("data-filters-ignored",),
    ("sort-ignored", "per-page-max 2"),
)


class World(NamedTuple):
    """The cloud's ways, and how finely the watcher wants datapoints."""

    quirks: tuple[str, ...]
    raw: float
    wanted: Literal["as_served", "finest"]


def world(strategy: str, others: tuple[str, ...], raw: float, finest: bool) -> World:
    finest = finest and raw > 0 and "data-filters-ignored" not in others
    quirks = ((strategy,) if strategy else ()) + others
    return World(quirks, raw, "finest" if finest else "as_served")


WORLDS = st.builds(
    world,
    st.sampled_from(STRATEGIES),
    st.sampled_from(OTHER_QUIRKS),
    st.sampled_from([0.0, 900.0, 3600.0]),
    st.booleans(),
)

MOST_SESSIONS = 5
SESSION = st.integers(0, MOST_SESSIONS - 1)
CLOUD_STEPS = st.one_of(
    st.tuples(st.just("open"), SESSION),
    st.tuples(st.just("points"), SESSION, st.integers(1, 5), st.sampled_from([0, 30, 700, 4000, 90_000])),
    st.tuples(st.just("points"), SESSION, st.integers(1, 5), st.just(0)),
    st.tuples(st.just("correct"), SESSION),
    st.tuples(st.just("rename"), SESSION, st.sampled_from(["Night", "Day"])),
    st.tuples(st.just("end"), SESSION),
    st.tuples(st.just("ingest"), SESSION),
    st.tuples(st.just("reopen"), SESSION),
    st.tuples(st.just("remove"), SESSION),
    st.tuples(st.just("offline"), SESSION, st.sampled_from([900, 5000, 200_000])),
)
# No 429: the silence after it lasts until this clock moves, which it does not in the middle of a poll.
FAILURES = st.sampled_from([(500, "{}"), (502, "<html>"), (200, "<html>"), (200, '{"items": [{'), (401, "{}")])
WATCHER_STEPS = st.one_of(
    st.just(("poll",)),
    st.just(("poll",)),
    st.just(("poll and fetch at once",)),
    st.just(("restart",)),
    st.tuples(st.just("cut off"), st.integers(0, 12)),
    st.tuples(st.just("shifting poll"), st.integers(0, 6), CLOUD_STEPS),
    st.tuples(st.just("failing poll"), st.integers(1, 3), FAILURES),
    st.just(("poll twice",)),
    st.tuples(st.just("time"), st.sampled_from([1, 15, 61, 700, 4000])),
    st.tuples(st.just("time"), st.sampled_from([1, 15, 61])),
)
Step = tuple[Any, ...]
STEPS = st.lists(st.one_of(CLOUD_STEPS, WATCHER_STEPS), min_size=15, max_size=45)


class History:
    """Drives the cloud and the watcher."""

    def __init__(self, ways: World, store: Path) -> None:
        self.clock = Clock()
        self.ways = ways
        self.cloud: SimulatedCloud = simulated(self.clock, *ways.quirks)
        self.cloud.resolution = Resolution(raw=ways.raw)
        self.devices = [self.cloud.add_device(f"BaceGo-{one}", datatypes=(6000, 6001)) for one in range(2)]
        self.store = store
        self.stack = AsyncExitStack()
        self.sessions: list[str] = []
        self.samples = 0
        self.watch: Watching

    async def start(self) -> None:
        given = watching(self.cloud, self.store, self.clock, start="all", resolution=self.ways.wanted)
        self.watch = await self.stack.enter_async_context(given)

    async def restart(self) -> None:
        await self.stack.aclose()
        await self.start()

    async def step(self, step: Step) -> None:
        match step:
            case ("poll",):
                await self.watch.poll()
            case ("poll and fetch at once",):
                await asyncio.gather(self.watch.list_poll.poll(), self.watch.fetch_due())
            case ("restart",):
                await self.restart()
            case ("cut off", int(requests)):
                await self.cut_off(requests)
            case ("shifting poll", int(requests), (str(what), int(which), *how)):
                await self.poll_while(requests, what, which, how)
            case ("failing poll", int(times), (int(status), str(body))):
                await self.poll_in_vain(times, status, body)
            case ("poll twice",):
                await self.poll_twice()
            case ("time", int(seconds)):
                self.clock.forward(seconds)
            case (str(what), int(which), *how):
                self.in_the_cloud(what, which, how)

    def in_the_cloud(self, what: str, which: int, how: list[Any]) -> None:
        group = self.devices[which % 2].id_group
        if what == "open":
            if len(self.sessions) < MOST_SESSIONS:
                self.sessions.append(self.cloud.open_session(group))
        elif what == "offline":
            if len(self.sessions) < MOST_SESSIONS:
                self.sessions.append(self.recorded_offline(group, how[0]))
        elif self.sessions:
            self.change(what, self.sessions[which % len(self.sessions)], how)

    def recorded_offline(self, group: str, ago: float) -> str:
        """It appears with everything at once: a start and an end in the past, datapoints, and ingestion finished."""
        start = self.clock.now - ago
        session = self.cloud.open_session(group, start=start)
        series = next(self.cloud.series_of(self.cloud.session(session)))
        made = [(start + 60 * one, float(one)) for one in range(3)]
        self.cloud.add_points(session, series.id_container_data_latest, made)
        self.cloud.end_session(session, end=start + 600)
        self.cloud.finish_ingestion(session)
        return session

    def change(self, what: str, session: str, how: list[Any]) -> None:
        cloud = self.cloud
        row = cloud.sessions.by_id.get(session)
        if row is None:
            return
        if what == "points":
            count, back = how
            self.samples += 1
            series = next(cloud.series_of(row)) if self.samples % 2 else list(cloud.series_of(row))[-1]
            first = self.clock.now - back + self.samples / 256
            made = [(first + 7 * one, float(self.samples + one)) for one in range(count)]
            cloud.add_points(session, series.id_container_data_latest, made)
        elif what == "correct" and not row.is_ingestion_finished:
            for series_id, track in list(cloud.samples.of(session).items()):
                cloud.add_points(session, series_id, [(track.times[-1], track.values[-1] + 1)])
        elif what == "rename":
            cloud.change(session, label=how[0])
        elif what == "end" and row.end is None:
            cloud.end_session(session)
        elif what == "ingest" and row.end is not None:
            cloud.finish_ingestion(session)
        elif what == "reopen" and row.end is not None:
            cloud.change(session, end=None, is_ingestion_finished=False)
        elif what == "remove":
            cloud.remove_session(session)

    async def cut_off(self, requests: int) -> None:
        """A poll that ends, with the process, after so many requests."""
        through = self.watch.api_requests() + requests
        poll = asyncio.ensure_future(self.watch.poll())
        while not poll.done() and self.watch.api_requests() < through:
            await asyncio.sleep(0)
        poll.cancel()
        with suppress(asyncio.CancelledError):
            await poll
        await self.restart()

    async def poll_while(self, requests: int, what: str, which: int, how: list[Any]) -> None:
        """A poll in the middle of which, after so many requests, something changes: its pages shift."""
        through = self.watch.api_requests() + requests
        poll = asyncio.ensure_future(self.watch.poll())
        while not poll.done() and self.watch.api_requests() < through:
            await asyncio.sleep(0)
        self.in_the_cloud(what, which, how)
        await poll

    async def poll_in_vain(self, times: int, status: int, body: str) -> None:
        """A poll whose first requests fail; what it has seen until then may be emitted, nothing is taken as gone."""
        self.watch.server.faults.answer("/api/", status=status, body=body, times=times)
        with suppress(CloudError):
            await self.watch.poll()
        self.watch.server.faults.waiting.clear()
        self.clock.forward(40)

    async def poll_twice(self) -> None:
        """As after a crash before the commit: the same poll over the same store, a second later, tells the same."""
        await self.stack.aclose()
        copy = self.store.with_suffix(".copy")
        shutil.copy(self.store, copy)
        await self.start()
        first = ids_of_sessions(await self.watch.poll())
        await self.stack.aclose()
        shutil.copy(copy, self.store)
        self.clock.forward(1)
        await self.start()
        again = ids_of_sessions(await self.watch.poll())
        for session, ids in first.items():
            assert [one for one in again[session] if one in ids] == ids, "found again with another id"

    async def come_to_rest(self) -> None:
        """Every session ends and is ingested, and polling has the time that it needs, for a removal twice as much."""
        for session in self.sessions:
            if (row := self.cloud.sessions.by_id.get(session)) is not None:
                self.clock.forward(15)
                if row.end is None:
                    self.cloud.end_session(session)
                self.cloud.finish_ingestion(session)
        removed = [one for one in self.sessions if self.cloud.sessions.by_id.get(one) is None]
        await self.watch.poll_for(1500 if removed else 750)

    async def served(self, session: str) -> dict[tuple[str, str], tuple[Any, ...]]:
        """What the cloud serves now, in the grid's windows, by series and time."""
        tracks = self.cloud.samples.of(session)
        if self.ways.wanted == "finest":
            return {
                (series, iso_utc(at)): (value, value, value, 1)
                for series, track in tracks.items()
                for at, value in zip(track.times, track.values, strict=True)
            }
        found: dict[tuple[str, str], tuple[Any, ...]] = {}
        for start in {window_at(at).start for track in tracks.values() for at in track.times}:
            query = PointQuery(session, start, start + SPAN)
            rows: list[Datapoint] = []
            async for page in pages(partial(self.watch.api.point_page, query.params, urgency=Urgency.LIVE)):
                rows += page.items
            for point in rows:
                found[point.series_id, iso_utc(point.timestamp)] = (point.min, point.max, point.avg, point.count)
        return found


def ids_of_sessions(reported: Sequence[LoggedEvent]) -> dict[str | None, list[str]]:
    """The ids in their order, per data session; there is no order between data sessions."""
    found: dict[str | None, list[str]] = defaultdict(list)
    for one in reported:
        found[one.event.session_id].append(one.event.id)
    return found


def in_order(reported: Sequence[LoggedEvent]) -> None:
    """The contract's order of one session's events."""
    ended, removed, revision = False, False, -1
    assert types(reported).index("session.started") == 0
    assert types(reported).count("session.started") == 1
    for one in reported:
        match one.event.type:
            case "session.ended":
                assert not ended, "ended twice"
                ended = True
            case "session.reopened":
                assert ended or removed, "reopened, but never over"
                ended = removed = False
            case "session.removed":
                removed = True
            case "session.csv_ready":
                assert ended, "a CSV before the end"
                assert data(one)["csv"]["revision"] == revision + 1
                revision += 1


def by_point(reported: Sequence[LoggedEvent]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for point in points(reported):
        found[point["series_id"], point["timestamp"]].append(point)
    return found


async def check(history: History) -> None:
    logged = await history.watch.all_events()
    ids = [one.event.id for one in logged]
    assert len(set(ids)) == len(ids)
    for session in history.sessions:
        reported = [one for one in logged if one.event.session_id == session]
        if reported:
            in_order(reported)
        row = history.cloud.sessions.by_id.get(session)
        if row is None:
            assert not reported or reported[-1].event.type == "session.removed"
            continue
        values = by_point(reported)
        for revisions in values.values():
            assert [one["revision"] for one in revisions] == list(range(len(revisions)))
        for key, served in (await history.served(session)).items():
            assert key in values, f"never reported: {key}"
            last = values[key][-1]
            assert (last["min"], last["max"], last["avg"], last["count"]) == served
        over = [
            one for one in reported if one.event.type in {"session.datapoints", "session.ended", "session.csv_ready"}
        ]
        assert over[-1].event.type == "session.csv_ready"
        assert data(over[-1])["csv"]["datapoint_count"] == row.datapoint_count


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example(  # a point in the window before the one that the session starts in
    ways=World((), 0.0, "as_served"),
    steps=[("open", 0), ("poll",), ("points", 0, 1, 30), ("time", 15), ("poll",), ("correct", 0)],
)
@example(  # the oldest session of the list is removed when it is over
    ways=World(("updated-filter-ignored",), 0.0, "as_served"),
    steps=[("offline", 0, 900), ("open", 0), ("poll",), ("remove", 0)],
)
@example(  # a session that is over grows while it is read
    ways=World((), 0.0, "as_served"),
    steps=[("offline", 0, 900), ("poll and fetch at once",), ("points", 0, 2, 90_000), ("poll and visit at once",)],
)
@given(ways=WORLDS, steps=STEPS)
async def test_whatever_happens_in_the_cloud_is_reported_in_order(
    ways: World, steps: list[Step], tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = History(ways, tmp_path_factory.mktemp("store") / "b.db")
    await history.start()
    try:
        for step in steps:
            await history.step(step)
        await history.come_to_rest()
        await check(history)
        history.clock.forward(61)
        assert types(await history.watch.poll()) == []
    finally:
        await history.stack.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_bucket_that_swallows_a_point_hides_no_other(clock: Clock, tmp_path: Path) -> None:
    """A lone sample comes with its own time and again in its bucket: counted twice, it stood for a missing one."""
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=0)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        for value in (1.0, 2.0):
            cloud.add_points(session, series, [(clock.now + 1, value)])
            clock.forward(15)
            assert len(points(await watch.poll())) == 1
        cloud.end_session(session)
        cloud.add_points(session, series, [(clock.now - 90_000, 3.0)])
        cloud.finish_ingestion(session)
        reported = await watch.poll()
    assert types(reported) == ["session.datapoints", "session.ended", "session.csv_ready"]
    assert [one["avg"] for one in points(reported)] == [3.0]


async def test_the_large_windows_of_a_long_session_are_settled_and_left_alone(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "per-page-max 5")
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    costs = []
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        session = cloud.open_session(device.id_group)
        for hour in range(6):
            cloud.add_points(session, series, [(clock.now + 100 * one, 1.0) for one in range(36)])
            if hour:
                cloud.add_points(session, series, [(clock.now - 3301, 2.0)])
            for _ in range(4):
                clock.forward(900)
                before = watch.api_requests()
                reported = points(await watch.poll())
                cost = watch.api_requests() - before
            costs.append(cost)
            assert all(one["revision"] == 0 for one in reported)
        every = points(await watch.all_events())
    assert costs[1:] == [costs[-1]] * 5, "an hour more costs no request more"
    assert sum(one["avg"] == 2.0 for one in every) == 5, "a late point in such a window is found"


class CloudThatIgnoresTheBeginning:
    """Honours the upper bound alone, so that rows of earlier windows come along."""

    def __init__(self, watch: Watching, beginning: float) -> None:
        self._api, self._beginning = watch.api, int(beginning)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    async def point_page(self, params: Sequence[tuple[str, str]], page: int, *, urgency: Urgency) -> Page[Datapoint]:
        given = dict(params)
        if "filter[timestamp_seconds][lt]" not in given:
            return await self._api.point_page(params, page, urgency=urgency)
        rows: list[Datapoint] = []
        for hour in range(self._beginning, int(given["filter[timestamp_seconds][lt]"]), SPAN):
            query = PointQuery(given["filter[id_data_session]"], hour, hour + SPAN)
            rows += (await self._api.point_page(query.params, page, urgency=urgency)).items
        return Page(tuple(rows), len(rows), 1, 1, len(rows))


async def test_a_bound_that_is_ignored_loses_nothing(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    start = clock.now - 5 * SPAN
    session = cloud.open_session(device.id_group, start=start, created_at=start)
    samples = [(start + 10 + hour * SPAN, float(hour)) for hour in range(5)]
    cloud.add_points(session, device.series[0].id_container_data_latest, samples)
    cloud.end_session(session)
    cloud.finish_ingestion(session)
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        await watch.list_poll.poll()
        (known,) = await watch.journal.due_fetches(clock.now, 9)
        await watch.fetch(known, CloudThatIgnoresTheBeginning(watch, start)).make()
        reported = await watch.all_events()
    assert [one["avg"] for one in points(reported)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert types(reported)[-2:] == ["session.ended", "session.csv_ready"]
