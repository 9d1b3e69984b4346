"""One loop a sink: read the log, hand events over, and make durable how far the other side has acknowledged."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import structlog
from msgspec.structs import replace

from bace_bridge.domain import retry
from bace_bridge.domain.dead_letters import dead_letter_told
from bace_bridge.domain.delivery import Deliveries
from bace_bridge.domain.events import Event, LoggedEvent
from bace_bridge.domain.lanes import Attempt, FailedAttempt, Parked, Progress
from bace_bridge.domain.routing import Filter, wanted
from bace_bridge.errors import (
    DeliveryFailed,
    DeliveryRejected,
    SinkDisabled,
    SinkError,
    SinkUnavailable,
    StoreError,
    StoreUnusable,
)

log = structlog.get_logger()

READ_AT_ONCE = 1000
LANE_AT_ONCE = 20
"""Events that are read of a parked lane at least; of few lanes so many more that a slow round trip is not the bound."""

LANES_TOGETHER = 500
"""Events that are read of all due lanes together, where each has less than its share."""

LONGEST_REST = 30.0
RECORD_PAUSE = 0.02
"""Seconds between two records of progress, so that many acknowledgements share one transaction."""

STORE_PAUSE = 2.0


class Sink(Protocol):
    """The other side. `send` never blocks and calls `done` exactly once: None, or why it was not delivered."""

    @property
    def name(self) -> str: ...
    @property
    def window(self) -> int: ...
    @property
    def pipelined(self) -> bool: ...
    async def ready(self) -> None: ...
    def send(self, attempt: Attempt, done: Callable[[SinkError | None], None]) -> None: ...


class Log(Protocol):
    async def read(self, *, after: int, limit: int) -> list[LoggedEvent]: ...
    async def read_lane(self, key: str, *, start: int, upto: int, limit: int) -> list[LoggedEvent]: ...
    async def record(self, sink: str, progress: Progress, *, now: float) -> None: ...
    async def asked(self, sink: str) -> list[Parked]: ...


class Dispatcher:
    """Delivers the log to one sink, from its place on, and never touches another's."""

    def __init__(
        self,
        sink: Sink,
        event_log: Log,
        wish: Filter,
        *,
        cursor: int,
        parked: tuple[Parked, ...],
        clock: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        on_disabled: Callable[[str, str], Awaitable[None]],
        on_told: Callable[[], None] = lambda: None,
        on_attempt: Callable[[SinkError | None], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._log = event_log
        self._wish = wish
        self._clock = clock
        self._jitter = jitter
        self._sleep = sleep
        self._on_disabled = on_disabled
        self._on_told = on_told
        self._on_attempt = on_attempt
        self._deliveries = Deliveries(cursor, parked, window=sink.window, pipelined=sink.pipelined)
        self._called = asyncio.Event()
        self._returned: list[LoggedEvent] = []
        self._available = False
        self._disabled: str | None = None
        self._growths = 1
        self._growths_read = 0
        self._unrecorded: Progress | None = None
        self._failed: list[FailedAttempt] = []
        self._told: list[Event] = []
        self._asked = False
        self._taken: list[Parked] = []
        # While progress cannot be recorded nothing more is sent: a crash would send all of it again.
        self._recordable = True
        self._stopping = False
        self._monotonic = monotonic
        # When it last went on; infinite where it may stand still: its sink is away, or must not be called any more.
        self.beat_at = monotonic()

    def log_grew(self) -> None:
        self._growths += 1
        self._called.set()

    def look_at_asked(self) -> None:
        """Somebody asked for something that was delivered before, or given up."""
        self._asked = True
        self._called.set()

    def clock_stepped(self, seconds: float) -> None:
        self._deliveries.clock_stepped(seconds)
        self._called.set()

    @property
    def _log_may_have_more(self) -> bool:
        """True until a reading has found nothing and the log has not grown since that reading began."""
        return self._growths_read < self._growths

    @property
    def idle(self) -> bool:
        """True when everything that was read is delivered or parked, and nothing more is known to be in the log."""
        deliveries = self._deliveries
        return deliveries.cursor == deliveries.read_upto and not self._log_may_have_more and not deliveries.in_flight

    async def run(self) -> None:
        """Until cancelled, or until the other side asks not to be called any more."""
        while self._disabled is None:
            self.beat_at = self._monotonic()
            if not self._available:
                while not await self._on_the_store(self._record):
                    pass
                await self._wait_for_sink()
            await self._on_the_store(self._take_asked)
            await self._on_the_store(self._read_log)
            await self._on_the_store(self._resume_lanes)
            self._send_more()
            await self._on_the_store(self._record)
            await self._rest()
        self.beat_at = math.inf
        await self._on_the_store(self._record)
        reason = self._disabled
        while not await self._on_the_store(lambda: self._on_disabled(self._sink.name, reason)):
            pass

    async def finish(self, grace: float) -> None:
        """Delivers what is left for at most `grace` seconds."""
        try:
            async with asyncio.timeout(grace):
                while self._available and not self.idle:
                    await self._on_the_store(self._read_log)
                    self._send_more()
                    if not self.idle:
                        await self._rest()
        except TimeoutError:
            pass
        self._stopping = True

    async def settle(self) -> None:
        """Makes durable what was acknowledged last, in one attempt: the end must not wait for a full disk."""
        try:
            await self._record()
        except StoreError as error:
            log.warning("delivery.progress_not_recorded", sink=self._sink.name, reason=str(error), then="sent again")

    async def _wait_for_sink(self) -> None:
        self.beat_at = math.inf
        await self._sink.ready()
        self.beat_at = self._monotonic()
        self._deliveries.returned(self._returned)
        self._returned = []
        self._available = True

    async def _take_asked(self) -> None:
        """Goes back to what was asked for; the request stands in the store until that is recorded."""
        if self._asked:
            lanes = await self._log.asked(self._sink.name)
            self._asked = False
            self._deliveries.replay(lanes)
            self._taken += lanes

    async def _read_log(self) -> None:
        if not self._log_may_have_more or not self._deliveries.room_to_read:
            return
        growths = self._growths
        events = await self._log.read(after=self._deliveries.read_upto, limit=READ_AT_ONCE)
        if not events:
            self._growths_read = growths
        else:
            wanted_ones = [one for one in events if wanted(one.event, self._wish)]
            self._deliveries.offer(wanted_ones, read_upto=events[-1].seq)

    async def _resume_lanes(self) -> None:
        due = self._deliveries.due_lanes(self._clock())
        limit = max(LANE_AT_ONCE, LANES_TOGETHER // max(1, len(due)))
        for lane in due:
            start, complete = lane.seq, False
            found: list[LoggedEvent] = []
            while not found and not complete:
                self.beat_at = self._monotonic()
                upto = self._deliveries.read_upto
                events = await self._log.read_lane(lane.key, start=start, upto=upto, limit=limit)
                found = [one for one in events if wanted(one.event, self._wish)]
                complete = not events
                start = events[-1].seq + 1 if events else start
            self._deliveries.resume(lane, found, complete=complete)

    def _send_more(self) -> None:
        if not self._available or self._disabled is not None or self._stopping or not self._recordable:
            return
        for attempt in self._deliveries.next_attempts():
            self._sink.send(attempt, partial(self._done, attempt, self._clock()))

    def _done(self, attempt: Attempt, sent_at: float, error: SinkError | None) -> None:
        if error is None:
            self._on_attempt(None)
            self._deliveries.delivered(attempt.logged)
            self._send_more()
        elif isinstance(error, SinkUnavailable):
            self._available = False
            self._returned.append(attempt.logged)
        elif isinstance(error, SinkDisabled):
            self._available = False
            self._disabled = str(error)
            self._returned.append(attempt.logged)
        else:
            self._on_attempt(error)
            self._note_failure(attempt, sent_at, error)
            self._send_more()
        self._called.set()

    def _note_failure(self, attempt: Attempt, sent_at: float, error: SinkError) -> None:
        event, now = attempt.logged.event, self._clock()
        about = {"sink": self._sink.name, "event_id": event.id, "type": event.type, "attempt": attempt.number}
        self._failed.append(_failed_attempt(attempt, sent_at, error, now=now))
        asked = error.retry_after if isinstance(error, DeliveryFailed) else 0.0
        decision: retry.TryAgain | retry.GiveUp = retry.GiveUp("rejected")
        if not isinstance(error, DeliveryRejected):
            decision = retry.decide(attempt.number, now=now, jitter=self._jitter(), retry_after=asked)
        if isinstance(decision, retry.TryAgain):
            self._deliveries.failed(attempt.logged, attempts=attempt.number, at=decision.at, reason=str(error))
            log.info("delivery.retry_scheduled", **about, reason=str(error), again_in=round(decision.at - now, 1))
        else:
            reason = f"{decision.reason}: {error}"
            if self._deliveries.given_up(attempt.logged, attempts=attempt.number, reason=reason):
                self._tell_dead_letter(event, attempt.number, reason)
                log.error("delivery.dead_letter", **about, reason=reason)

    def _tell_dead_letter(self, event: Event, attempts: int, reason: str) -> None:
        told = dead_letter_told(self._sink.name, event, attempts=attempts, reason=reason, now=self._clock())
        if told is not None:
            self._told.append(told)

    async def _record(self) -> None:
        """Makes durable what an earlier attempt failed at or was cut off at, then what was acknowledged since."""
        await self._write_unrecorded()
        progress = self._deliveries.take_progress()
        if progress is None and self._taken:
            progress = Progress(self._deliveries.recorded_cursor)
        if progress is not None:
            rest = {"failed": tuple(self._failed), "told": tuple(self._told), "taken": tuple(self._taken)}
            self._unrecorded = replace(progress, **rest)
            self._failed, self._told, self._taken = [], [], []
        await self._write_unrecorded()

    async def _write_unrecorded(self) -> None:
        if self._unrecorded is not None:
            progress = self._unrecorded
            try:
                await self._log.record(self._sink.name, progress, now=self._clock())
            except StoreError:
                self._recordable = False
                raise
            self._unrecorded = None
            if not self._recordable:
                self._recordable = True
                self._called.set()
            if progress.told:
                self._on_told()

    async def _on_the_store(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Does a step that needs the store; where that fails, waits a little and says no. Nothing is skipped."""
        try:
            await step()
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("delivery.store_unusable", sink=self._sink.name, reason=str(error))
            await self._sleep(STORE_PAUSE)
            self._called.set()
            return False
        return True

    async def _rest(self) -> None:
        """Until something happens: an acknowledgement, a longer log, or a parked session's time."""
        if self._deliveries.in_flight:
            await self._sleep(RECORD_PAUSE)
        if self._log_may_have_more and self._deliveries.room_to_read:
            return
        due = self._deliveries.next_due()
        wait = LONGEST_REST if due is None else max(0.0, min(LONGEST_REST, due - self._clock()))
        try:
            async with asyncio.timeout(wait):
                await self._called.wait()
        except TimeoutError:
            pass
        self._called.clear()


def _failed_attempt(attempt: Attempt, sent_at: float, error: SinkError, *, now: float) -> FailedAttempt:
    return FailedAttempt(
        attempt.logged.seq,
        attempt.number,
        sent_at,
        max(0.0, now - sent_at),
        str(error),
        error.status,
        error.answer,
    )
