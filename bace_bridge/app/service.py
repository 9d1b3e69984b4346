"""The service: ticks, upkeep, commands and the order of ending; systemd is notified (sd_notify)."""

import asyncio
import contextlib
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import structlog

from bace_bridge.app.running import ClockWatch, Running, Signals
from bace_bridge.app.storage import Devices, Storage
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.errors import StoreError, StoreUnusable
from bace_bridge.status.health import Status
from bace_bridge.store.housekeeping import Upkeep
from bace_bridge.waiting import pause_until

EXTEND_EVERY = 10.0
"""Seconds between two requests for more time; a start that is as short as usual makes none."""

EXTEND_BY = 60
"""Seconds that are asked for each time."""


def notify(state: str, *, address: str | None) -> None:
    """Sends a state such as `READY=1` to NOTIFY_SOCKET; does nothing where there is no service manager.

    It never blocks and never fails: a manager that cannot be reached will miss the watchdog's sign soon enough.
    """
    if not address:
        return
    # systemd writes an abstract socket, which has no file, with @ in the place of the zero byte.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # A manager that does not read must not hold up the loop.
            sender.setblocking(False)
            sender.sendto(state.encode(), target)
    except OSError as error:
        structlog.get_logger().warning("systemd.not_notified", state=state, reason=error.strerror or str(error))


def watchdog_interval(env: Mapping[str, str]) -> float | None:
    """Seconds between two `WATCHDOG=1`, half of what systemd allows; None where no watchdog waits for us."""
    allowed, whose = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    # A child inherits the variables; WATCHDOG_PID says which process they are for.
    if not re.fullmatch(r"[0-9]{1,18}", allowed) or int(allowed) == 0 or (whose and whose != str(os.getpid())):
        return None
    return int(allowed) / 2_000_000


@contextlib.asynccontextmanager
async def long_start(
    notify: Callable[[str], None], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[None]:
    """Asks the manager for more time, over and over, as long as the body takes: a large store may be migrated in it."""

    async def ask() -> None:
        while True:
            await sleep(EXTEND_EVERY)
            notify(f"EXTEND_TIMEOUT_USEC={EXTEND_BY * 1_000_000}\nSTATUS=opening the store")

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


log = structlog.get_logger()

TICK = 10.0
COMMANDS_TICK = 1.0
"""Seconds until what a command beside the bridge has asked for is begun, at most."""

COUNTING_SHARE = 50.0
"""How many times longer than a count of the backlogs took nothing is counted."""

UPKEEP_PAUSE = 5.0
"""Seconds to the next piece of the store's upkeep where the store failed at one."""


@dataclass(eq=False)
class Service:
    """Ticks, keeps the store small and watches for commands, until it is stopped; then everything ends in order.

    That is: stop polling, then each outlet delivers what is left for a short while, makes durable how far that came,
    and says goodbye. Being cut off anywhere in it loses nothing; it only repeats deliveries.
    """

    accounts: Running[Any, Any]
    outlets: Running[Any, Outlet]
    status: Status
    devices: Devices
    store: Storage
    clock_watch: ClockWatch
    signals: Signals
    _: KW_ONLY
    clock: Callable[[], float]
    _backlogs_after: float = 0.0

    async def run(
        self,
        stop: asyncio.Event,
        reloading: Coroutine[Any, Any, None],
        *,
        notify: Callable[[str], None],
        watchdog: float | None,
    ) -> None:
        """`reloading` runs until `stop`, too."""
        async with asyncio.TaskGroup() as group:
            beside = [
                reloading,
                self._tick(notify, watchdog),
                self._watch_commands(),
                keep_store(self.store.upkeep, self.store.upkeep_due, clock=self.clock),
            ]
            tasks = [group.create_task(one) for one in beside]
            notify("READY=1\nSTATUS=watching")
            await stop.wait()
            notify("STOPPING=1")
            log.info("bridge.stopping")
            # First what begins new work: a reload in the middle of the end would start parts again.
            for task in tasks:
                task.cancel()
            # A reload may be cut off anywhere: the next start reads the file, and begins it again.
            await asyncio.gather(*tasks, return_exceptions=True)
            # Polling ends first, so the last events are in the log before the outlets deliver what is left. The other
            # way round they would wait for the next start. The store, which both need, is closed by who opened it.
            await self.accounts.end()
            await self.outlets.end()
        log.info("bridge.stopped")

    async def _tick(self, notify: Callable[[str], None], watchdog: float | None) -> None:
        while True:
            # Only a loop that stands still withholds the sign: a restart brings back no cloud or broker that is away.
            if watchdog is not None and not any(self.status.alive().values()):
                notify("WATCHDOG=1")
            # Before anything that compares times: a step of the clock makes all of them wrong at once.
            await self.clock_watch.check()
            try:
                await self._count()
                await self.devices.refresh()
            except StoreUnusable:
                raise
            except StoreError as error:  # whoever writes reports it; counts are only late
                log.debug("store.not_counted", reason=str(error))
            if self.store.upkeep.is_due:
                self.store.upkeep_due.set()
            self.signals.status_changed()
            await asyncio.sleep(TICK if watchdog is None else min(TICK, watchdog))

    async def _count(self) -> None:
        """Of millions of events for many sinks this takes seconds, in which deliveries wait: then it is rarely done."""
        begun = time.monotonic()
        backlogs = begun >= self._backlogs_after
        for one in tuple(self.outlets):
            await one.count(backlog=backlogs)
        if backlogs:
            now = time.monotonic()
            # A share of the time and not an interval: the larger the backlog, the more deliveries a count holds up.
            self._backlogs_after = now + (now - begun) * COUNTING_SHARE

    async def _watch_commands(self) -> None:
        """A command, which runs beside the bridge, moves lanes, or rotates the key of CSV links."""
        changed = False
        while True:
            try:
                # Remembered until all of it is done: the store answers once, and may be busy right after it.
                changed = await self.store.file.changed_elsewhere() or changed
                if changed:
                    self.signals.log_grew()
                    await self.store.load_signing_keys()
                    changed = False
            except StoreUnusable:
                raise
            except StoreError as error:
                log.debug("store.not_watched", reason=str(error))
            await asyncio.sleep(COMMANDS_TICK)


async def keep_store(
    upkeep: Upkeep,
    due: asyncio.Event,
    *,
    clock: Callable[[], float],
    pause: Callable[[asyncio.Event, float], Awaitable[None]] = pause_until,
) -> None:
    """Piece after piece of the store's upkeep; `pause` ends when it is `due`, or after the seconds given."""
    while True:
        # Cleared before the piece: what becomes due while it runs is seen after it.
        due.clear()
        try:
            rest = await upkeep.piece(clock())
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("store.upkeep_failed", reason=str(error))
            rest = UPKEEP_PAUSE
        await pause(due, rest)
