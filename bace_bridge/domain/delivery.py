"""Which events of a sink are sent next, and how far its cursor may move: a state machine without I/O or clock.

Events enter in the order of the log. A delivery that failed parks its data session: a parked session is a place in the
log of its own, from which it goes on later, so its events need not be held in memory and the sink's cursor passes them.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from bace_bridge.domain.events import LoggedEvent

BRIDGE_LANE = "bridge"


class Parked(msgspec.Struct, frozen=True):
    """A data session whose deliveries wait: the place of its next event, the attempts made at it, when to go on."""

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

    `window` is the number of deliveries in flight at once, `lookahead` the number of events (and their bytes) from
    which on no more are read past the cursor. With `pipelined` the transport keeps the order, so a session's events need not wait for one another.
    """

    def __init__(
        self, cursor: int, parked: Iterable[Parked] = (), *, window: int, pipelined: bool, lookahead: int = 2000,
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
            if lane_key(logged) not in self._parked:
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
        self._dead.append(DeadLetter(logged.seq, key, attempts, reason))
        self._done(logged, key)

    def failed(self, logged: LoggedEvent, *, attempts: int, at: float, reason: str) -> None:
        """Parks the event's data session until `at`."""
        key = self._landed(logged)
        self._close(logged.seq)
        for later in self._behind.pop(key, ()):
            self._close(later.seq)
        self._resuming.discard(key)
        known = self._parked.get(key)
        if known is not None and known.seq < logged.seq and key not in self._busy:
            known = None
        if known is None or logged.seq <= known.seq:
            self._park(Parked(key, logged.seq, attempts, at, reason))

    def returned(self, unsent: Iterable[LoggedEvent]) -> None:
        """Puts deliveries back that were cut off by the sink going away: no attempt at them was made."""
        back = sorted(unsent, key=lambda logged: logged.seq)
        for logged in back:
            self._landed(logged)
        self._waiting.extendleft(reversed(back))

    def replay(self, lanes: Iterable[Parked]) -> None:
        """Goes back to earlier events of these data sessions; what follows them comes again behind them."""
        for lane in lanes:
            known = self._parked.get(lane.key)
            if known is None or lane.seq < known.seq:
                self._resuming.discard(lane.key)
                self._park(lane)

    def due_lanes(self, now: float) -> list[Parked]:
        """Parked data sessions that may go on now."""
        return [lane for key, lane in self._parked.items() if lane.at <= now and key not in self._resuming]

    def resume(self, lane: Parked, events: Sequence[LoggedEvent], *, complete: bool) -> None:
        """Goes on with a parked data session from the log; `complete` when it has no events after these so far."""
        if not events and complete:
            self._release(lane.key)
        elif events:
            self._resuming.add(lane.key)
            self._waiting.extendleft(reversed(events))

    def next_due(self) -> float | None:
        """When the first parked data session goes on, epoch seconds."""
        return min((lane.at for key, lane in self._parked.items() if key not in self._resuming), default=None)

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
            if not behind and key not in self._busy and not self._still_waiting(key):
                self._resuming.discard(key)
        if behind:
            self._waiting.appendleft(behind.popleft())
            if not behind:
                del self._behind[key]

    def _close(self, seq: int) -> None:
        self._open_bytes -= self._open.pop(seq, 0)

    def _still_waiting(self, key: str) -> bool:
        return any(lane_key(logged) == key for logged in self._waiting)

    def _park(self, lane: Parked) -> None:
        self._parked[lane.key] = lane
        self._to_park[lane.key] = lane
        self._to_release.discard(lane.key)

    def _release(self, key: str) -> None:
        self._parked.pop(key, None)
        self._resuming.discard(key)
        self._to_park.pop(key, None)
        self._to_release.add(key)
