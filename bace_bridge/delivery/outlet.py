"""A sink with its dispatcher, and its health: what became of the deliveries, for the log and for `readyz`."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Literal, Protocol

import msgspec
import structlog

from bace_bridge.delivery import dispatcher
from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.events.types import SINK_DISABLED, Attempt, Event, Filter, bridge_event
from bace_bridge.formats import iso_utc
from bace_bridge.retry import FAILURES_UNTIL_REPORTED
from bace_bridge.sinks.api import Broker, Sink

log = structlog.get_logger()


class Reception(msgspec.Struct, frozen=True):
    """`problem` is why the last attempt failed, without secrets; None where it did not. Times are epoch seconds."""

    last_success_at: float | None = None
    failures: int = 0
    failing_since: float | None = None
    problem: str | None = None

    @property
    def failing(self) -> bool:
        return self.failures >= FAILURES_UNTIL_REPORTED


def after_attempt(
    before: Reception, problem: str | None, *, now: float
) -> tuple[Reception, Literal["failing", "recovered"] | None]:
    if problem is None:
        return Reception(last_success_at=now), "recovered" if before.failing else None
    since = now if before.failing_since is None else before.failing_since
    after = Reception(before.last_success_at, before.failures + 1, since, problem)
    return after, "failing" if after.failing and not before.failing else None


class SinkWatch:
    def __init__(self, kind: str, name: str, *, clock: Callable[[], float]) -> None:
        self.name = f"{kind}:{name}"
        self._failing, self._recovered = f"{kind}.failing", f"{kind}.recovered"
        self._sink = name
        self._clock = clock
        self._reception = Reception()

    def attempted(self, error: Exception | None, then: str = "") -> None:
        """An attempt has succeeded, or failed; `then` says what follows."""
        before, problem = self._reception, None if error is None else str(error)
        self._reception, news = after_attempt(before, problem, now=self._clock())
        if news == "failing":
            log.warning(self._failing, sink=self._sink, reason=problem, then=then)
        elif news == "recovered":
            seconds = None if before.failing_since is None else round(self._clock() - before.failing_since, 1)
            log.info(self._recovered, sink=self._sink, after=seconds, failures=before.failures)

    @property
    def problem(self) -> str | None:
        """Why the last attempts failed, as long as none has succeeded since."""
        one = self._reception
        return f"{one.failures} failed attempts in a row: {one.problem}" if one.failing else None

    def state(self) -> dict[str, Any]:
        """What became of the last attempts."""
        one = self._reception
        return {
            "last_success_at": None if one.last_success_at is None else iso_utc(one.last_success_at),
            "failures_in_a_row": one.failures,
            "last_failure": one.problem,
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
        self._grew = grew
        self._changed = changed
        self._clock = clock
        self._monotonic = monotonic
        self._watch = SinkWatch(kind, sink.name, clock=clock)
        self.state = self._watch.state
        self._dispatcher = Dispatcher(
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
            delivering = group.create_task(self._dispatcher.run())
            await stop.wait()
            await _cancel(delivering)
            await self._dispatcher.finish(GRACE)
            await self._sink.close()
            await self._dispatcher.settle()
            await _cancel(sink)

    @property
    def usable(self) -> bool:
        """False while its broker is away or refuses the login."""
        return self._broker is None or self._broker.problem is None

    def log_grew(self) -> None:
        self._dispatcher.log_grew()

    def clock_stepped(self, seconds: float) -> None:
        self._dispatcher.clock_stepped(seconds)

    def refresh_devices(self, ids: Collection[str] | None) -> None:
        """The state of these devices may have changed; None: of all of them."""
        if self._broker is not None:
            self._broker.refresh_devices(ids)

    def refresh_bridge(self) -> None:
        """The bridge's info or health may have changed."""
        if self._broker is not None:
            self._broker.refresh_bridge()

    async def count_backlog(self) -> None:
        """Raises StoreError. Of millions of events this takes seconds."""
        self.backlog = await self._log.backlog(self.name) if self.disabled is None else None

    async def count_waiting(self) -> None:
        """Raises StoreError."""
        self.parked, self.dead_letters = await self._log.waiting(self.name)

    def silent_for(self) -> dict[str, float]:
        """Seconds since its loop made progress; negative while it may stand still."""
        silent = self._monotonic() - self._dispatcher.beat_at
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
