"""The wall clock is set by days, both ways, while the bridge runs and while it does not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.app.bridge import Bridge
from bace_bridge.app.running import ClockWatch, Signal, SteadyClock
from bace_bridge.config.load import load
from bace_bridge.events.types import Lane
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.retry import LONGEST_WAIT
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import Schedules
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import configuration, until
from tests.delivered import deliver, lanes_of
from tests.integration.polling_line import NOON, Clock
from tests.integration.test_cloud_client import client
from tests.integration.test_dispatcher import Line, event, running, serving

DAYS = 3 * 86400.0
STEPS = [DAYS, -DAYS, 2.0, -2.0]


class Times:
    """A wall clock that can be set, and a monotonic one."""

    def __init__(self) -> None:
        self.wall, self.monotonic = Clock(), Clock(1000.0)
        self.steady = SteadyClock(self.wall, self.monotonic)

    def forward(self, seconds: float) -> None:
        self.wall.forward(seconds)
        self.monotonic.forward(seconds)


@asynccontextmanager
async def schedules(tmp_path: Path) -> AsyncIterator[tuple[Journal, Schedules]]:
    async with SqliteFile(tmp_path / "b.db") as file:
        yield Journal(file), Schedules(file)


async def watch_of(
    times: Times, moved: list[float], *lines: Line, listeners: Sequence[Callable[[float], None]] = ()
) -> ClockWatch:
    async def move(seconds: float) -> None:
        moved.append(seconds)
        for line in lines:
            await Schedules(line.file).move(seconds)

    stepped: Signal[[float]] = Signal()
    for listener in (*listeners, *(line.dispatcher.clock_stepped for line in lines)):
        stepped.listen(listener)
    return ClockWatch(times.steady, deciding=asyncio.Lock(), move_store=move, stepped=stepped)


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_is_said_once_and_followed(step: float) -> None:
    times, moved = Times(), list[float]()
    watch = await watch_of(times, moved)
    times.forward(60)
    times.wall.forward(step)
    assert times.steady() == NOON + 60
    with capture_logs() as logs:
        await watch.check()
        await watch.check()
    assert [(one["event"], one["seconds"]) for one in logs] == [("clock.stepped", step)]
    assert moved == [step]
    assert times.steady() == times.wall()


async def test_a_step_is_followed_between_two_decisions_and_not_within_one() -> None:
    """A decision that was made by the old clock would be committed over what the step has moved."""
    times, moved, deciding = Times(), list[float](), asyncio.Lock()

    async def move(seconds: float) -> None:
        moved.append(seconds)

    watch = ClockWatch(times.steady, deciding=deciding, move_store=move, stepped=moved.append)
    times.wall.forward(DAYS)
    async with deciding:
        following = asyncio.create_task(watch.check())
        for _ in range(10):
            await asyncio.sleep(0)
        assert (moved, times.steady()) == ([], NOON)
    await following
    assert (moved, times.steady()) == ([DAYS, DAYS], NOON + DAYS), "in the store, and in memory"


async def test_a_clock_that_is_slewed_is_followed_in_silence() -> None:
    times, moved = Times(), list[float]()
    watch = await watch_of(times, moved)
    with capture_logs() as logs:
        for _ in range(100):
            times.forward(10)
            times.wall.forward(0.005)
            await watch.check()
    assert (logs, moved) == ([], [])
    assert times.steady() == pytest.approx(times.wall())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("looked", ["before the step is noticed", "after it is noticed"])
async def test_a_delivery_is_tried_again_neither_early_nor_days_later(tmp_path: Path, step: float, looked: str) -> None:
    times = Times()
    async with serving(times.monotonic) as hook:
        hook.fails("s1")
        async with running(tmp_path / "b.db", times.steady, hook.url) as line:  # type: ignore[arg-type]  # a clock
            await line.tell(event(1))
            await line.parked(1)
            times.wall.forward(step)
            if looked.startswith("after"):
                await (await watch_of(times, [], line)).check()
                async with asyncio.timeout(60):
                    while (await line.lanes())[0].due_at != pytest.approx(NOON + 5 + step):
                        pass
            for second in range(4):
                times.forward(1)
                line.dispatcher.log_grew()
                await line.tell(event(100 + second, session="s2"))
                await hook.has_taken(100 + second)
            assert len(hook.of("s1")) == 1
            hook.recovers("s1")
            times.forward(1.01)
            line.dispatcher.log_grew()
            await hook.has_taken(1)
    assert [one.at for one in hook.arrivals if one.session == "s1"] == [1000.0, pytest.approx(1005.01)]


@pytest.mark.parametrize("step", STEPS)
async def test_the_clouds_time_stays_what_it_is_when_ours_is_set(tmp_path: Path, step: float) -> None:
    times, theirs = Times(), Clock(NOON + 1000)
    async with client(SimulatedCloud(clock=theirs), times.steady, tmp_path / "b.db") as (api, _, http):  # type: ignore[arg-type]  # a clock
        await api.session_page((), 1)
        assert api.now() == theirs.now
        watch = await watch_of(times, [], listeners=[http.clock_stepped])
        times.wall.forward(step)
        await watch.check()
        assert times.steady() == NOON + step
        assert api.now() == theirs.now


def known(name: str, **more: object) -> KnownSession:
    return KnownSession(session=DataSession(name, "g", NOON - 100.0, NOON - 50.0), **more)  # type: ignore[arg-type]  # a table


async def test_the_watchers_schedule_in_the_store_moves_along(tmp_path: Path) -> None:
    async with schedules(tmp_path) as (journal, store):
        one = known("a", fetch_at=NOON + 15.25, end_seen_at=NOON - 5.5)
        told = known("b", end_seen_at=NOON - 5.0, end_emitted=NOON - 50.0)
        await journal.commit(Changes(known=(one, told)))
        await store.move(-DAYS)
        after = await journal.known(["a", "b"])
        assert after["a"].fetch_at == NOON + 15.25 - DAYS
        assert after["a"].end_seen_at == NOON - 5.5 - DAYS
        assert after["b"] == told
        assert [one.session.id for one in await journal.due_fetches(NOON + 16 - DAYS, 9)] == ["a"]
        assert await journal.due_fetches(NOON + 15 - DAYS, 9) == []
        assert [one.session.id for one in await journal.overdue_ends(NOON - 5 - DAYS)] == ["a"]


async def test_what_lies_further_ahead_than_any_schedule_is_due_at_the_start(tmp_path: Path) -> None:
    async with schedules(tmp_path) as (journal, store):
        far = known("far", fetch_at=NOON + DAYS, end_seen_at=NOON + DAYS)
        near = known("near", fetch_at=NOON + 500, end_seen_at=NOON - 10)
        await journal.commit(Changes(known=(far, near)))
        assert await store.bound(now=NOON, furthest=600) == 1
        after = await journal.known(["far", "near"])
        assert (after["far"].fetch_at, after["far"].end_seen_at) == (NOON, NOON)
        assert after["near"] == near
        assert [one.session.id for one in await journal.due_fetches(NOON, 9)] == ["far"]


async def test_a_lane_that_rests_longer_than_any_schedule_allows_is_due(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        await EventLog(file).open_sink("a", target="t")
        await Journal(file).commit(Changes(events=tuple(event(number, f"s{number}") for number in range(3))))
        rests = {
            key: Lane(key, seq, 1, at, behind=True)
            for seq, (key, at) in enumerate([("s0", NOON + LONGEST_WAIT + 1), ("s1", NOON + 86400.0)], start=1)
        }
        await deliver(file, "a", waits=rests)
        await Schedules(file).bound(now=NOON, furthest=600)
        assert [one.due_at for one in await lanes_of(file, "a")] == [NOON, NOON + 86400.0]


@pytest.mark.parametrize("step", [DAYS, -DAYS])
async def test_the_whole_bridge_lives_through_a_step(tmp_path: Path, step: float) -> None:
    ahead = [0.0]
    cloud = SimulatedCloud()
    devices = [cloud.add_device(f"BaceGo-{one}") for one in range(2)]
    async with SimulatedServer(cloud) as server, serving(Clock()) as hook:
        config = load(configuration(tmp_path, cloud_url=server.url, hook_url=hook.url), {})
        bridge = Bridge(config, version="test", clock=lambda: time.time() + ahead[0])
        stop, states = asyncio.Event(), list[str]()
        with capture_logs() as logs:
            run = asyncio.create_task(bridge.run(stop, notify=states.append, watchdog=0.1))
            await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
            session = cloud.open_session(devices[0].id_group)
            await until(lambda: len(hook.arrivals) == 1, within=60, what="the start")
            ahead[0] = step
            await until(lambda: any(one["event"] == "clock.stepped" for one in logs), within=60, what="it is said")
            beats = states.count("WATCHDOG=1")
            cloud.end_session(session)
            cloud.finish_ingestion(session)
            cloud.open_session(devices[1].id_group)
            await until(lambda: len(hook.arrivals) == 4, within=60, what="what came after the step")
            await until(lambda: states.count("WATCHDOG=1") > beats + 3, within=60, what="the loops live")
            stop.set()
            await run
    assert sum(one["event"] == "clock.stepped" for one in logs) == 1
    async with SqliteFile(config.store.path) as file:
        told = [one.event for one in await EventLog(file).search(session=session)]
    assert [one.type for one in told] == ["session.started", "session.ended", "session.csv_ready"]
    assert hook.of(session) == [one.id for one in told]
    assert told[-1].observed_at == pytest.approx(time.time() + step, abs=60)
