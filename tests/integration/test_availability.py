"""Whether a device is shown as available: its view has to be current, and nothing but time makes it an old one."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import SecretStr

from bace_bridge.app.account import Account
from bace_bridge.app.running import ClockWatch, Running, Signals, SteadyClock
from bace_bridge.app.service import Service
from bace_bridge.app.storage import Devices, Storage
from bace_bridge.config.models import CloudConfig, Config, WatchConfig
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.events.types import Filter
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.polling_line import NOON, Clock
from tests.integration.test_cloud_faults import staged
from tests.integration.test_dispatcher import ScriptedSink, eventually

INTERVAL = 15.0
CONFIG = Config(cloud=CloudConfig(access_token=SecretStr("a-token")), watch=WatchConfig(datapoint_interval=INTERVAL))


class Broker(ScriptedSink):
    """A sink that shows devices."""

    problem: str | None = None
    state_problem: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.refreshed: list[Collection[str] | None] = []

    def refresh(self, ids: Collection[str] | None = ()) -> None:
        self.refreshed.append(ids)


@asynccontextmanager
async def ticking(folder: Path) -> AsyncIterator[tuple[Broker, DeviceStates, Journal, Clock]]:
    async with staged(folder) as (_, watched), SqliteFile(folder / "state.db") as file, asyncio.TaskGroup() as group:
        clock, broker, signals = Clock(), Broker(), Signals()
        store = Storage(file, CONFIG, signals, clock=clock)
        await store.event_log.open_sink(broker.name, target="t")
        outlet = Outlet(
            "mqtt",
            broker,
            store.event_log,
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
        devices = Devices(store.device_states, changed=outlets.each(Outlet.refresh))
        clock_watch = ClockWatch(
            SteadyClock(), deciding=asyncio.Lock(), move_store=store.schedules.move, stepped=signals.clock_stepped
        )
        service = Service(accounts, outlets, watched.status, devices, store, clock_watch, signals, clock=clock)
        stop = asyncio.Event()
        run = group.create_task(service.run(stop, asyncio.sleep(0), notify=lambda _: None, watchdog=0.01))
        yield broker, store.device_states, Journal(file), clock
        stop.set()
        await run


async def test_a_device_is_shown_anew_when_its_view_is_no_longer_current(tmp_path: Path) -> None:
    async with ticking(tmp_path) as (broker, device_states, journal, clock):
        known = [
            KnownSession(session=DataSession(f"s{one}", f"g{one}", NOON), fetched_at=NOON + 10 * one)
            for one in range(2)
        ]
        await journal.commit(Changes(known=tuple(known)))
        await asyncio.sleep(0)
        assert broker.refreshed == []
        clock.forward(3 * INTERVAL)
        await eventually(lambda: broker.refreshed == [{"g0"}])
        states = await device_states.devices(["g0", "g1"], available=True)
        assert [one.available for one in states] == [False, True]
        clock.forward(10)
        await eventually(lambda: broker.refreshed == [{"g0"}, {"g1"}])
