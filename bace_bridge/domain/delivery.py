"""What a sink is sent next, and how far its cursor may move: a state machine with neither I/O nor clock.

Events enter in the order of the log. A delivery that failed parks its data session: a parked session is a
place in the log of its own, from which it goes on later, so its events need not be held in memory and the
sink's cursor passes them.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain

import msgspec

from bace_bridge.domain.events import LoggedEvent
from bace_bridge.domain.lanes import (
    UNDER_WAY,
    Attempt,
    DeadLetter,
    Parked,
    Progress,
    lane_key,
    letter_place,
    session_lane,
)

LONG_LANE = 20
"""Events of one data session that are held where the room is short."""

LANES_AT_ONCE = 50
"""Parked data sessions whose events are held in memory at once."""


class Deliveries:
    """The deliveries of one sink.

    `window` is the number of deliveries in flight at once, `lookahead` the number of events (and their bytes)
    from which on no more are read past the cursor. With `pipelined` the transport keeps the order, so the
    events of a session need not wait for one another.
    """

    def __init__(
        self,
        cursor: int,
        parked: Iterable[Parked] = (),
        *,
        window: int,
        pipelined: bool,
        lookahead: int = 2000,
        lookahead_bytes: int = 4 * 1024 * 1024,
        long_lane: int = LONG_LANE,
    ) -> None:
        self.read_upto = cursor
        self._cursor = cursor
        self._window = window
        self._pipelined = pipelined
        self._lookahead = lookahead
        self._lookahead_bytes = lookahead_bytes
        self._long_lane = long_lane
        self._open: dict[int, LoggedEvent] = {}
        self._open_bytes = 0
        self._waiting: deque[LoggedEvent] = deque()
        self._resumed: deque[LoggedEvent] = deque()
        self._resumed_next = False
        self._waiting_of: Counter[str] = Counter()
        self._behind: dict[str, deque[LoggedEvent]] = {}
        self._in_flight: dict[tuple[str, int], LoggedEvent] = {}
        self._busy: dict[str, int] = {}
        self._parked: dict[str, Parked] = {lane.key: lane for lane in parked}
        self._by_time = [(lane.at, lane.key) for lane in self._parked.values()]
        heapify(self._by_time)
        self._resuming: set[str] = set()
        self._passed: dict[str, int] = {}
        self._to_park: dict[str, Parked] = {}
        self._to_release: set[str] = set()
        self._dead: list[DeadLetter] = []
        self._furthest = 0
        self._under_way: dict[str, int] = {}

    @property
    def cursor(self) -> int:
        """Every event up to here is delivered, parked, given up or not wanted."""
        return next(iter(self._open)) - 1 if self._open else self.read_upto

    @property
    def recorded_cursor(self) -> int:
        """As far as the last progress said."""
        return self._cursor

    @property
    def room_to_read(self) -> bool:
        """True while few enough events, and few enough bytes of them, are held."""
        return len(self._open) < self._lookahead and self._open_bytes < self._lookahead_bytes

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def offer(self, events: Sequence[LoggedEvent], *, read_upto: int) -> None:
        """Takes wanted events in the order of the log; the log has been read as far as `read_upto`."""
        for logged in events:
            key = lane_key(logged)
            if key in self._parked:
                self._passed[key] = logged.seq
            else:
                self._open[logged.seq] = logged
                self._open_bytes += len(logged.event.data)
                self._waiting.append(logged)
                self._waiting_of[key] += 1
        self.read_upto = read_upto
        if not self._pipelined and not self.room_to_read:
            self._set_aside_long_lanes()

    def _set_aside_long_lanes(self) -> None:
        """A slow session with much to tell must not take all the room: what waits of it comes again from the log."""
        held = Counter(self._waiting_of)
        held.update({key: len(behind) for key, behind in self._behind.items()})
        long = {key for key, count in held.items() if count > self._long_lane and key not in self._parked}
        if long:
            first = self._first_held()
            self._forget(long)
            for key in long:
                self._park(Parked(key, first[key], 0, 0.0, UNDER_WAY))

    def next_attempts(self) -> list[Attempt]:
        """The deliveries to be made now; they count as in flight from here on."""
        attempts: list[Attempt] = []
        room = self._window - len(self._in_flight)
        while room > 0 and (logged := self._next_waiting()) is not None:
            key = lane_key(logged)
            self._waits_no_more(key)
            if not self._may_go(key, logged):
                continue
            self._in_flight[key, logged.seq] = logged
            self._busy[key] = self._busy.get(key, 0) + 1
            attempts.append(self._attempt(logged, self._parked.get(key)))
            room -= 1
        return attempts

    def _next_waiting(self) -> LoggedEvent | None:
        """What was parked and what is new take turns, so that a long replay does not hold up an alarm."""
        waiting, resumed = self._waiting, self._resumed
        if not resumed:
            return waiting.popleft() if waiting else None
        self._resumed_next = not self._resumed_next or not waiting
        return resumed.popleft() if self._resumed_next else waiting.popleft()

    @staticmethod
    def _attempt(logged: LoggedEvent, lane: Parked | None) -> Attempt:
        if lane is None:
            return Attempt(logged, 1)
        number = lane.attempts + 1 if lane.seq == logged.seq else 1
        return Attempt(logged, number, replay=logged.seq <= lane.replay_upto)

    def _may_go(self, key: str, logged: LoggedEvent) -> bool:
        if key in self._parked and key not in self._resuming:
            self._close(logged.seq)
            return False
        if key in self._busy and (not self._pipelined or key in self._resuming):
            self._behind.setdefault(key, deque()).append(logged)
            return False
        return True

    def delivered(self, logged: LoggedEvent) -> None:
        key = self._landed(logged)
        self._furthest = max(self._furthest, logged.seq)
        self._done(logged, key)

    def given_up(self, logged: LoggedEvent, *, attempts: int, reason: str) -> bool:
        """Makes it a dead letter, which lets the data session go on; False where its turn comes again all the same."""
        key = self._landed(logged)
        dead = not self._comes_again(logged, key)
        if dead:
            self._furthest = max(self._furthest, logged.seq)
            self._dead.append(DeadLetter(logged.seq, session_lane(logged.event), attempts, reason))
        self._done(logged, key)
        return dead

    def failed(self, logged: LoggedEvent, *, attempts: int, at: float, reason: str) -> None:
        """Parks the event's data session until `at`, at the first of its events that is not acknowledged."""
        key = self._landed(logged)
        self._close(logged.seq)
        for later in self._behind.pop(key, ()):
            self._close(later.seq)
        if self._comes_again(logged, key):
            return
        self._resumes_no_more(key)
        first = min((seq for lane, seq in self._in_flight if lane == key), default=logged.seq)
        before = self._parked.get(key)
        upto = before.replay_upto if before is not None else 0
        if first < logged.seq:
            self._park(Parked(key, first, 0, at, reason, upto))
        else:
            self._park(Parked(key, logged.seq, attempts, at, reason, upto))

    def returned(self, unsent: Iterable[LoggedEvent]) -> None:
        """Puts deliveries back that were cut off by the sink going away: no attempt at them was made."""
        back = sorted(unsent, key=lambda logged: logged.seq)
        for logged in back:
            self._landed(logged)
        self._wait_first(back)

    def replay(self, lanes: Iterable[Parked]) -> None:
        """Goes back to earlier events of these data sessions; what follows them comes again behind them.

        What waits for a later attempt at that place or before it is tried at once. What was not read yet comes anyway.
        """
        held = self._first_held()
        back: list[Parked] = []
        for lane in lanes:
            parked = self._parked.get(lane.key)
            if parked is not None and parked.seq <= lane.seq:
                if lane.key not in self._resuming:
                    self._park(msgspec.structs.replace(parked, at=0.0))
            elif lane.seq <= self.read_upto:
                back.append(self._replayed(lane, held.get(lane.key)))
        self._forget({lane.key for lane in back})
        for lane in back:
            self._park(lane)

    def clock_stepped(self, seconds: float) -> None:
        """The clock was set forward (or back) by so much: what waits for a time waits as long as before."""
        for lane in list(self._parked.values()):
            if lane.at > 0:
                self._park(msgspec.structs.replace(lane, at=lane.at + seconds))

    def _replayed(self, lane: Parked, held: int | None) -> Parked:
        """Goes back to the lane's place; what it holds that was never acknowledged is no replay."""
        if letter_place(lane.key) is not None:
            return lane
        parked = self._parked.get(lane.key)
        waits = [one for one in (held, parked.seq if parked is not None else None) if one is not None]
        upto = min(waits) - 1 if waits else self.read_upto
        already = parked.replay_upto if parked is not None else 0
        return msgspec.structs.replace(lane, seq=min([lane.seq, *waits]), replay_upto=max(upto, already))

    def due_lanes(self, now: float) -> list[Parked]:
        """Parked data sessions that may go on now, those that wait longest first; no more than are held at once."""
        due: dict[str, Parked] = {}
        while len(self._resuming) + len(due) < LANES_AT_ONCE and (first := self._first_resting()) and first.at <= now:
            heappop(self._by_time)
            due[first.key] = first
        for lane in due.values():
            heappush(self._by_time, (lane.at, lane.key))
        return list(due.values())

    def resume(self, lane: Parked, events: Sequence[LoggedEvent], *, complete: bool) -> None:
        """Goes on with a due data session from the log; `complete` when it has no events after these so far.

        Events past `read_upto` are left to `offer`. A session of which `offer` passed over an event meanwhile
        is read once more before it is released, and one that is parked elsewhere by now is read from there.
        """
        if self._parked.get(lane.key) != lane:
            return
        near = [logged for logged in events if logged.seq <= self.read_upto]
        if near:
            self._forget({lane.key})
            self._resuming.add(lane.key)
            self._wait_first(near)
        elif complete and self._passed.pop(lane.key, 0) < lane.seq:
            self._release(lane.key)

    def next_due(self) -> float | None:
        """When the first parked data session goes on, epoch seconds; None also while no more of them are held."""
        first = self._first_resting() if len(self._resuming) < LANES_AT_ONCE else None
        return None if first is None else first.at

    def take_progress(self) -> Progress | None:
        """What is to be made durable since the last call; None where nothing moved.

        One slow delivery does not hold the recorded cursor back, or a crash would repeat all that others got meanwhile:
        it passes what is delivered, and the lanes that are behind keep places of their own.
        """
        cursor = max(self.cursor, self._cursor, self._furthest)
        self._keep_places(cursor)
        if cursor == self._cursor and not (self._to_park or self._to_release or self._dead):
            return None
        progress = Progress(cursor, tuple(self._to_park.values()), tuple(self._to_release), tuple(self._dead))
        self._cursor = cursor
        self._to_park, self._to_release, self._dead = {}, set(), []
        return progress

    def _keep_places(self, cursor: int) -> None:
        """Lanes with events under way up to the cursor are recorded as if they were parked; in memory they are not."""
        first: dict[str, int] = {}
        for seq, logged in self._open.items():
            if seq > cursor:
                break
            if (key := lane_key(logged)) not in self._parked:
                first.setdefault(key, seq)
        for key, seq in first.items():
            if self._under_way.get(key) != seq or key in self._to_release:
                self._to_park[key] = Parked(key, seq, 0, 0.0, UNDER_WAY)
                self._to_release.discard(key)
        for key in self._under_way.keys() - first.keys() - self._parked.keys():
            self._to_park.pop(key, None)
            self._to_release.add(key)
        self._under_way = first

    def _landed(self, logged: LoggedEvent) -> str:
        key = lane_key(logged)
        del self._in_flight[key, logged.seq]
        left = self._busy[key] - 1
        if left:
            self._busy[key] = left
        else:
            del self._busy[key]
            self._may_rest(key)
        return key

    def _done(self, logged: LoggedEvent, key: str) -> None:
        self._close(logged.seq)
        behind = self._behind.get(key)
        if key in self._resuming:
            self._park(_past(self._parked[key], logged.seq, at=0.0))
            if not behind and not self._waiting_of[key]:
                self._resumes_no_more(key)
        elif (lane := self._parked.get(key)) is not None and lane.seq == logged.seq:
            self._park(_past(lane, logged.seq, at=lane.at))
        if behind:
            self._wait_first([behind.popleft()])
            if not behind:
                del self._behind[key]

    def _close(self, seq: int) -> None:
        if (logged := self._open.pop(seq, None)) is not None:
            self._open_bytes -= len(logged.event.data)

    def _comes_again(self, logged: LoggedEvent, key: str) -> bool:
        """True for an event in flight whose data session was parked before it: its turn comes after that."""
        lane = self._parked.get(key)
        return lane is not None and lane.seq < logged.seq and key not in self._resuming

    def _first_resting(self) -> Parked | None:
        """The parked data session that is due first, of those that have nothing under way.

        What the heap holds of others is out of date; they come back into it by `_may_rest` and `_park`.
        """
        while self._by_time:
            at, key = self._by_time[0]
            lane = self._parked.get(key)
            if lane is not None and lane.at == at and key not in self._resuming and key not in self._busy:
                return lane
            heappop(self._by_time)
        return None

    def _may_rest(self, key: str) -> None:
        if (lane := self._parked.get(key)) is not None:
            heappush(self._by_time, (lane.at, key))

    def _resumes_no_more(self, key: str) -> None:
        self._resuming.discard(key)
        self._may_rest(key)

    def _first_held(self) -> dict[str, int]:
        """The place of the first event of each data session that is held and not acknowledged."""
        first: dict[str, int] = {}
        for logged in chain(self._waiting, self._resumed, self._in_flight.values(), *self._behind.values()):
            key = lane_key(logged)
            first[key] = min(logged.seq, first.get(key, logged.seq))
        return first

    def _forget(self, keys: Collection[str]) -> None:
        """Lets go of what waits of data sessions that are parked: it comes again from the log."""
        gone: list[LoggedEvent] = []
        if any(self._waiting_of[key] for key in keys):
            gone = [logged for logged in chain(self._waiting, self._resumed) if lane_key(logged) in keys]
            self._waiting = deque(logged for logged in self._waiting if lane_key(logged) not in keys)
            self._resumed = deque(logged for logged in self._resumed if lane_key(logged) not in keys)
            for key in keys:
                del self._waiting_of[key]
        for logged in chain(gone, *(self._behind.pop(key, ()) for key in keys)):
            self._close(logged.seq)
        for key in keys:
            self._resumes_no_more(key)

    def _waits_no_more(self, key: str) -> None:
        if self._waiting_of[key] > 1:
            self._waiting_of[key] -= 1
        else:
            del self._waiting_of[key]

    def _wait_first(self, events: Sequence[LoggedEvent]) -> None:
        """Puts events, in their order, before all that wait: of the new ones, or of those that were parked."""
        for logged in reversed(events):
            key = lane_key(logged)
            (self._resumed if key in self._resuming else self._waiting).appendleft(logged)
            self._waiting_of[key] += 1

    def _park(self, lane: Parked) -> None:
        self._parked[lane.key] = lane
        self._to_park[lane.key] = lane
        self._to_release.discard(lane.key)
        heappush(self._by_time, (lane.at, lane.key))

    def _release(self, key: str) -> None:
        self._parked.pop(key, None)
        self._to_park.pop(key, None)
        self._to_release.add(key)


def _past(lane: Parked, seq: int, *, at: float) -> Parked:
    """The lane, one event further."""
    return msgspec.structs.replace(lane, seq=seq + 1, attempts=0, at=at)
