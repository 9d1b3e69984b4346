"""Everything that runs, as one: the order of starting, the ticking, and the order of ending."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog

from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.errors import StoreError, StoreUnusable
from bace_bridge.status import Status

log = structlog.get_logger()

TICK = 10.0
COMMANDS_TICK = 1.0
"""Seconds until what a command beside the bridge has asked for is begun, at most."""

COUNTING_SHARE = 50.0
"""How many times longer than a count of the backlogs took nothing is counted."""

UPKEEP_PAUSE = 5.0
"""Seconds to the next piece of the store's upkeep where the store failed at one."""

GRACE = 5.0
"""Seconds that the end may take to deliver what is left in the log."""


class RunningSink(Protocol):
    @property
    def name(self) -> str: ...
    async def run(self) -> None: ...
    async def close(self) -> None: ...


class Loop(Protocol):
    async def run(self) -> None: ...
    def poll_now(self) -> None: ...


class Housekeeping(Protocol):
    async def backlogs(self) -> dict[str, int]: ...
    async def deliveries_waiting(self) -> dict[str, tuple[int, int]]: ...
    async def changed_elsewhere(self) -> bool: ...


class Upkeep(Protocol):
    @property
    def is_due(self) -> bool: ...
    async def piece(self, now: float) -> float: ...


class Service:
    """Runs the loops, the sinks and their dispatchers until it is told to stop.

    The order of ending: stop watching, deliver what is left for a short while, make durable how far that came, say
    goodbye to the sinks. Being cut off anywhere in it loses nothing; it only repeats deliveries.
    """

    def __init__(
        self,
        sessions: Loop,
        datapoints: Loop,
        status: Status,
        log_keeper: Housekeeping,
        upkeep: Upkeep,
        *,
        clock: Callable[[], float],
        watch_clock: Callable[[], Awaitable[None]],
        stale_devices: Callable[[], Awaitable[frozenset[str]]],
        oldest_view: Callable[[], Awaitable[float]],
    ) -> None:
        self.status = status
        self._sessions = sessions
        self._datapoints = datapoints
        self._log_keeper = log_keeper
        self._upkeep = upkeep
        self._upkeep_due = asyncio.Event()
        self._clock = clock
        self._watch_clock = watch_clock
        self._stale_devices = stale_devices
        self._oldest_view = oldest_view
        self._stale: frozenset[str] = frozenset()
        self._sinks: list[tuple[RunningSink, Dispatcher]] = []
        self._view_was_current: bool | None = None
        self._backlogs_after = 0.0

    def add(self, sink: RunningSink, dispatcher: Dispatcher) -> None:
        self._sinks.append((sink, dispatcher))
        self.status.dispatchers[sink.name] = dispatcher

    def poll_now(self) -> None:
        self._sessions.poll_now()

    def store_crowded(self) -> None:
        """The store is near its cap: upkeep does not wait for its hour."""
        self._upkeep_due.set()

    def after_poll(self) -> None:
        """A look at the session list has ended: there may be visits to make and a state to show."""
        self._datapoints.poll_now()
        current = self.status.view_is_current
        if current != self._view_was_current:
            self._view_was_current = current
            self._refresh_devices(None)
        self._refresh_bridge()

    async def run(self, stop: asyncio.Event, *, notify: Callable[[str], None], watchdog: float | None) -> None:
        async with asyncio.TaskGroup() as group:
            sinks = [group.create_task(sink.run()) for sink, _ in self._sinks]
            deliveries = [group.create_task(dispatcher.run()) for _, dispatcher in self._sinks]
            watching: list[Coroutine[Any, Any, None]] = [
                self._sessions.run(),
                self._datapoints.run(),
                self._tick(notify, watchdog),
                self._watch_commands(),
                keep_store(self._upkeep, self._upkeep_due, clock=self._clock),
            ]
            tasks = [group.create_task(one) for one in watching]
            log.info("bridge.running", sinks=len(self._sinks))
            notify("READY=1\nSTATUS=watching")
            await stop.wait()
            notify("STOPPING=1")
            log.info("bridge.stopping")
            await _cancel(tasks)
            await _cancel(deliveries)
            await asyncio.gather(*(dispatcher.finish(GRACE) for _, dispatcher in self._sinks))
            await asyncio.gather(*(sink.close() for sink, _ in self._sinks))
            await asyncio.gather(*(dispatcher.settle() for _, dispatcher in self._sinks))
            await _cancel(sinks)
        log.info("bridge.stopped")

    async def _tick(self, notify: Callable[[str], None], watchdog: float | None) -> None:
        while True:
            if watchdog is not None and not any(self.status.alive().values()):
                notify("WATCHDOG=1")
            await self._watch_clock()
            try:
                await self._count_backlogs()
                self.status.waiting = await self._log_keeper.deliveries_waiting()
                self.status.oldest_view = await self._oldest_view()
                self._refresh_stale(await self._stale_devices())
            except StoreUnusable:
                raise
            except StoreError as error:
                log.debug("store.no_backlogs", reason=str(error))
            if self._upkeep.is_due:
                self._upkeep_due.set()
            self._refresh_bridge()
            await asyncio.sleep(TICK if watchdog is None else min(TICK, watchdog))

    async def _count_backlogs(self) -> None:
        """Of millions of events for many sinks this takes seconds, in which deliveries wait: then it is rarely done."""
        begun = time.monotonic()
        if begun >= self._backlogs_after:
            self.status.backlogs = await self._log_keeper.backlogs()
            now = time.monotonic()
            self._backlogs_after = now + (now - begun) * COUNTING_SHARE

    async def _watch_commands(self) -> None:
        """A command, which runs beside the bridge, moves lanes."""
        while True:
            try:
                if await self._log_keeper.changed_elsewhere():
                    for _, dispatcher in self._sinks:
                        dispatcher.log_grew()
            except StoreUnusable:
                raise
            except StoreError as error:
                log.debug("store.not_watched", reason=str(error))
            await asyncio.sleep(COMMANDS_TICK)

    def _refresh_stale(self, stale: frozenset[str]) -> None:
        """A device becomes unavailable by nothing but time."""
        if turned := stale ^ self._stale:
            self._stale = stale
            self._refresh_devices(turned)

    def _refresh_devices(self, devices: frozenset[str] | None) -> None:
        for sink, _ in self._sinks:
            if (refresh := getattr(sink, "refresh_devices", None)) is not None:
                refresh(devices)

    def _refresh_bridge(self) -> None:
        for sink, _ in self._sinks:
            if (refresh := getattr(sink, "refresh_bridge", None)) is not None:
                refresh()


async def _pause(called: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await called.wait()
    except TimeoutError:
        pass


async def keep_store(
    upkeep: Upkeep,
    due: asyncio.Event,
    *,
    clock: Callable[[], float],
    pause: Callable[[asyncio.Event, float], Awaitable[None]] = _pause,
) -> None:
    """Piece after piece of the store's upkeep; `pause` ends when it is `due`, or after the seconds given."""
    while True:
        due.clear()
        try:
            rest = await upkeep.piece(clock())
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("store.upkeep_failed", reason=str(error))
            rest = UPKEEP_PAUSE
        await pause(due, rest)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
