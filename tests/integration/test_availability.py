"""Whether a device is shown as available: its view has to be current, and nothing but time makes it an old one."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from bace_bridge.app.account import Account
from bace_bridge.app.clocks import ClockWatch, SteadyClock
from bace_bridge.app.devices import Devices
from bace_bridge.app.running import Running
from bace_bridge.app.service import Service
from bace_bridge.app.signals import Signals
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.domain.routing import Filter
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.schedules import Schedules
from bace_bridge.store.sqlite import SqliteFile
from bace_bridge.store.standing import Standing
from tests.integration.polling_line import NOON, Clock
from tests.integration.test_cloud_faults import staged
from tests.integration.test_dispatcher import ScriptedSink, eventually

INTERVAL = 15.0


class Broker(ScriptedSink):
    """A sink that shows devices."""

    problem = None

    def __init__(self) -> None:
        super().__init__()
        self.refreshed: list[Collection[str] | None] = []

    def refresh_devices(self, ids: Collection[str] | None) -> None:
        self.refreshed.append(ids)

    def refresh_bridge(self) -> None: ...


@asynccontextmanager
async def ticking(folder: Path) -> AsyncIterator[tuple[Broker, Standing, Journal, Clock]]:
    async with staged(folder) as (_, watched), SqliteFile(folder / "state.db") as file, asyncio.TaskGroup() as group:
        clock, broker, signals, log = Clock(), Broker(), Signals(), EventLog(file)
        await log.open_sink(broker.name, target="t")
        outlet = Outlet(
            "mqtt",
            broker,
            log,
            Filter(),
            broker=broker,
            grew=signals.log_grew,
            changed=lambda: None,
            clock=clock,
            monotonic=clock,
            jitter=lambda: 0.0,
        )
        accounts, outlets = Running[str, Account](group), Running[str, Outlet](group)
        outlets.start("home", outlet)
        standing = Standing(file, csv_url=str, fetch_interval=INTERVAL, clock=clock)
        devices = Devices(standing, accounts, changed=outlets.each(Outlet.refresh_devices))
        clock_watch = ClockWatch(
            SteadyClock(), deciding=asyncio.Lock(), move_store=Schedules(file).move, stepped=signals.clock_stepped
        )
        upkeep = Upkeep(file, log, Cap(file, 2**30), retention=60, session_retention=60)
        service = Service(
            accounts,
            outlets,
            watched.status,
            devices,
            log,
            upkeep,
            asyncio.Event(),
            clock_watch,
            signals,
            clock=clock,
        )
        stop = asyncio.Event()
        run = group.create_task(service.run(stop, notify=lambda _: None, watchdog=0.01))
        yield broker, standing, Journal(file), clock
        stop.set()
        await run


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
