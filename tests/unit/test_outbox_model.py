"""A model of the dispatcher drives `Outbox` and the lanes in a real store: failures, lost connections, crashes, and
another process that moves a row at any moment."""

import sqlite3
from collections import Counter
from pathlib import Path

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

from bace_bridge.delivery.rules.outbox import Outbox
from bace_bridge.events.types import (
    BRIDGE_LANE,
    Attempt,
    Claim,
    Claimed,
    DeadLetter,
    Event,
    Filter,
    LaneRecord,
    Recorded,
    Share,
    lane_key,
    letter_seq,
    session_lane,
)
from bace_bridge.store import lanes
from bace_bridge.store.migrations import migrate
from tests.models import examples

SINK = "hook"
SESSIONS = st.sampled_from(["a", "b", None])
LANES = st.sampled_from(["a", "b", BRIDGE_LANE])
LARGE = 10**9


class Dispatcher(RuleBasedStateMachine):
    """The connection is what a crash leaves; everything else is gone with the process."""

    pipelined = False
    window = 2

    def __init__(self) -> None:
        super().__init__()
        self.store = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.store, Path("memory"))
        self.store.execute("insert into sinks (name) values (?)", (SINK,))
        self.lane_of: dict[int, str] = {}
        self.acknowledged: set[int] = set()
        self.given_up: set[int] = set()
        self.skipped: set[int] = set()
        self.owed: set[int] = set()
        self.now = 0.0
        self.start()

    def start(self) -> None:
        self.outbox = Outbox(
            window=self.window, pipelined=self.pipelined, fresh=Share(2, 3, LARGE), behind=Share(1, 2, LARGE)
        )
        self.flying: dict[tuple[str, int], Attempt] = {}
        self.asked: Claim | None = None
        self.claimed: Claimed | None = None
        self.records: tuple[LaneRecord, ...] | None = None
        self.outcome: Recorded | None = None
        self.grown = True
        self.next_due: float | None = None
        self.acknowledged_since_start: set[int] = set()
        self.failures: Counter[int] = Counter()
        self.uncounted: set[str] = {"a", "b", BRIDGE_LANE} if self.lane_of else set()

    # --- what may happen

    @rule(sessions=st.lists(SESSIONS, min_size=1, max_size=4))
    def log_grows(self, sessions: list[str | None]) -> None:
        for session in sessions:
            seq = len(self.lane_of) + 1
            event = Event(f"evt_{seq}", "session.started", session, None, 0.0, 0.0, b"{}")
            lanes.append_events(self.store, [event])
            self.lane_of[seq] = session_lane(event)
        self.grown = True

    @property
    def may_claim(self) -> bool:
        due = self.next_due is not None and self.next_due <= self.now
        return self.grown or due or self.outbox.wants_more()

    @precondition(lambda self: self.asked is None and self.claimed is None and self.may_claim)
    @rule()
    def ask_for_claim(self) -> None:
        self.grown = False
        self.asked = self.outbox.claim()

    @precondition(lambda self: self.asked is not None)
    @rule()
    def read_claim(self) -> None:
        assert self.asked is not None
        self.claimed = lanes.claim(self.store, SINK, Filter(), self.asked, now=self.now)
        self.asked = None

    @precondition(lambda self: self.claimed is not None)
    @rule()
    def take_claim(self) -> None:
        assert self.claimed is not None
        self.next_due = self.claimed.next_due
        self.outbox.begin(self.claimed)
        self.claimed = None

    @rule()
    def send(self) -> None:
        for attempt in self.outbox.next_attempts():
            self.check(attempt)
            self.flying[lane_key(attempt.logged), attempt.logged.seq] = attempt
        assert len(self.flying) == self.outbox.in_flight <= self.window

    @precondition(lambda self: self.asked is None and self.claimed is None and self.may_claim)
    @rule()
    def claim_and_send(self) -> None:
        self.ask_for_claim()
        self.read_claim()
        self.take_claim()
        self.send()

    @precondition(lambda self: self.flying)
    @rule()
    def all_arrive(self) -> None:
        for _, attempt in sorted(self.flying.items()):
            self.arrive(attempt)
        self.flying.clear()

    def check(self, attempt: Attempt) -> None:
        seq, key = attempt.logged.seq, lane_key(attempt.logged)
        assert (key, seq) not in self.flying
        passed = self.acknowledged | self.given_up | self.skipped
        assert not attempt.replay or seq in passed, "told for the first time"
        if self.pipelined:
            return
        assert seq not in self.acknowledged_since_start, "sent twice"
        assert key not in {lane for lane, _ in self.flying}
        if not attempt.logged.alone:
            assert {one for one, lane in self.lane_of.items() if lane == key and one < seq} <= passed, "out of order"
            if key not in self.uncounted:
                assert attempt.number == self.failures[seq] + 1

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.arrive(self.land(data))

    def arrive(self, attempt: Attempt) -> None:
        self.acknowledged.add(attempt.logged.seq)
        self.owed.discard(attempt.logged.seq)
        if self.lane_of[attempt.logged.seq] not in self.uncounted:
            self.acknowledged_since_start.add(attempt.logged.seq)
        self.outbox.delivered(attempt.logged)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), wait=st.sampled_from([0.0, 5.0]))
    def fail(self, data: st.DataObject, wait: float) -> None:
        attempt = self.land(data)
        self.failures[attempt.logged.seq] += 1
        self.outbox.failed(attempt.logged, attempts=attempt.number, at=self.now + wait, reason="HTTP 500")

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        attempt = self.land(data)
        seq = attempt.logged.seq
        letter = DeadLetter(seq, self.lane_of[seq], attempt.number, "rejected")
        if self.outbox.given_up(attempt.logged, letter):
            self.given_up.add(seq)
            self.owed.discard(seq)

    def land(self, data: st.DataObject) -> Attempt:
        return self.flying.pop(data.draw(st.sampled_from(sorted(self.flying))))

    @rule()
    def connection_is_lost(self) -> None:
        for attempt in self.flying.values():
            self.outbox.returned(attempt.logged)
        self.flying.clear()

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.records is None)
    @rule()
    def prepare_record(self) -> None:
        self.records = self.outbox.progress()

    @precondition(lambda self: self.records is not None and self.outcome is None)
    @rule()
    def write_record(self) -> None:
        assert self.records is not None
        self.outcome = lanes.record_lanes(self.store, SINK, self.records, now=self.now)

    @precondition(lambda self: self.outcome is not None)
    @rule()
    def take_record(self) -> None:
        assert self.records is not None
        assert self.outcome is not None
        self.outbox.recorded(self.records, self.outcome)
        self.grown = self.grown or self.outcome.more or bool(self.outcome.moved)
        waiting = [one.lane.due_at for one in self.records if one.lane.attempts]
        self.next_due = min([*waiting, *([] if self.next_due is None else [self.next_due])], default=None)
        self.records = self.outcome = None

    @precondition(lambda self: self.records is not None and self.outcome is None)
    @rule()
    def record_fails(self) -> None:
        self.records = None

    @precondition(lambda self: self.records is not None)
    @rule()
    def record_is_cut_off(self) -> None:
        """It may have been written, and nobody knows."""
        self.records = self.outcome = None

    @rule()
    def crash(self) -> None:
        self.start()

    # --- what another process does

    @rule(session=SESSIONS, back=st.integers(0, 5))
    def replay(self, session: str | None, back: int) -> None:
        first = max(1, len(self.lane_of) - back)
        self.store.execute("update events set observed_at = seq")
        sessions = lanes.sessions_after(self.store, "", 9)
        lanes.replay(self.store, SINK, [None, *sessions] if session is None else [session], since=float(first))
        of = {seq for seq, lane in self.lane_of.items() if session is None or lane == session}
        self.owed |= {seq for seq in of if seq >= first}
        self.moved(*([session] if session is not None else ["a", "b", BRIDGE_LANE]))

    @rule(key=LANES)
    def try_at_once(self, key: str) -> None:
        version = lanes.next_version(self.store)
        self.store.execute("update lanes set due_at = 0, version = ? where lane = ?", (version, key))
        self.moved(key)

    @rule(key=LANES)
    def skip(self, key: str) -> None:
        row = self.store.execute("select seq from lanes where lane = ?", (key,)).fetchone()
        left = [seq for seq, lane in self.lane_of.items() if row and lane == key and seq >= row[0]]
        if left:
            version = lanes.next_version(self.store)
            query = "update lanes set seq = ?, attempts = 0, version = ? where lane = ?"
            self.store.execute(query, (left[0] + 1, version, key))
            self.skipped.add(left[0])
            self.owed.discard(left[0])
            self.moved(key)

    @rule(key=LANES)
    def drop(self, key: str) -> None:
        row = self.store.execute("select seq from lanes where lane = ?", (key,)).fetchone()
        if row is not None:
            self.store.execute("delete from lanes where lane = ?", (key,))
            dropped = {seq for seq, lane in self.lane_of.items() if lane == key and seq >= row[0]}
            self.skipped |= dropped
            self.owed -= dropped
            self.moved(key)

    @rule()
    def retry_letters(self) -> None:
        letters = self.store.execute("select sink, seq from dead_letters").fetchall()
        lanes.retry_letters(self.store, letters)
        self.moved(*(self.lane_of[seq] for _, seq in letters))

    def moved(self, *keys: str) -> None:
        self.grown = True
        self.uncounted |= set(keys)
        self.acknowledged_since_start -= {seq for seq, lane in self.lane_of.items() if lane in keys}

    # --- what always holds

    @invariant()
    def nothing_is_lost_by_a_crash(self) -> None:
        rows = dict(self.store.execute("select lane, seq from lanes"))
        covered = {row[0] for row in self.store.execute("select seq from dead_letters")}
        covered |= {seq for key in rows if (seq := letter_seq(key)) is not None}
        for seq, lane in self.lane_of.items():
            if seq not in self.acknowledged | self.skipped | covered:
                assert seq >= rows.get(lane, LARGE), f"lost {seq}"

    def teardown(self) -> None:
        """When all is well again, everything arrives, and nothing is left."""
        for _ in range(30 + 6 * len(self.lane_of)):
            if self.asked is None and self.claimed is None and self.may_claim:
                self.ask_for_claim()
            if self.asked is not None:
                self.read_claim()
            if self.claimed is not None:
                self.take_claim()
            self.time_passes(5.0)
            self.send()
            self.all_arrive()
            if self.records is None:
                self.prepare_record()
            if self.outcome is None:
                self.write_record()
            self.take_record()
            self.nothing_is_lost_by_a_crash()
        assert self.store.execute("select * from lanes").fetchall() == []
        assert self.outbox.idle
        assert not self.outbox.claim().held
        assert not self.may_claim
        dead = {row[0] for row in self.store.execute("select seq from dead_letters")}
        assert self.acknowledged | dead | self.skipped == set(self.lane_of)
        assert not self.owed, "a replay was asked for and did not come"
        self.store.close()


class PipelinedDispatcher(Dispatcher):
    pipelined = True
    window = 4


@pytest.mark.parametrize("model", [Dispatcher, PipelinedDispatcher])
@pytest.mark.hypothesis
def test_whatever_happens_nothing_is_lost_and_the_order_holds(
    model: type[Dispatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "LEAST", 2)  # so that a lane is read in several pieces
    limits = settings(max_examples=examples(200), stateful_step_count=40)
    run_state_machine_as_test(model, settings=limits)
