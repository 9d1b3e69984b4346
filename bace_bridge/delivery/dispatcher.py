"""One loop a sink: read the log, hand events over, and make durable how far the other side has acknowledged."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import structlog

from bace_bridge import retry
from bace_bridge.delivery.rules.outbox import Outbox, dead_letter_event
from bace_bridge.errors import (
    DeliveryFailed,
    DeliveryRejected,
    SinkDisabled,
    SinkError,
    SinkUnavailable,
    StoreError,
    StoreUnusable,
)
from bace_bridge.events.types import (
    Attempt,
    Claim,
    Claimed,
    DeadLetter,
    FailedAttempt,
    Filter,
    LaneRecord,
    Progress,
    Recorded,
    is_about_a_sink,
    session_lane,
)
from bace_bridge.sinks.api import Receiver
from bace_bridge.waiting import STORE_PAUSE, pause_until

log = structlog.get_logger()

LONGEST_REST = 30.0


class Log(Protocol):
    async def claim(self, sink: str, filter_: Filter, asked: Claim, *, now: float) -> Claimed: ...
    async def record(self, sink: str, progress: Callable[[], Progress], *, now: float) -> tuple[Progress, Recorded]: ...


class Dispatcher:
    """Delivers the lanes of one sink, and never touches another's."""

    def __init__(
        self,
        sink: Receiver,
        event_log: Log,
        filter_: Filter,
        *,
        prepared: Callable[[Attempt], Attempt] = lambda attempt: attempt,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        on_disabled: Callable[[str, str], Awaitable[None]],
        on_emitted: Callable[[], None] = lambda: None,
        on_attempt: Callable[[SinkError | None, str], None] = lambda *_: None,
        on_emptied: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._log = event_log
        self._filter = filter_
        self._prepared = prepared
        self._clock, self._monotonic, self._jitter, self._sleep = clock, monotonic, jitter, sleep
        self._on_disabled, self._on_emitted = on_disabled, on_emitted
        self._on_attempt, self._on_emptied = on_attempt, on_emptied
        self._outbox = Outbox(window=sink.window, pipelined=sink.pipelined)
        self._called = asyncio.Event()
        self._progressed = asyncio.Event()
        self._available = False
        self._disabled: str | None = None
        # What is due: claimed when the log grew or rows were moved, when there are more of them, and at the next time.
        self._growths = 1
        self._growths_claimed = 0
        self._next_due: float | None = None
        self._failed: list[FailedAttempt] = []
        # Where deliveries are given up, which was said and is not over.
        self._giving_up: set[str] = set()
        # While progress cannot be recorded nothing more is sent: a crash would send all of it again.
        self._recordable = True
        self._stopping = False
        # When it last went on; infinite where it may stand still: its sink is away, or must not be called any more.
        self.beat_at = monotonic()

    def log_grew(self) -> None:
        """There are new events, or somebody has moved lanes."""
        self._growths += 1
        self._called.set()

    def clock_stepped(self, seconds: float) -> None:
        self._outbox.clock_stepped(seconds)
        self.log_grew()

    @property
    def idle(self) -> bool:
        """True when everything that is due was delivered and recorded."""
        return self._growths_claimed == self._growths and self._outbox.idle

    async def run(self) -> None:
        """Until cancelled, or until the other side asks not to be called any more."""
        await self._deliver(lambda: self._disabled is None)
        self.beat_at = math.inf
        await self._on_the_store(self._record)
        reason = self._disabled or ""
        while not await self._on_the_store(lambda: self._on_disabled(self._sink.name, reason)):
            pass

    async def finish(self, grace: float) -> None:
        """Delivers what is left for at most `grace` seconds; what is behind waits for the next start."""
        self._outbox.winding_up = True
        try:
            async with asyncio.timeout(grace):
                await self._deliver(lambda: self._available and not self.idle)
        except TimeoutError:
            pass
        # What is in flight may still be acknowledged, and that is recorded; nothing new is sent meanwhile.
        self._stopping = True

    async def _deliver(self, going: Callable[[], bool]) -> None:
        """Claims and sends; how far that came is recorded beside it, so neither waits for the other."""

        async def keep_recording() -> None:
            while True:
                while self._outbox.changed or self._failed:
                    await self._on_the_store(self._record)
                self._progressed.clear()
                await self._progressed.wait()

        async with asyncio.TaskGroup() as group:
            # Beside the sending, because a transaction waits for the disk: done in turns, a slow disk would hold up
            # what is sent, and a full window what is recorded.
            recording = group.create_task(keep_recording())
            while going():
                self.beat_at = self._monotonic()
                if not self._available:
                    # A sink may be away for days, and that is not a loop that hangs.
                    self.beat_at = math.inf
                    await self._sink.ready()
                    self.beat_at = self._monotonic()
                    self._available = True
                await self._on_the_store(self._claim)
                self._send_more()
                if going():
                    # Until something happens: there is room for more, the log has grown, or a lane's time has come.
                    wait = LONGEST_REST if self._next_due is None else self._next_due - self._clock()
                    await pause_until(self._called, 0.0 if self._may_claim else min(LONGEST_REST, wait))
                    self._called.clear()
            recording.cancel()

    async def settle(self) -> None:
        """Makes durable what was acknowledged last, in one attempt: the end must not wait for a full disk."""
        try:
            await self._record()
        except StoreError as error:
            log.warning("delivery.progress_not_recorded", sink=self._sink.name, reason=str(error), then="sent again")

    @property
    def _may_claim(self) -> bool:
        due = self._next_due is not None and self._next_due <= self._clock()
        return due or self._growths_claimed < self._growths or self._outbox.wants_more()

    async def _claim(self) -> None:
        if self._may_claim:
            # The count of before: what the log got while this claim was under way is asked for by the next one.
            growths = self._growths
            claimed = await self._log.claim(self._sink.name, self._filter, self._outbox.claim(), now=self._clock())
            self._growths_claimed, self._next_due = growths, claimed.next_due
            self._outbox.begin(claimed)
            self._progressed.set()
            if self.idle and self._next_due is None:
                self._on_emptied()

    def _send_more(self) -> None:
        if not self._available or self._disabled is not None or self._stopping or not self._recordable:
            return
        # Nothing awaits between taking an event and handing it over, so no event is taken that is not sent.
        for attempt in self._outbox.next_attempts():
            self._sink.send(self._prepared(attempt), partial(self._done, attempt, self._clock()))

    def _done(self, attempt: Attempt, sent_at: float, error: SinkError | None) -> None:
        if error is None:
            self._on_attempt(None, "")
            if self._giving_up:
                self._giving_up.discard(self._sink.where(attempt.logged.event))
            self._outbox.delivered(attempt.logged)
            # At once: with a full window the next event leaves as soon as one is acknowledged, without the loop.
            self._send_more()
            self._progressed.set()
            idle = self._outbox.in_flight < self._sink.window
            if idle and not self._called.is_set() and self._may_claim:
                self._called.set()
            return
        if isinstance(error, SinkUnavailable | SinkDisabled):
            self._available = False
            if isinstance(error, SinkDisabled):
                self._disabled = str(error)
            self._outbox.returned(attempt.logged)
        else:
            self._note_failure(attempt, sent_at, error)
            self._send_more()
        self._progressed.set()
        self._called.set()

    def _note_failure(self, attempt: Attempt, sent_at: float, error: SinkError) -> None:
        event, now, number, sink = attempt.logged.event, self._clock(), attempt.number, self._sink.name
        about = {"sink": sink, "event_id": event.id, "attempt": number}
        took = max(0.0, now - sent_at)
        self._failed.append(
            FailedAttempt(attempt.logged.seq, number, sent_at, took, str(error), error.status, error.answer)
        )
        asked = error.retry_after if isinstance(error, DeliveryFailed) else 0.0
        decision: retry.TryAgain | retry.GiveUp = retry.GiveUp("rejected")
        if not isinstance(error, DeliveryRejected):
            decision = retry.decide(number, now=now, jitter=self._jitter(), retry_after=asked)
        self._on_attempt(error, retry.what_follows(decision, number, now=now))
        if isinstance(decision, retry.TryAgain):
            self._outbox.failed(attempt.logged, attempts=number, at=decision.at, reason=str(error))
            # What matters most comes first: a terminal cuts the line.
            again = {"again_in": round(decision.at - now, 1), "reason": str(error)}
            log.info("delivery.retry_scheduled", **about, **again, type=event.type)
            return
        # It is reported once, until a delivery to the same `where` succeeds or the process ends. Not where the event is
        # about a sink itself: two that take nothing would answer each other for ever.
        where, reason = self._sink.where(event), f"{decision.reason}: {error}"
        reported = where in self._giving_up or is_about_a_sink(event)
        report = partial(dead_letter_event, sink=sink, event=event, attempts=number, reason=reason, now=now)
        letter = DeadLetter(attempt.logged.seq, session_lane(event), number, reason, None if reported else report)
        if self._outbox.given_up(attempt.logged, letter):
            log.error("delivery.dead_letter", **about, type=event.type, reason=reason)
            if not reported:
                self._giving_up.add(where)

    async def _record(self) -> None:
        """Makes durable what became of the lanes; where it is cut off it is done again."""
        if not (self._outbox.changed or self._failed):
            return
        try:
            # A function, for the outbox has gone on by the time that the shared transaction begins.
            progress, recorded = await self._log.record(
                self._sink.name,
                lambda: Progress(self._outbox.progress(), tuple(self._failed)),
                now=self._clock(),
            )
        except StoreError:
            self._recordable = False
            raise
        self._recordable = True
        # Only what went with it: more may have failed while it was written.
        del self._failed[: len(progress.failed)]
        self._outbox.recorded(progress.lanes, recorded)
        self._follow_up(progress.lanes, recorded)
        if self.idle and self._next_due is None:
            self._on_emptied()
        self._called.set()

    def _follow_up(self, lanes: tuple[LaneRecord, ...], recorded: Recorded) -> None:
        """What follows from a record: rows that are due again, a time to wait for, events for the others."""
        if recorded.more or recorded.moved:
            self.log_grew()
        # One that waits behind a failure, because its delivery was cut off, has no attempts.
        waiting = [one.lane.due_at for one in lanes if one.lane.due_at and (one.lane.attempts or one.lane.reason)]
        if waiting:
            self._next_due = min([*waiting, *([] if self._next_due is None else [self._next_due])])
        reported = [one.lane.key for one in lanes for letter in one.dead if letter.report is not None]
        if reported:
            self._on_emitted()
        if recorded.moved.intersection(reported):  # they are tried again instead
            self._giving_up.clear()

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
