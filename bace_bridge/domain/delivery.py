"""What a sink is sent next, and how far its cursor may move: a state machine with neither I/O nor clock.

Events enter in the order of the log. A delivery that failed parks its data session: a parked session is a
place in the log of its own, from which it goes on later, so its events need not be held in memory and the
sink's cursor passes them.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from itertools import chain

import msgspec

from bace_bridge.domain.events import LoggedEvent

BRIDGE_LANE = "bridge"


class Parked(msgspec.Struct, frozen=True):
    """A data session whose deliveries wait: its next event's place, the attempts at it, when to go on."""

    key: str
    seq: int
    attempts: int
    at: float
    reason: str = ""


class DeadLetter(msgspec.Struct, frozen=True):
    """A delivery that was given up."""

    seq: int
    key: str
    attempts: int
    reason: str


class Progress(msgspec.Struct, frozen=True):
    """What is to be made durable, in one update: the cursor and what was parked, released or given up."""

    cursor: int
    parked: tuple[Parked, ...] = ()
    released: tuple[str, ...] = ()
    dead: tuple[DeadLetter, ...] = ()


class Attempt(msgspec.Struct, frozen=True):
    """One delivery to be made now; `number` is 1 for the first attempt."""

    logged: LoggedEvent
    number: int


def lane_key(logged: LoggedEvent) -> str:
    """Order holds per data session; the bridge's own events are a lane of their own."""
    return logged.event.session_id or BRIDGE_LANE


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
    ) -> None:
        self.read_upto = cursor
        self._cursor = cursor
        self._window = window
        self._pipelined = pipelined
        self._lookahead = lookahead
        self._lookahead_bytes = lookahead_bytes
        self._open: dict[int, int] = {}
        self._open_bytes = 0
        self._waiting: deque[LoggedEvent] = deque()
        self._behind: dict[str, deque[LoggedEvent]] = {}
        self._in_flight: dict[int, LoggedEvent] = {}
        self._busy: dict[str, int] = {}
        self._parked: dict[str, Parked] = {lane.key: lane for lane in parked}
        self._resuming: set[str] = set()
        self._passed: dict[str, int] = {}
        self._to_park: dict[str, Parked] = {}
        self._to_release: set[str] = set()
        self._dead: list[DeadLetter] = []

    @property
    def cursor(self) -> int:
        """Every event up to here is delivered, parked, given up or not wanted."""
        return next(iter(self._open)) - 1 if self._open else self.read_upto

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
                self._open[logged.seq] = size = len(logged.event.data)
                self._open_bytes += size
                self._waiting.append(logged)
        self.read_upto = read_upto

    def next_attempts(self) -> list[Attempt]:
        """The deliveries to be made now; they count as in flight from here on."""
        attempts: list[Attempt] = []
        waiting, room = self._waiting, self._window - len(self._in_flight)
        while waiting and room > 0:
            logged = waiting.popleft()
            key = lane_key(logged)
            if not self._may_go(key, logged):
                continue
            self._in_flight[logged.seq] = logged
            self._busy[key] = self._busy.get(key, 0) + 1
            lane = self._parked.get(key)
            attempts.append(Attempt(logged, lane.attempts + 1 if lane and lane.seq == logged.seq else 1))
            room -= 1
        return attempts

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
        self._done(logged, key)

    def given_up(self, logged: LoggedEvent, *, attempts: int, reason: str) -> None:
        key = self._landed(logged)
        if not self._comes_again(logged, key):
            self._dead.append(DeadLetter(logged.seq, key, attempts, reason))
        self._done(logged, key)

    def failed(self, logged: LoggedEvent, *, attempts: int, at: float, reason: str) -> None:
        """Parks the event's data session until `at`, at the first of its events that is not acknowledged."""
        key = self._landed(logged)
        self._close(logged.seq)
        for later in self._behind.pop(key, ()):
            self._close(later.seq)
        if self._comes_again(logged, key):
            return
        self._resuming.discard(key)
        flying = (seq for seq, other in self._in_flight.items() if lane_key(other) == key)
        first = min(flying, default=logged.seq)
        if first < logged.seq:
            self._park(Parked(key, first, 0, at, reason))
        else:
            self._park(Parked(key, logged.seq, attempts, at, reason))

    def returned(self, unsent: Iterable[LoggedEvent]) -> None:
        """Puts deliveries back that were cut off by the sink going away: no attempt at them was made."""
        back = sorted(unsent, key=lambda logged: logged.seq)
        for logged in back:
            self._landed(logged)
        self._waiting.extendleft(reversed(back))

    def replay(self, lanes: Iterable[Parked]) -> None:
        """Goes back to earlier events of these data sessions; what follows them comes again behind them."""
        held = self._first_held()
        back = [
            msgspec.structs.replace(lane, seq=min(lane.seq, held.get(lane.key, lane.seq)))
            for lane in lanes
            if lane.key not in self._parked or lane.seq < self._parked[lane.key].seq
        ]
        self._forget({lane.key for lane in back})
        for lane in back:
            self._park(lane)

    def clock_stepped(self, seconds: float) -> None:
        """The clock was set forward (or back) by so much: what waits for a time waits as long as before."""
        for lane in list(self._parked.values()):
            if lane.at > 0:
                self._park(msgspec.structs.replace(lane, at=lane.at + seconds))

    def due_lanes(self, now: float) -> list[Parked]:
        """Parked data sessions that may go on now."""
        return [lane for lane in self._resting() if lane.at <= now]

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
            self._waiting.extendleft(reversed(near))
        elif complete and self._passed.pop(lane.key, 0) < lane.seq:
            self._release(lane.key)

    def next_due(self) -> float | None:
        """When the first parked data session goes on, epoch seconds."""
        return min((lane.at for lane in self._resting()), default=None)

    def take_progress(self) -> Progress | None:
        """What is to be made durable since the last call; None where nothing moved."""
        cursor = self.cursor
        if cursor == self._cursor and not (self._to_park or self._to_release or self._dead):
            return None
        progress = Progress(cursor, tuple(self._to_park.values()), tuple(self._to_release), tuple(self._dead))
        self._cursor = cursor
        self._to_park, self._to_release, self._dead = {}, set(), []
        return progress

    def _landed(self, logged: LoggedEvent) -> str:
        key = lane_key(logged)
        del self._in_flight[logged.seq]
        left = self._busy[key] - 1
        if left:
            self._busy[key] = left
        else:
            del self._busy[key]
        return key

    def _done(self, logged: LoggedEvent, key: str) -> None:
        self._close(logged.seq)
        behind = self._behind.get(key)
        if key in self._resuming:
            self._park(Parked(key, logged.seq + 1, 0, 0.0))
            if not behind and not self._still_waiting(key):
                self._resuming.discard(key)
        elif (lane := self._parked.get(key)) is not None and lane.seq == logged.seq:
            self._park(Parked(key, logged.seq + 1, 0, lane.at, lane.reason))
        if behind:
            self._waiting.appendleft(behind.popleft())
            if not behind:
                del self._behind[key]

    def _close(self, seq: int) -> None:
        self._open_bytes -= self._open.pop(seq, 0)

    def _comes_again(self, logged: LoggedEvent, key: str) -> bool:
        """True for an event in flight whose data session was parked before it: its turn comes after that."""
        lane = self._parked.get(key)
        return lane is not None and lane.seq < logged.seq and key not in self._resuming

    def _resting(self) -> list[Parked]:
        """Parked data sessions that have nothing under way, be it resumed or from before they were parked."""
        return [lane for key, lane in self._parked.items() if key not in self._resuming and key not in self._busy]

    def _first_held(self) -> dict[str, int]:
        """The place of the first event of each data session that is held and not acknowledged."""
        first: dict[str, int] = {}
        for logged in chain(self._waiting, self._in_flight.values(), *self._behind.values()):
            key = lane_key(logged)
            first[key] = min(logged.seq, first.get(key, logged.seq))
        return first

    def _forget(self, keys: Collection[str]) -> None:
        """Lets go of what waits of data sessions that are parked: it comes again from the log."""
        waiting = [logged for logged in self._waiting if lane_key(logged) in keys]
        if waiting:
            self._waiting = deque(logged for logged in self._waiting if lane_key(logged) not in keys)
        for logged in chain(waiting, *(self._behind.pop(key, ()) for key in keys)):
            self._close(logged.seq)
        self._resuming.difference_update(keys)

    def _still_waiting(self, key: str) -> bool:
        return any(lane_key(logged) == key for logged in self._waiting)

    def _park(self, lane: Parked) -> None:
        self._parked[lane.key] = lane
        self._to_park[lane.key] = lane
        self._to_release.discard(lane.key)

    def _release(self, key: str) -> None:
        self._parked.pop(key, None)
        self._to_park.pop(key, None)
        self._to_release.add(key)
