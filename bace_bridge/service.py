"""Everything that runs, as one: the order of starting, the ticking, and the order of ending."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog

from bace_bridge.dispatcher import Dispatcher
from bace_bridge.errors import StoreError, StoreUnusable
from bace_bridge.status import Status

log = structlog.get_logger()

TICK = 10.0
PRUNE_EVERY = 3600.0
PRUNE_AGAIN = 0.1
"""Seconds to the next piece while there is more to prune: short transactions let others in between."""

GRACE = 5.0
"""Seconds that the end may take to deliver what is left in the log."""


class RunningSink(Protocol):
    async def run(self) -> None: ...
    async def close(self) -> None: ...


class Loop(Protocol):
    async def run(self) -> None: ...
    def look_now(self) -> None: ...


class Housekeeping(Protocol):
    async def prune(self, *, observed_before: float) -> int: ...
    async def backlogs(self) -> dict[str, int]: ...


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
        *,
        retention: float,
        clock: Callable[[], float],
        watch_clock: Callable[[], Awaitable[None]],
    ) -> None:
        self.status = status
        self._sessions = sessions
        self._datapoints = datapoints
        self._log_keeper = log_keeper
        self._retention = retention
        self._clock = clock
        self._watch_clock = watch_clock
        self._sinks: list[tuple[RunningSink, Dispatcher]] = []
        self._view_was_current: bool | None = None

    def add(self, sink: RunningSink, dispatcher: Dispatcher) -> None:
        self._sinks.append((sink, dispatcher))

    def look_now(self) -> None:
        self._sessions.look_now()

    def after_look(self) -> None:
        """A look at the session list has ended: there may be visits to make and a state to show."""
        self._datapoints.look_now()
        current = self.status.view_is_current
        if current != self._view_was_current:
            self._view_was_current = current
            for sink, _ in self._sinks:
                if (refresh := getattr(sink, "refresh_devices", None)) is not None:
                    refresh(None)
        self._refresh_bridge()

    async def run(self, stop: asyncio.Event, *, notify: Callable[[str], None], watchdog: float | None) -> None:
        async with asyncio.TaskGroup() as group:
            sinks = [group.create_task(sink.run()) for sink, _ in self._sinks]
            deliveries = [group.create_task(dispatcher.run()) for _, dispatcher in self._sinks]
            watching: list[Coroutine[Any, Any, None]] = [
                self._sessions.run(),
                self._datapoints.run(),
                self._tick(notify, watchdog),
                self._prune(),
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
                self.status.backlogs = await self._log_keeper.backlogs()
            except StoreUnusable:
                raise
            except StoreError as error:
                log.debug("store.no_backlogs", reason=str(error))
            self._refresh_bridge()
            await asyncio.sleep(TICK if watchdog is None else min(TICK, watchdog))

    async def _prune(self) -> None:
        while True:
            try:
                pruned = await self._log_keeper.prune(observed_before=self._clock() - self._retention)
            except StoreUnusable:
                raise
            except StoreError as error:
                log.debug("store.not_pruned", reason=str(error))
                pruned = 0
            await asyncio.sleep(PRUNE_AGAIN if pruned else PRUNE_EVERY)

    def _refresh_bridge(self) -> None:
        for sink, _ in self._sinks:
            if (refresh := getattr(sink, "refresh_bridge", None)) is not None:
                refresh()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
