"""A sink with its dispatcher, and its health: what became of the deliveries, for the log and for `readyz`."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

import structlog

from bace_bridge.delivery import dispatcher
from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.events.types import SINK_DISABLED, Attempt, Event, Filter, bridge_event
from bace_bridge.formats import iso_utc
from bace_bridge.retry import FAILURES_UNTIL_REPORTED
from bace_bridge.sinks.api import Broker, Sink

log = structlog.get_logger()


class SinkWatch:
    """What became of the last attempts: for the log, where an outage begins and ends, and for health."""

    def __init__(self, kind: str, name: str, *, clock: Callable[[], float]) -> None:
        self.name = f"{kind}:{name}"
        self._failing, self._recovered = f"{kind}.failing", f"{kind}.recovered"
        self._sink = name
        self._clock = clock
        self._last_success_at: float | None = None
        self._failures = 0
        self._failing_since = 0.0
        self._last_failure: str | None = None

    def attempted(self, error: Exception | None, then: str = "") -> None:
        """An attempt has succeeded, or failed; `then` says what follows."""
        now, before = self._clock(), self._failures
        if error is None:
            if before >= FAILURES_UNTIL_REPORTED:
                after = round(now - self._failing_since, 1)
                log.info(self._recovered, sink=self._sink, after=after, failures=before)
            self._last_success_at, self._failures, self._last_failure = now, 0, None
            return
        if not before:
            self._failing_since = now
        self._failures, self._last_failure = before + 1, str(error)
        if self._failures == FAILURES_UNTIL_REPORTED:
            log.warning(self._failing, sink=self._sink, reason=self._last_failure, then=then)

    @property
    def problem(self) -> str | None:
        """Why the last attempts failed, as long as none has succeeded since; without secrets."""
        if self._failures < FAILURES_UNTIL_REPORTED:
            return None
        return f"{self._failures} failed attempts in a row: {self._last_failure}"

    def state(self) -> dict[str, Any]:
        return {
            "last_success_at": None if self._last_success_at is None else iso_utc(self._last_success_at),
            "failures_in_a_row": self._failures,
            "last_failure": self._last_failure,
        }


GRACE = 5.0
"""Seconds that the end may take to deliver what is left in the log."""


class Log(dispatcher.Log, Protocol):
    async def disable(self, sink: str, reason: str, announcement: Event) -> None: ...
    async def backlog(self, sink: str) -> int: ...
    async def waiting(self, sink: str) -> tuple[int, int]: ...


class Outlet:
    """Delivers to one sink until it is stopped, and answers for it.

    `disabled` is why the sink must not be called, by what is known at the start; `grew` is called after the outlet
    itself has added to the log, `changed` when its backlog has come to its end. `prepared` makes an attempt into what
    the sink gets: what is no part of the log is added last.
    """

    def __init__(
        self,
        kind: str,
        sink: Sink,
        event_log: Log,
        filter_: Filter,
        *,
        broker: Broker | None = None,
        disabled: str | None = None,
        grew: Callable[[], None],
        changed: Callable[[], None],
        prepared: Callable[[Attempt], Attempt] = lambda attempt: attempt,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = sink.name
        self.disabled = disabled
        self.backlog: int | None = None
        self.parked = self.dead_letters = 0
        self._sink = sink
        self._log = event_log
        self._broker = broker
        self._grew, self._changed = grew, changed
        self._clock, self._monotonic = clock, monotonic
        self._watch = SinkWatch(kind, sink.name, clock=clock)
        self.state = self._watch.state
        self.dispatcher = Dispatcher(
            sink,
            event_log,
            filter_,
            prepared=prepared,
            clock=clock,
            jitter=jitter,
            sleep=sleep,
            on_disabled=self._disable,
            on_emitted=grew,
            on_attempt=self._watch.attempted,
            on_emptied=self._emptied,
            monotonic=monotonic,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Delivers until `stop`; then what is left for a short while, makes that durable, and says goodbye.

        Being cut off anywhere loses nothing; it only repeats deliveries.
        """
        if self.disabled is not None:
            await stop.wait()
            return
        # The order of the end: stop taking lanes, deliver what was begun, let the sink say goodbye (a broker gets
        # DISCONNECT, or it would publish the last will), record its last acknowledgements, and only then cut it off.
        async with asyncio.TaskGroup() as group:
            sink = group.create_task(self._sink.run())
            delivering = group.create_task(self.dispatcher.run())
            await stop.wait()
            await _cancel(delivering)
            await self.dispatcher.finish(GRACE)
            await self._sink.close()
            await self.dispatcher.settle()
            await _cancel(sink)

    @property
    def usable(self) -> bool:
        """False while its broker is away or refuses the login."""
        return self._broker is None or self._broker.problem is None

    def refresh(self, ids: Collection[str] | None = ()) -> None:
        """How the bridge and these devices stand may have changed; None: all of them."""
        if self._broker is not None:
            self._broker.refresh(ids)

    async def count(self, *, backlog: bool) -> None:
        """What waits; the backlog, which takes seconds of millions of events, only where asked. Raises StoreError."""
        if backlog:
            self.backlog = await self._log.backlog(self.name) if self.disabled is None else None
        self.parked, self.dead_letters = await self._log.waiting(self.name)

    def silent_for(self) -> dict[str, float]:
        """Seconds since its loop made progress; negative while it may stand still."""
        silent = self._monotonic() - self.dispatcher.beat_at
        return {} if self.disabled is not None else {f"deliveries:{self.name}": silent}

    def ready(self) -> dict[str, str | None]:
        """Why its broker cannot be used; None where it can. A webhook shows that at a delivery only."""
        return {} if self._broker is None else {self._watch.name: self._broker.problem}

    def degraded(self) -> dict[str, str | None]:
        """What is wrong while the bridge as a whole works."""
        found = {self._watch.name: self._watch.problem if self.disabled is None else f"disabled: {self.disabled}"}
        if self._broker is not None and self._broker.problem is None:
            found[f"retained:{self.name}"] = self._broker.state_problem
        return found

    def _emptied(self) -> None:
        """Everything is delivered: health says so at once, and not after the next count."""
        if self.backlog:
            self.backlog = 0
            self._changed()

    async def _disable(self, name: str, reason: str) -> None:
        now = self._clock()
        # In memory first: while the store cannot be written to, health must not call the sink a healthy one.
        self.disabled = reason
        data = {"sink": name, "reason": reason, "observed_at": iso_utc(now)}
        announcement = bridge_event(SINK_DISABLED, at=now, facts=(name, now), data=data)
        await self._log.disable(name, reason, announcement)
        log.error(SINK_DISABLED, sink=name, reason=reason)
        self._grew()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
