"""The poll and a fetch of datapoints decide on the same data session at once: one waits for the other's commit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from bace_bridge.polling.rules.changes import Changes
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.polling_line import Clock, Watching, data, simulated, types, watching


class Gate:
    """Holds the next commit about data sessions that is asked for, just before the store gets it."""

    def __init__(self) -> None:
        self._holds: Callable[[Changes], bool] = lambda _: False
        self.reached, self._opened = asyncio.Event(), asyncio.Event()

    def hold(self, which: Callable[[Changes], bool] = lambda changes: bool(changes.known)) -> None:
        self._holds = which

    async def pass_through(self, changes: Changes) -> None:
        if self._holds(changes):
            self._holds = lambda _: False
            self.reached.set()
            await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


class HeldJournal(Journal):
    def __init__(self, file: SqliteFile, *, gate: Gate) -> None:
        super().__init__(file)
        self._gate = gate

    async def commit(self, changes: Changes) -> None:
        await self._gate.pass_through(changes)
        await super().commit(changes)


class WatchedLock(asyncio.Lock):
    """Says when somebody has to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = asyncio.Event()

    async def acquire(self) -> bool:  # type: ignore[override]  # typeshed says Literal[True]
        if self.locked():
            self.waited_for.set()
        return await super().acquire()


@asynccontextmanager
async def held(
    tmp_path: Path, cloud: SimulatedCloud, clock: Clock
) -> AsyncIterator[tuple[Watching, Gate, WatchedLock]]:
    gate, lock = Gate(), WatchedLock()
    given = watching(cloud, tmp_path / "b.db", clock, journal=partial(HeldJournal, gate=gate), deciding=lock)
    async with given as watch:
        yield watch, gate, lock


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def beside(first: asyncio.Task[None], second: asyncio.Task[None], lock: WatchedLock, gate: Gate) -> None:
    """`second` runs as far as it can while `first` is held before its commit."""
    waits = asyncio.ensure_future(lock.waited_for.wait())
    async with asyncio.timeout(60):
        await asyncio.wait({second, waits}, return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        gate.open()
        await asyncio.gather(first, second)


async def test_a_removal_that_is_found_while_the_end_is_published_comes_after_it(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with held(tmp_path, cloud, clock) as (watch, gate, lock):
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        clock.forward(61)
        cloud.end_session(session)
        await watch.list_poll.poll()
        cloud.remove_session(session)
        for _ in range(5):
            clock.forward(61)
            await watch.list_poll.poll()
        gate.hold()
        fetch = asyncio.create_task(watch.fetch_due())
        await gate.reached.wait()
        clock.forward(61)
        await beside(fetch, asyncio.create_task(watch.list_poll.poll()), lock, gate)
        await watch.poll_for(200)
        reported = types(await watch.all_events())
    assert reported == ["session.started", "session.ended", "session.removed"]


async def test_an_end_that_is_taken_back_while_it_is_about_to_be_published(clock: Clock, tmp_path: Path) -> None:
    """Either the end is published and then that it was reopened, or neither."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with held(tmp_path, cloud, clock) as (watch, gate, lock):
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        clock.forward(15)
        cloud.end_session(session)
        await watch.list_poll.poll()
        clock.forward(1)
        cloud.change(session, end=None, is_ingestion_finished=False)
        gate.hold()
        poll = asyncio.create_task(watch.list_poll.poll())
        await gate.reached.wait()
        await beside(poll, asyncio.create_task(watch.fetch_due()), lock, gate)
        for _ in range(3):
            clock.forward(61)
            await watch.poll()
        reported = types(await watch.all_events())
    assert reported in (["session.started"], ["session.started", "session.ended", "session.reopened"])


async def test_a_removal_that_is_about_to_be_published_forgets_nothing(clock: Clock, tmp_path: Path) -> None:
    """The session is seen again later: its CSV's revisions go on."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with held(tmp_path, cloud, clock) as (watch, gate, lock):
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        clock.forward(61)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        await watch.list_poll.poll()
        faults = watch.server.faults
        faults.answer("/api/v2/data-session/view", status=404, body='{"name":"Not Found","status":404}', times=30)
        faults.answer("/api/v2/data-session", status=200, body='{"items":[]}', times=30, holding="[updated_at]")
        clock.forward(900)
        for _ in range(5):
            await watch.list_poll.poll()
            clock.forward(61)
        gate.hold(lambda changes: any(one.type == "session.removed" for one in changes.events))
        poll = asyncio.create_task(watch.list_poll.poll())
        await gate.reached.wait()
        await beside(poll, asyncio.create_task(watch.fetch_due()), lock, gate)
        faults.waiting.clear()
        cloud.add_points(session, device.series[0].id_container_data_latest, [(clock.now - 1000, 1.0)])
        for _ in range(3):
            clock.forward(61)
            await watch.poll()
        reported = [one for one in await watch.all_events() if one.event.session_id == session]
    assert "session.removed" in types(reported)
    revisions = [data(one)["csv"]["revision"] for one in reported if one.event.type == "session.csv_ready"]
    assert revisions == list(range(len(revisions)))
    assert revisions
