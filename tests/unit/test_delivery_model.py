"""A model of the dispatcher drives `Deliveries` with failures, lost connections, crashes and replays."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bace_bridge.domain.delivery import Deliveries
from bace_bridge.domain.events import Event, LoggedEvent
from bace_bridge.domain.lanes import Attempt, Parked, lane_key
from tests.models import examples

SESSIONS = st.sampled_from(["a", "b", None])


@dataclass(frozen=True)
class LaneRead:
    """What was read of a parked data session; by the time it is used the log may have grown."""

    lane: Parked
    events: list[LoggedEvent]
    complete: bool


class Dispatcher(RuleBasedStateMachine):
    """`saved_*` is what a crash leaves; everything else is gone with the process."""

    pipelined = False
    window = 2

    def __init__(self) -> None:
        super().__init__()
        self.log: list[LoggedEvent] = []
        self.acknowledged: set[int] = set()
        self.dead: set[int] = set()
        self.now = 0.0
        self.saved_cursor = 0
        self.saved_lanes: dict[str, Parked] = {}
        self.counts_attempts = True
        self.start()

    def start(self) -> None:
        self.deliveries = Deliveries(
            self.saved_cursor,
            self.saved_lanes.values(),
            window=self.window,
            pipelined=self.pipelined,
            lookahead=5,
            long_lane=1,
        )
        self.flying: dict[int, Attempt] = {}
        self.reads: dict[str, LaneRead] = {}
        self.acknowledged_since_start: set[int] = set()
        self.failures: Counter[int] = Counter()
        self.owed: set[int] = set()

    # --- what may happen

    @rule(sessions=st.lists(SESSIONS, min_size=1, max_size=4))
    def log_grows(self, sessions: list[str | None]) -> None:
        for session in sessions:
            seq = len(self.log) + 1
            event = Event(f"evt_{seq}", "session.started", session, None, 0.0, 0.0, b"{}")
            self.log.append(LoggedEvent(seq, event))

    @rule(limit=st.integers(1, 3))
    def read(self, limit: int) -> None:
        if not self.deliveries.room_to_read:
            return
        upto = self.deliveries.read_upto
        events = self.log[upto : upto + limit]
        self.deliveries.offer(events, read_upto=upto + len(events))

    @rule()
    def send(self) -> None:
        for attempt in self.deliveries.next_attempts():
            self.check(attempt)
            self.flying[attempt.logged.seq] = attempt
        assert len(self.flying) == self.deliveries.in_flight <= self.window

    def check(self, attempt: Attempt) -> None:
        seq, key = attempt.logged.seq, lane_key(attempt.logged)
        assert seq not in self.flying
        assert not attempt.replay or seq in self.acknowledged | self.dead, "told for the first time"
        if self.pipelined:
            return
        assert seq not in self.acknowledged_since_start, "sent twice"
        assert key not in {lane_key(other.logged) for other in self.flying.values()}
        behind = {e.seq for e in self.log if lane_key(e) == key and e.seq < seq}
        assert behind <= (self.acknowledged | self.dead) - self.owed, "out of order"
        if self.counts_attempts:
            assert attempt.number == self.failures[seq] + 1

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.arrive(self.land(data))

    def arrive(self, attempt: Attempt) -> None:
        seq = attempt.logged.seq
        self.acknowledged.add(seq)
        lane = self.deliveries._parked.get(lane_key(attempt.logged))
        if seq not in self.owed or lane is None or lane.seq >= seq:
            self.acknowledged_since_start.add(seq)
        self.deliveries.delivered(attempt.logged)
        self.settle(seq)

    def settle(self, seq: int) -> None:
        """A replayed event is owed until its turn came, which is not while its session waits before it."""
        lane = self.deliveries._parked.get(lane_key(self.log[seq - 1]))
        if lane is None or lane.seq > seq:
            self.owed.discard(seq)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), wait=st.sampled_from([0.0, 5.0]))
    def fail(self, data: st.DataObject, wait: float) -> None:
        attempt = self.land(data)
        self.failures[attempt.logged.seq] += 1
        self.deliveries.failed(attempt.logged, attempts=attempt.number, at=self.now + wait, reason="HTTP 500")

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        attempt = self.land(data)
        self.deliveries.given_up(attempt.logged, attempts=attempt.number, reason="rejected")
        self.dead.update(letter.seq for letter in self.deliveries._dead)
        self.settle(attempt.logged.seq)

    @rule(back=st.integers(1, 5), session=SESSIONS, unread=st.booleans())
    def replay(self, back: int, session: str | None, unread: bool) -> None:
        """Also of what was not read yet: that comes anyway, and so does what is before it."""
        upto = len(self.log) if unread else self.deliveries.read_upto
        key = lane_key(LoggedEvent(0, Event("", "", session, None, 0.0, 0.0, b"")))
        again = {e.seq for e in self.log[max(0, upto - back) : upto] if lane_key(e) == key}
        if again:
            self.counts_attempts = False
            owed = {seq for seq in again if seq <= self.deliveries.read_upto}
            if min(again) <= self.deliveries.read_upto:
                self.owed |= owed
                self.acknowledged_since_start -= owed
            self.deliveries.replay([Parked(key, min(again), 0, self.now)])

    def land(self, data: st.DataObject) -> Attempt:
        return self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))

    @rule()
    def connection_is_lost(self) -> None:
        self.deliveries.returned(attempt.logged for attempt in self.flying.values())
        self.flying.clear()

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(limit=st.integers(1, 3), far=st.booleans())
    def read_due_lanes(self, limit: int, far: bool) -> None:
        for lane in self.deliveries.due_lanes(self.now):
            upto = len(self.log) if far else self.deliveries.read_upto
            events = [e for e in self.log[:upto] if lane_key(e) == lane.key and e.seq >= lane.seq]
            self.reads[lane.key] = LaneRead(lane, events[:limit], len(events) <= limit)

    @rule()
    def resume_lanes(self) -> None:
        for read in self.reads.values():
            self.deliveries.resume(read.lane, read.events, complete=read.complete)
        self.reads.clear()

    @rule()
    def save(self) -> None:
        progress = self.deliveries.take_progress()
        if progress is None:
            return
        assert progress.cursor >= self.saved_cursor
        self.saved_cursor = progress.cursor
        for lane in progress.parked:
            self.saved_lanes[lane.key] = lane
        for key in progress.released:
            assert key not in {lane.key for lane in progress.parked}
            self.saved_lanes.pop(key, None)
        if not self.pipelined:
            again = {seq for seq in self.acknowledged_since_start - self.owed if self.comes_again(seq)}
            assert not again, "delivered before the save, and yet a crash would repeat it"

    def comes_again(self, seq: int) -> bool:
        """After a crash now."""
        lane = self.saved_lanes.get(lane_key(self.log[seq - 1]))
        return seq >= lane.seq if lane is not None else seq > self.saved_cursor

    @rule()
    def crash(self) -> None:
        self.dead -= {letter.seq for letter in self.deliveries._dead}
        self.counts_attempts = False
        self.start()

    # --- what always holds

    @invariant()
    def nothing_is_lost_by_a_crash(self) -> None:
        unsaved = {letter.seq for letter in self.deliveries._dead}
        for logged in self.log:
            if logged.seq in self.acknowledged | (self.dead - unsaved):
                continue
            lane = self.saved_lanes.get(lane_key(logged))
            assert logged.seq >= lane.seq if lane else logged.seq > self.saved_cursor, f"lost {logged.seq}"

    @invariant()
    def the_next_due_time_is_that_of_the_first_due_lane(self) -> None:
        due = self.deliveries.next_due()
        assert bool(self.deliveries.due_lanes(self.now)) == (due is not None and due <= self.now)

    def teardown(self) -> None:
        """When all is well again, everything arrives, and nothing is left."""
        for _ in range(20 + 6 * len(self.log)):
            self.read(3)
            self.time_passes(5.0)
            self.read_due_lanes(3, far=True)
            self.resume_lanes()
            self.send()
            for _, attempt in sorted(self.flying.items()):
                self.arrive(attempt)
            self.flying.clear()
            self.save()
            self.nothing_is_lost_by_a_crash()
        assert self.acknowledged | self.dead == {logged.seq for logged in self.log}
        assert not self.owed
        assert self.saved_cursor == len(self.log)
        assert not self.saved_lanes
        assert self.deliveries.next_due() is None


class PipelinedDispatcher(Dispatcher):
    pipelined = True
    window = 4


@pytest.mark.parametrize("model", [Dispatcher, PipelinedDispatcher])
@pytest.mark.hypothesis
def test_whatever_happens_nothing_is_lost_and_the_order_holds(model: type[Dispatcher]) -> None:
    limits = settings(max_examples=examples(200), stateful_step_count=40)
    run_state_machine_as_test(model, settings=limits)
