"""Datapoints that cannot be had: an outage loses nothing, and a data session that is broken holds nothing up."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bace_bridge.errors import CloudError, StoreUnusable
from bace_bridge.events.types import LoggedEvent
from bace_bridge.polling.loops import DatapointLoop
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.polling.rules.fetches import MOST_FAILED_FETCHES, MOST_FAILURES
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.simulator.cloud import SimulatedCloud
from tests.integration.altered_cloud import Alter, altered
from tests.integration.polling_line import Clock, Watching, data, points, simulated, types, watching

POINTS = "/api/v2/data-downsampled"
FOREVER = 10**9


@pytest.fixture
def clock() -> Clock:
    return Clock()


def over_at_once(cloud: SimulatedCloud, clock: Clock) -> str:
    """A data session that ended and was ingested between two polls; three points, in two windows."""
    device = cloud.add_device("BaceGo-1", datatypes=(6000,))
    session = cloud.open_session(device.id_group, start=clock.now - 3700)
    series = device.series[0].id_container_data_latest
    cloud.add_points(session, series, [(clock.now - 3690, 1.0), (clock.now - 20, 2.0), (clock.now - 10, 3.0)])
    cloud.end_session(session)
    cloud.finish_ingestion(session)
    return session


def types_in_order(events: Sequence[LoggedEvent]) -> list[str]:
    """The types; several events of datapoints in a row are one."""
    return [one for one, _ in groupby(types(events))]


async def fetches(watch: Watching, clock: Clock, seconds: float, *, every: float = 20) -> list[str]:
    """The fetches alone, as the datapoint loop makes them while the polls fail."""
    before = len(await watch.all_events())
    for _ in range(int(seconds / every)):
        clock.forward(every)
        await watch.fetch_due()
    return types_in_order((await watch.all_events())[before:])


@pytest.mark.parametrize(
    ("where", "status", "body"),
    [
        (POINTS, 500, "{}"),
        (POINTS, 200, "<html>a hotel</html>"),
        ("/api/", 500, "{}"),
        ("/api/", 200, "<html>a hotel</html>"),
        ("/api/", 200, ""),
        ("/api/", 401, "{}"),
        ("/api/", 403, "<html>"),
        ("/api/", 404, "<html>"),
    ],
)
async def test_no_outage_uses_up_a_sessions_patience(
    clock: Clock, tmp_path: Path, where: str, status: int, body: str
) -> None:
    """However long it lasts, and even where it is long enough to narrow a window down to nothing."""
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        over_at_once(cloud, clock)
        await watch.list_poll.poll()
        watch.server.faults.answer(where, status=status, body=body, times=FOREVER)
        told = await fetches(watch, clock, 3600, every=60)
        assert told == []
        watch.server.faults.waiting.clear()
        told = await fetches(watch, clock, 60)
        assert told == ["session.datapoints", "session.ended", "session.csv_ready"]
        assert len(points(await watch.all_events())) == 3


async def test_a_hiccup_is_no_failure_of_a_session(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        over_at_once(cloud, clock)
        watch.server.faults.answer(POINTS, status=500, body="{}")
        told = types_in_order(await watch.poll())
        assert told == ["session.started", "session.datapoints", "session.ended", "session.csv_ready"]


@pytest.mark.parametrize(("status", "body"), [(500, "{}"), (200, "<html>"), (403, "{}")], ids=["500", "HTML", "403"])
async def test_a_session_that_is_broken_for_good_is_ready_and_tried_on(
    clock: Clock, tmp_path: Path, status: int, body: str
) -> None:
    cloud = simulated(clock)
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll()
            clock.forward(10)
            session = over_at_once(cloud, clock)
            watch.server.faults.answer(POINTS, status=status, body=body, times=FOREVER, holding=session)
            assert types(await watch.poll()) == ["session.started", "session.ended"]
            assert await fetches(watch, clock, 20 * MOST_FAILED_FETCHES) == ["session.csv_ready"]
            before = watch.api_requests()
            assert await fetches(watch, clock, 86400, every=300) == []
            assert (watch.api_requests() - before) <= 4 * 6 * 12, "an attempt costs four requests, every 10 min at most"
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            assert await fetches(watch, clock, 6 * 3600, every=300) == ["session.datapoints", "session.csv_ready"]
            told = await watch.all_events()
            assert len(points(told)) == 3
            assert [data(one)["csv"]["revision"] for one in told if one.event.type == "session.csv_ready"] == [0, 1]
            before = watch.api_requests()
            assert await fetches(watch, clock, 86400, every=300) == []
            assert watch.api_requests() == before
    assert [one["event"] for one in logs if one["log_level"] == "warning"].count("datapoints.not_read") == 1


async def test_an_endpoint_that_the_account_may_not_use_does_not_hold_a_csv(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, f"forbidden {POINTS}")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        over_at_once(cloud, clock)
        assert types(await watch.poll()) == ["session.started", "session.ended", "session.csv_ready"]


def breaks_on(at: float) -> Alter:
    """Every answer with that datapoint is a 500."""

    def alter(request: web.Request, answer: Any) -> Any:
        rows = answer.get("items", ()) if request.path == POINTS else ()
        return 500 if any(row["timestamp_seconds"] == at for row in rows) else answer

    return alter


async def test_a_minute_that_breaks_is_left_out_and_emitted_when_it_can_be_read(clock: Clock, tmp_path: Path) -> None:
    """A hiccup or two narrow nothing; then the place is found in one fetch, and everything else is read in it."""
    cloud = simulated(clock)
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        await watch.poll()
        clock.forward(10)
        between.alter = breaks_on(clock.now - 20)
        session = over_at_once(cloud, clock)
        assert types(await watch.poll()) == ["session.started", "session.datapoints", "session.ended"]
        assert not any(one.split for one in (await watch.journal.windows([session]))[session].values())
        before = watch.api_requests()
        assert await fetches(watch, clock, 20 * (MOST_FAILURES - 1)) == ["session.datapoints", "session.csv_ready"]
        assert watch.api_requests() - before <= 50
        assert sorted(point["avg"] for point in points(await watch.all_events())) == [1.0, 3.0]
        (out,) = [one for one in (await watch.journal.windows([session]))[session].values() if one.failures]
        assert (out.end - out.start, out.settled) == (60, True)
        before = watch.api_requests()
        assert await fetches(watch, clock, 86400, every=300) == []
        assert watch.api_requests() - before <= 4 * 6 * 12
        between.alter = lambda _, answer: answer
        assert await fetches(watch, clock, 6 * 3600, every=300) == ["session.datapoints", "session.csv_ready"]
        assert len(points(await watch.all_events())) == 3
        before = watch.api_requests()
        await fetches(watch, clock, 86400, every=300)
        assert watch.api_requests() == before


async def test_a_minute_that_breaks_does_not_hold_live_points(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    session = cloud.open_session(cloud.add_device("BaceGo-1").id_group, start=clock.now - 300)
    series = next(cloud.series_of(cloud.session(session))).id_container_data_latest
    cloud.add_points(session, series, [(clock.now - 250.5, 1.0)])
    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = breaks_on(clock.now - 250.5)
        for one in range(20):
            clock.forward(15)
            cloud.add_points(session, series, [(clock.now - 0.5, 2.0 + one)])
            before = watch.api_requests()
            await watch.poll()
        found = [point["avg"] for point in points(await watch.all_events())]
        assert found == [2.0 + one for one in range(20)]
        assert watch.api_requests() - before <= 8


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_fetch_is_not_made_before_the_cloud_wants_it(clock: Clock, tmp_path: Path, status: int) -> None:
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        over_at_once(cloud, clock)
        watch.server.faults.answer(POINTS, status=status, headers={"Retry-After": "120"})
        await watch.poll()
        before = watch.api_requests()
        assert await fetches(watch, clock, 100) == []
        assert watch.api_requests() == before
        assert await fetches(watch, clock, 40) == ["session.datapoints", "session.ended", "session.csv_ready"]


async def test_a_csv_is_ready_again_where_a_fetch_was_cut_off_after_a_correction(clock: Clock, tmp_path: Path) -> None:
    """The count is the same, and the fetch that comes to the end finds nothing new any more."""
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        session = over_at_once(cloud, clock)
        assert types_in_order(await watch.poll())[-1] == "session.csv_ready"
        (series,) = cloud.samples.of(session)
        cloud.change(session, is_ingestion_finished=False)
        await watch.poll()
        clock.forward(60)
        cloud.add_points(session, series, [(clock.now - 3750, 9.0)])
        cloud.finish_ingestion(session)
        watch.server.faults.answer(POINTS, status=503, times=FOREVER, holding=str(int(clock.now // 3600 * 3600)))
        assert types_in_order(await watch.poll()) == ["session.datapoints"]
        watch.server.faults.waiting.clear()
        assert await fetches(watch, clock, 60) == ["session.csv_ready"]


class Turns:
    """The datapoint loop, whose pauses a test ends."""

    def __init__(self, watch: Watching, clock: Clock) -> None:
        self.made: list[str] = []
        self.waits: list[float] = []
        self._in_flight = 0
        self._watch, self._clock = watch, clock
        self._turn = asyncio.Semaphore(0)
        self.loop = DatapointLoop(
            watch.journal,
            self._fetch,
            self._end,
            watch.endpoint,
            watch.batches,
            interval=watch.settings.interval,
            clock=clock,
            monotonic=clock,
            jitter=lambda: 0.0,
            pause=self._pause,
        )

    async def _fetch(self, known: KnownSession, _: Urgency) -> CloudError | None:
        self.made.append(known.session.id)
        self._in_flight += 1
        watch = self._watch
        try:
            return await watch.fetch(known).make()
        finally:
            self._in_flight -= 1

    async def _end(self, known: KnownSession) -> None:
        await self._watch.fetch(known).emit_end()

    async def _pause(self, called: asyncio.Event, seconds: float) -> None:
        """Until the loop is called, or the test lets the time go by."""
        self.waits.append(seconds)
        either = [asyncio.ensure_future(called.wait()), asyncio.ensure_future(self._turn.acquire())]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for one in either:
            one.cancel()
        called.clear()

    async def pass_by(self, seconds: float) -> None:
        """So much time goes by, and the loop looks once at what is due."""
        self._clock.forward(seconds)
        before = len(self.waits)
        self._turn.release()
        await self.settled(before + 1)

    async def settled(self, waits: int = 1) -> None:
        """Until the loop has paused so often and nothing is being read, also not by what it has just begun."""
        quiet = 0
        async with asyncio.timeout(60):
            while quiet < 2:  # what the loop has begun runs in between
                await asyncio.sleep(0.001)
                quiet = quiet + 1 if len(self.waits) >= waits and not self._in_flight else 0

    async def go_on(self, seconds: float, *, until: Callable[[], bool] = lambda: True) -> None:
        self._clock.forward(seconds)
        before = len(self.waits)
        self._turn.release()
        async with asyncio.timeout(60):
            while len(self.waits) < before + 2 or self._in_flight or not until():
                await asyncio.sleep(0.001)


async def test_an_outage_is_asked_about_by_one_fetch_at_a_time_and_logged_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.poll()
            clock.forward(10)
            device = cloud.add_device("BaceGo-1")
            for _ in range(30):
                cloud.open_session(device.id_group)
            await watch.list_poll.poll()
            watch.server.faults.answer(POINTS, status=500, body="{}", times=FOREVER)
            turns = Turns(watch, clock)
            run = asyncio.create_task(turns.loop.run())
            for _ in range(11):
                await turns.go_on(60)
            assert 11 <= len(turns.made) <= 4 + 11
            assert turns.loop.problem is not None
            watch.server.faults.waiting.clear()
            await turns.go_on(60, until=lambda: len(turns.made) >= 30)
            recovered = turns.loop.problem is None
            run.cancel()
    assert recovered
    said = [one["event"] for one in logs if one["log_level"] in {"warning", "info"}]
    assert [one for one in said if "available" in one] == ["datapoints.unavailable", "datapoints.available_again"]


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_no_session_is_read_before_the_cloud_wants_it(clock: Clock, tmp_path: Path, status: int) -> None:
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        device = cloud.add_device("BaceGo-1")
        for _ in range(10):
            cloud.open_session(device.id_group)
        await watch.list_poll.poll()
        watch.server.faults.answer(POINTS, status=status, headers={"Retry-After": "120"}, times=FOREVER)
        turns = Turns(watch, clock)
        run = asyncio.create_task(turns.loop.run())
        await turns.settled()
        asked = len(turns.made)
        assert 1 <= asked < 10
        watch.server.faults.waiting.clear()
        await turns.pass_by(119)
        assert len(turns.made) == asked
        await turns.pass_by(2)
        assert len(turns.made) > asked
        run.cancel()


class HangingTurns(Turns):
    """Not one fetch ends."""

    async def _fetch(self, known: KnownSession, _: Urgency) -> CloudError | None:
        self.made.append(known.session.id)
        await asyncio.Event().wait()
        return None


async def test_history_that_hangs_leaves_places_for_live_sessions(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(10, first_start=clock.now - 90_000, spacing=1000, duration=100)
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        await watch.list_poll.poll()
        turns = HangingTurns(watch, clock)
        run = asyncio.create_task(turns.loop.run())
        await turns.settled()
        assert len(turns.made) >= 1
        clock.forward(10)
        session = cloud.open_session(device.id_group)
        await watch.list_poll.poll()
        await turns.pass_by(1)
        assert turns.made[-1] == session
        run.cancel()


async def test_an_end_waits_half_a_minute_for_its_datapoints_and_no_longer(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        clock.forward(15)
        cloud.end_session(session)
        watch.server.faults.answer(POINTS, status=503, times=FOREVER)
        assert types(await watch.poll()) == []
        assert await fetches(watch, clock, 29, every=1) == []
        assert await fetches(watch, clock, 16, every=1) == ["session.ended"]


async def test_an_end_does_not_wait_for_a_fetch_that_hangs(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.list_poll.poll()
        turns = HangingTurns(watch, clock)
        run = asyncio.create_task(turns.loop.run())
        await turns.settled()
        clock.forward(15)
        cloud.end_session(session)
        await watch.list_poll.poll()
        await turns.pass_by(29)
        assert types(await watch.all_events()) == ["session.started"]
        await turns.pass_by(2)
        assert types(await watch.all_events()) == ["session.started", "session.ended"]
        run.cancel()


class BrokenStoreTurns(Turns):
    async def _fetch(self, known: KnownSession, _: Urgency) -> CloudError | None:
        raise StoreUnusable(f"{known.session.id}: the file is damaged")


async def test_a_store_that_cannot_be_used_any_more_ends_the_loop(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        cloud.open_session(device.id_group)
        await watch.list_poll.poll()
        run = asyncio.create_task(BrokenStoreTurns(watch, clock).loop.run())
        await asyncio.wait({run}, timeout=60)
        assert run.done()
        with pytest.raises(ExceptionGroup) as caught:
            run.result()
        assert caught.group_contains(StoreUnusable)
