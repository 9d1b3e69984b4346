"""What a sink is sent next: the lanes that its dispatcher has claimed. Decisions with neither I/O nor clock.

The rows in the store are the truth. Held in memory is what is under way; when a row turns out to have been moved by
somebody else, what is held of that lane is forgotten.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec
from msgspec.structs import replace

from bace_bridge.events.types import (
    SINK_DEAD_LETTER,
    Attempt,
    Claim,
    Claimed,
    DeadLetter,
    Event,
    Lane,
    LaneRecord,
    LoggedEvent,
    Piece,
    Recorded,
    Share,
    bridge_event,
    lane_key,
)
from bace_bridge.formats import iso_utc

FRESH = Share(lanes=400, events=1500, size=3 * 1024 * 1024)
BEHIND = Share(lanes=50, events=500, size=1024 * 1024)
"""What is held of lanes that are behind: a long replay takes no room from the others."""

LARGE_WINDOW = 50
LEAST_PART = 0.2
"""Of both, for a sink with a small window: there may be many webhooks, and each needs only what it soon sends."""

LONG = 20
"""Events of a lane that stay in memory where others find no room."""

LOW = 5
"""Events left of a lane from which on more of it is read, while they are on their way."""


class _Failure(msgspec.Struct):
    """The first event of a lane that failed: from there it goes on, at `at`."""

    seq: int
    attempts: int
    at: float
    reason: str


class _Held:
    """A claimed lane. `lane` is as it stands in the store, `through` how far the log was read."""

    def __init__(self, piece: Piece, *, pipelined: bool) -> None:
        self.lane = piece.lane
        self.one_at_a_time = not pipelined or piece.lane.attempts > 0
        self.waiting = deque(piece.events)
        self.flying: dict[int, LoggedEvent] = {}
        self.dead: list[DeadLetter] = []
        self.failure: _Failure | None = None
        self.moved = False
        self.in_turn = False
        self.through = piece.through
        self.complete = piece.complete
        self.low = max(LOW, len(piece.events) // 4)

    @property
    def events(self) -> int:
        return len(self.waiting) + len(self.flying)

    @property
    def may_send(self) -> bool:
        return bool(self.waiting) and not (self.one_at_a_time and self.flying)

    @property
    def reads_on(self) -> bool:
        return not (self.complete or self.moved) and self.failure is None and len(self.waiting) <= self.low

    @property
    def drained(self) -> bool:
        return self.complete and not self.events and self.failure is None

    @property
    def ends(self) -> bool:
        """Nothing of it is under way, so it is let go of once that is recorded."""
        return self.drained or (self.failure is not None and not self.flying)

    def now(self) -> Lane:
        """The row as it ought to be."""
        failure = self.failure
        # Everything before this event is delivered, given up or not wanted. On a pipelined sink earlier events may
        # still be in flight when a later one fails: none may be skipped.
        if failure is not None:
            seq = min([failure.seq, *self.flying])
        elif self.flying:
            seq = min(self.flying)
        else:
            seq = self.waiting[0].seq if self.waiting else self.through + 1
        if failure is not None and failure.seq == seq:
            return replace(
                self.lane, seq=seq, attempts=failure.attempts, due_at=failure.at, reason=failure.reason, behind=True
            )
        # The attempts were those at the event that is delivered now.
        return self.lane if seq == self.lane.seq else replace(self.lane, seq=seq, attempts=0, reason="")


class Outbox:
    """The claimed lanes of one sink.

    `window` is the number of deliveries in flight at once. With `pipelined` the transport keeps the order, so the
    events of a lane need not wait for one another.
    """

    def __init__(
        self, *, window: int, pipelined: bool, fresh: Share | None = None, behind: Share | None = None
    ) -> None:
        self._window = window
        self._pipelined = pipelined
        part = max(LEAST_PART, min(1.0, window / LARGE_WINDOW))
        self._shares = tuple(
            given or Share(round(part * most.lanes), round(part * most.events), round(part * most.size))
            for given, most in ((fresh, FRESH), (behind, BEHIND))
        )
        self._lanes: dict[str, _Held] = {}
        self._turns: tuple[deque[_Held], deque[_Held]] = (deque(), deque())
        self._behind_next = False
        self.changed: set[str] = set()
        """The lanes that have something to record."""
        self._more = [False, False]
        self._let_go_of_some = False
        self.in_flight = 0
        self.winding_up = False

    @property
    def idle(self) -> bool:
        """Nothing is to be delivered or recorded, and no lane is known to be due that is not held.

        While winding up lanes that are behind do not count.
        """
        more = self._more[0] or (self._more[1] and not self.winding_up)
        left = any(held.waiting or held.reads_on for held in self._lanes.values())
        return not (more or left or self.in_flight or self.changed)

    def wants_more(self) -> bool:
        """There is room, and something is known to be read.

        Lanes are claimed when half of the room is free, but one of which nothing is left goes on where there is any.
        """
        for behind, share in enumerate(self._shares):
            if self._more[behind] or any(self._reading(behind=bool(behind))):
                room = self._room(behind=bool(behind))
                if 2 * room.lanes >= share.lanes and 2 * room.events >= share.events and 2 * room.size >= share.size:
                    return True
                # A lane that has run out would stand still until half of the room is free, which may never be.
                run_out = any(not one.events for one in self._reading(behind=bool(behind)))
                if run_out and room.events > 0 and room.size > 0:
                    return True
        return False

    def _reading(self, *, behind: bool) -> Iterator[_Held]:
        return (one for one in self._lanes.values() if one.lane.behind == behind and one.reads_on)

    def claim(self) -> Claim:
        """What there is room for."""
        self._let_go_of_some = False
        read_on = tuple((held.lane, held.through + 1) for held in self._lanes.values() if held.reads_on)
        return Claim(frozenset(self._lanes), read_on, self._room(behind=False), self._room(behind=True))

    def _room(self, *, behind: bool) -> Share:
        if behind and self.winding_up:
            return Share(0, 0, 0)
        share = self._shares[behind]
        held = [one for one in self._lanes.values() if one.lane.behind == behind and one.events]
        events = sum(one.events for one in held)
        size = sum(len(logged.event.data) for one in held for logged in (*one.waiting, *one.flying.values()))
        return Share(max(0, share.lanes - len(held)), max(0, share.events - events), max(0, share.size - size))

    def begin(self, claimed: Claimed) -> None:
        """Takes what was claimed; of lanes that have failed or moved since, it is read again later."""
        # What was held when this was asked for, and is not any more, was left out.
        self._more = [claimed.more_fresh or self._let_go_of_some, claimed.more_behind or self._let_go_of_some]
        for piece in claimed.begun:
            held = self._lanes[piece.lane.key] = _Held(piece, pipelined=self._pipelined)
            self._changes(held)
        for piece in claimed.read_on:
            found = self._lanes.get(piece.lane.key)
            if found is not None and found.reads_on:
                found.waiting += piece.events
                found.through, found.complete = piece.through, piece.complete
                found.low = max(LOW, len(piece.events) // 4)
                self._changes(found)
        for behind, more in enumerate((claimed.more_fresh, claimed.more_behind)):
            run_out = any(not one.events for one in self._reading(behind=bool(behind)))
            if (more or run_out) and not self.wants_more():
                # A slow lane with much to deliver must not take all the room: its tail is read again later.
                for held in self._lanes.values():
                    if held.lane.behind == behind and len(held.waiting) > LONG:
                        held.waiting = deque(islice(held.waiting, LONG))
                        held.through, held.complete, held.low = held.waiting[-1].seq, False, LOW

    def next_attempts(self) -> list[Attempt]:
        """The deliveries to be made now; they count as in flight from here on."""
        attempts: list[Attempt] = []
        while self.in_flight < self._window and any(self._turns):
            # Lanes take turns; and those that are behind, all together, with all the others.
            self._behind_next = not self._behind_next
            held = (self._turns[self._behind_next] or self._turns[not self._behind_next]).popleft()
            held.in_turn = False
            if not held.may_send:
                continue
            logged = held.waiting.popleft()
            held.flying[logged.seq] = logged
            self.in_flight += 1
            number = held.lane.attempts + 1 if logged.seq == held.lane.seq else 1
            attempts.append(Attempt(logged, number, replay=logged.seq <= held.lane.replay_through))
            self._takes_turns(held)
        return attempts

    def _takes_turns(self, held: _Held) -> None:
        # In a turn once at most: a lane that comes again and again would push the others back.
        if not held.in_turn and held.may_send:
            held.in_turn = True
            self._turns[held.lane.behind].append(held)

    def delivered(self, logged: LoggedEvent) -> None:
        self._changes(self._landed(logged))

    def failed(self, logged: LoggedEvent, *, attempts: int, at: float, reason: str) -> None:
        """The lane rests until `at`, and goes on from the first of its events that failed."""
        held = self._landed(logged)
        if held.failure is None or held.failure.seq > logged.seq:
            held.failure = _Failure(logged.seq, attempts, at, reason)
        # Order holds within a lane: what follows is read again, from the event that failed.
        held.waiting.clear()
        self._changes(held)

    def given_up(self, logged: LoggedEvent, letter: DeadLetter) -> bool:
        """Makes it a dead letter, and the lane goes on; False where its turn comes again all the same."""
        held = self._landed(logged)
        dead = not held.moved and (held.failure is None or held.failure.seq > logged.seq)
        if dead:
            held.dead.append(letter)
        self._changes(held)
        return dead

    def returned(self, logged: LoggedEvent) -> None:
        """A delivery was cut off by the sink going away: no attempt at it was made."""
        held = self._landed(logged)
        if held.failure is not None:
            if logged.seq < held.failure.seq:
                held.failure = _Failure(logged.seq, 0, held.failure.at, held.failure.reason)
        elif not held.moved:
            held.waiting = deque(sorted([logged, *held.waiting], key=lambda one: one.seq))
        self._changes(held)

    def _landed(self, logged: LoggedEvent) -> _Held:
        held = self._lanes[lane_key(logged)]
        del held.flying[logged.seq]
        self.in_flight -= 1
        return held

    def _changes(self, held: _Held) -> None:
        if held.moved:
            if not held.flying:
                self._let_go(held)
                self._more = [True, True]
            return
        if held.ends or held.dead or held.now() != held.lane:
            self.changed.add(held.lane.key)
        self._takes_turns(held)

    def _let_go(self, held: _Held) -> None:
        del self._lanes[held.lane.key]
        self.changed.discard(held.lane.key)
        self._let_go_of_some = True

    def clock_stepped(self, seconds: float) -> None:
        """The clock was set forward (or back) by so much: what waits for a time waits as long as before."""
        for held in self._lanes.values():
            if held.failure is not None:
                held.failure.at += seconds
            if held.lane.due_at > 0:
                held.lane = replace(held.lane, due_at=held.lane.due_at + seconds)

    def progress(self) -> tuple[LaneRecord, ...]:
        """What is to be made durable; it is so only with `recorded`."""
        held = (self._lanes[key] for key in self.changed)
        return tuple(LaneRecord(one.now(), one.drained, tuple(one.dead)) for one in held)

    def recorded(self, records: Iterable[LaneRecord], outcome: Recorded) -> None:
        for record in records:
            held = self._lanes[record.lane.key]
            self.changed.discard(record.lane.key)
            if record.lane.key in outcome.moved:
                # Somebody asked for a retry, a replay or a drop meanwhile: their row counts. What is in flight
                # lands first, then the lane is let go of and claimed again as they left it.
                held.moved = True
                held.waiting.clear()
            else:
                # More may have happened while the record was written: only what went with it is done with.
                del held.dead[: len(record.dead)]
                ended = record.drained or (held.ends and held.now() == record.lane)
                held.lane = record.lane
                if ended and not held.dead:
                    self._let_go(held)
                    continue
            self._changes(held)


def dead_letter_event(count: int, *, sink: str, event: Event, attempts: int, reason: str, now: float) -> Event:
    """The event for other sinks about a dead letter of `sink`, which has `count` of them by now."""
    about = {
        "id": event.id,
        "type": event.type,
        "session_id": event.session_id,
        "device_id": event.device_id,
        "time": iso_utc(event.time),
    }
    data = {
        "sink": sink,
        "reason": reason,
        "attempts": attempts,
        "count": count,
        "event": about,
        "observed_at": iso_utc(now),
    }
    return bridge_event(SINK_DEAD_LETTER, at=now, facts=(sink, event.id, now), data=data)
