"""Whether a device is shown as available: its view has to be current, and nothing but time makes it an old one."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from bace_bridge.app.service import Service
from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.domain.routing import Filter
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from bace_bridge.store.standing import Standing
from tests.integration.polling_line import NOON, Clock
from tests.integration.test_cloud_faults import staged
from tests.integration.test_dispatcher import ScriptedSink, eventually

INTERVAL = 15.0


async def disabled(name: str, reason: str) -> None: ...


class Idle:
    async def run(self) -> None:
        await asyncio.Event().wait()

    def poll_now(self) -> None: ...


class Broker(ScriptedSink):
    """A sink that shows devices."""

    def __init__(self) -> None:
        super().__init__()
        self.refreshed: list[Collection[str] | None] = []

    def refresh_devices(self, devices: Collection[str] | None) -> None:
        self.refreshed.append(devices)


@asynccontextmanager
async def ticking(folder: Path) -> AsyncIterator[tuple[Broker, Standing, Journal, Clock]]:
    async with staged(folder) as (_, watched), SqliteFile(folder / "state.db") as file:
        clock, broker = Clock(), Broker()
        upkeep = Upkeep(file, EventLog(file), Cap(file, 2**30), retention=60, session_retention=60)
        standing = Standing(file, csv_url=str, fetch_interval=INTERVAL, clock=clock)
        service = Service(
            Idle(),
            Idle(),
            watched.status,
            EventLog(file),
            upkeep,
            clock=clock,
            watch_clock=lambda: asyncio.sleep(0),
            stale_devices=standing.stale,
            oldest_view=standing.oldest_view,
        )
        await EventLog(file).open_sink(broker.name, target="t")
        dispatcher = Dispatcher(
            broker,
            EventLog(file),
            Filter(),
            clock=clock,
            jitter=lambda: 0.0,
            sleep=lambda _: asyncio.sleep(0),
            on_disabled=disabled,
        )
        service.add(broker, dispatcher)
        run = asyncio.create_task(service.run(asyncio.Event(), notify=lambda _: None, watchdog=0.01))
        try:
            yield broker, standing, Journal(file), clock
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


async def test_a_device_is_shown_anew_when_its_view_is_no_longer_current(tmp_path: Path) -> None:
    async with ticking(tmp_path) as (broker, standing, journal, clock):
        known = [
            KnownSession(session=DataSession(f"s{one}", f"g{one}", NOON), fetched_at=NOON + 10 * one)
            for one in range(2)
        ]
        await journal.commit(Changes(known=tuple(known)))
        await asyncio.sleep(0)
        assert broker.refreshed == []
        clock.forward(3 * INTERVAL)
        await eventually(lambda: broker.refreshed == [{"g0"}])
        states = await standing.devices(["g0", "g1"], available=True)
        assert [one.available for one in states] == [False, True]
        clock.forward(10)
        await eventually(lambda: broker.refreshed == [{"g0"}, {"g1"}])
