"""The composition root: builds every part over one store, and runs them together."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from bace_bridge.app.account import Account, AccountBuilder, AccountConfig
from bace_bridge.app.outlets import OutletBuilder, OutletConfig, outlet_config
from bace_bridge.app.running import Clocks, ClockWatch, Reloads, Running, Signals, SteadyClock, task_group
from bace_bridge.app.service import Service, long_start
from bace_bridge.app.storage import Devices, Storage, installation_name
from bace_bridge.config.models import Config, HttpConfig
from bace_bridge.config.values import secrets_of
from bace_bridge.csv.serving import CsvServer
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.polling.rules.fetches import SLOWEST_FETCH
from bace_bridge.redaction import Redaction
from bace_bridge.status.health import Check, Reasons, Status
from bace_bridge.status.server import HealthServer
from bace_bridge.store.facts import Facts, Schedules
from bace_bridge.store.sqlite import SqliteFile

log = structlog.get_logger()


class Bridge:
    """A configuration, running. `run` returns after `stop`; raises StoreLocked, StoreUnusable or ConfigError."""

    def __init__(
        self,
        config: Config,
        *,
        version: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        config_check: Reasons = dict,
    ) -> None:
        self.reloads = Reloads(config)
        self._clocks = Clocks(clock, SteadyClock(clock, monotonic), monotonic)
        self._config_check = config_check
        self._version = version

    async def run(self, stop: asyncio.Event, *, notify: Callable[[str], None], watchdog: float | None) -> None:
        config = self.reloads.config
        async with AsyncExitStack() as stack:
            # First the store, whose lock keeps a second bridge away, then the sinks with their places in the log, then
            # polling. The stack ends it the other way round: whatever writes has ended before the store closes.
            async with long_start(notify):
                file = await stack.enter_async_context(SqliteFile(config.store.path))
                furthest = max(SLOWEST_FETCH, config.watch.datapoint_interval)
                # The clock may have been set back while nothing ran.
                if sessions := await Schedules(file).bound(now=self._clocks.steady(), furthest=furthest):
                    then = "retries that were scheduled too far ahead are due now"
                    log.warning("clock.was_behind", sessions=sessions, then=then)
                home = _Home(
                    config,
                    file,
                    await stack.enter_async_context(task_group()),
                    await Facts(file).installation(installation_name(config)),
                    config_check=self._config_check,
                    clocks=self._clocks,
                    version=self._version,
                )
                await home.become(config)
            await home.service.run(stop, self.reloads.serve(home.become), notify=notify, watchdog=watchdog)
            # Health answers to the last: who watches the end sees it.
            await home.servers.end()

    def may_become(self, config: Config) -> bool:
        """False where a new Bridge is needed: events and device states are those of one cloud, in one store."""
        present = self.reloads.config
        # Another cloud has other sessions under the same ids, perhaps: nothing of one must be compared with the other.
        return (config.store.url, config.cloud.url) == (present.store.url, present.cloud.url)


class _Home:
    """What stays while configurations come and go, and what runs by the present one."""

    def __init__(
        self,
        config: Config,
        file: SqliteFile,
        group: asyncio.TaskGroup,
        installation: str,
        *,
        config_check: Reasons,
        clocks: Clocks,
        version: str,
    ) -> None:
        self.signals = signals = Signals()
        deciding, clock = asyncio.Lock(), clocks.steady
        self.accounts = accounts = Running[AccountConfig, Account](group)
        self.outlets = outlets = Running[OutletConfig, Outlet](group)
        self.servers = Running[HttpConfig, HealthServer](group)
        self.redaction = redaction = Redaction()
        self.store = store = Storage(file, config, signals, clock=clock, wall=clocks.wall)
        devices = Devices(store.device_states, changed=signals.devices_changed, period=store.links.period)
        self.csv = CsvServer(store.links, store.journal.known, lambda: next((one.csv for one in accounts), None))
        begun = Check(ready=lambda: {"cloud": None if any(accounts) else "not asked yet"})
        kept = Check(ready=lambda: {"store": store.upkeep.problem}, degraded=config_check)
        self.status = status = Status(
            [begun, kept], accounts, outlets, store.upkeep.figures, devices, version, installation, clock()
        )
        self.account_builder = AccountBuilder(store, deciding, signals.list_polled, redaction, clocks, version)
        poll_now = accounts.each(lambda one: one.sessions.poll_now())
        self.outlet_builder = OutletBuilder(store, devices, status, outlets, poll_now, signals, redaction, clocks)
        watch = ClockWatch(clock, deciding=deciding, move_store=store.schedules.move, stepped=signals.clock_stepped)
        self.service = Service(accounts, outlets, status, devices, store, watch, signals, clock=clock)

        # In this order they are called: a device's availability is known before the topics that show it are written.
        signals.log_grew.listen(outlets.each(lambda one: one.dispatcher.log_grew()))
        signals.devices_changed.listen(outlets.each(Outlet.refresh))
        # Without any account, as in the middle of a reload, nothing is known to be wrong.
        signals.list_polled.listen(lambda: devices.polled(all(one.view_is_current for one in accounts)))
        signals.list_polled.listen(outlets.each(Outlet.refresh))
        signals.status_changed.listen(outlets.each(Outlet.refresh))
        signals.clock_stepped.listen(accounts.each(Account.clock_stepped))
        signals.clock_stepped.listen(outlets.each(lambda one, seconds: one.dispatcher.clock_stepped(seconds)))

    async def become(self, config: Config) -> None:
        """Starts what is new in the configuration and ends what left it. Raises ConfigError or StoreError."""
        # Before anything can fail: what other sides say of the new secrets may be in the first error.
        self.redaction.learn(secrets_of(config))
        for http in await self.servers.keep([config.http] if config.http.enabled else []):
            server = HealthServer(
                http,
                alive=self.status.alive,
                ready=self.status.ready,
                degraded=self.status.degraded,
                csv=self.csv.answer,
            )
            await server.open()
            self.servers.start(http, server)
        # The listener may have refused the configuration: only from here on something else changes.
        self.store.adjust(config)
        await self.store.load_signing_keys()
        self.outlet_builder.adjust(config.datatypes)
        new = await self.outlets.keep([outlet_config(sink, config.cloud.url) for sink in config.sinks])
        await self.store.event_log.retire_others([sink.name for sink in config.sinks])
        # Each sink has its place in the log before anything is polled, so that it misses nothing.
        for one in new:
            self.outlets.start(one, await self.outlet_builder.open(one))
        self.signals.status_changed()  # which sinks there are
        for account in await self.accounts.keep([AccountConfig(config.cloud, config.watch, config.datatypes)]):
            self.accounts.start(account, self.account_builder.build(account))
        log.info("bridge.running", sinks=sum(one.disabled is None for one in self.outlets), started=len(new))
