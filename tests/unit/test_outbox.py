"""What a sink is sent next of the lanes that were claimed, and what is recorded of them."""

from collections.abc import Iterable

import pytest

from bace_bridge.delivery.rules.outbox import BEHIND, FRESH, Outbox
from bace_bridge.events.types import (
    BRIDGE_LANE,
    Claimed,
    DeadLetter,
    Event,
    Lane,
    LaneRecord,
    LoggedEvent,
    Piece,
    Recorded,
    Share,
)

ROOM = Share(lanes=10, events=100, size=10_000)


def logged(seq: int, session: str | None = "a", *, size: int = 2, alone: bool = False) -> LoggedEvent:
    return LoggedEvent(seq, Event(f"evt_{seq}", "session.updated", session, None, 0.0, 0.0, b"x" * size), alone=alone)


def piece(
    key: str, *seqs: int, complete: bool = True, size: int = 2, through: int | None = None, **of: object
) -> Piece:
    session = None if key == BRIDGE_LANE else key
    events = tuple(logged(seq, session, size=size) for seq in seqs)
    lane = Lane(key, seqs[0] if seqs else 1, version=7, **of)  # type: ignore[arg-type]  # of a lane
    return Piece(lane, events, (seqs[-1] if seqs else 1) if through is None else through, complete)


def outbox(*pieces: Piece, window: int = 10, pipelined: bool = False, room: Share = ROOM) -> Outbox:
    box = Outbox(window=window, pipelined=pipelined, fresh=room, behind=room)
    box.begin(Claimed(pieces, (), more_fresh=False, more_behind=False, next_due=None))
    return box


def goes_on(box: Outbox, *pieces: Piece) -> None:
    box.begin(Claimed((), pieces, more_fresh=False, more_behind=False, next_due=None))


def sent(box: Outbox) -> list[int]:
    return [attempt.logged.seq for attempt in box.next_attempts()]


def recorded(box: Outbox, *moved: str) -> dict[str, LaneRecord]:
    records = box.progress()
    box.recorded(records, Recorded(frozenset(moved)))
    return {one.lane.key: one for one in records}


def places(records: Iterable[LaneRecord]) -> dict[str, tuple[int, bool]]:
    return {one.lane.key: (one.lane.seq, one.drained) for one in records}


@pytest.mark.parametrize(
    ("window", "pipelined", "now_sent"),
    [(10, False, [1, 2, 4]), (2, False, [1, 2]), (10, True, [1, 2, 4, 3, 5]), (4, True, [1, 2, 4, 3])],
)
def test_what_is_sent_at_once(window: int, pipelined: bool, now_sent: list[int]) -> None:
    box = outbox(piece("a", 1, 3), piece("b", 2, 5), piece(BRIDGE_LANE, 4), window=window, pipelined=pipelined)
    assert sent(box) == now_sent
    assert sent(box) == []
    assert box.in_flight == len(now_sent)


def test_the_events_of_a_lane_follow_one_another() -> None:
    box = outbox(piece("a", 1, 3, 4))
    for seq in (1, 3, 4):
        assert sent(box) == [seq]
        box.delivered(logged(seq))
    assert places(recorded(box).values()) == {"a": (5, True)}
    assert box.idle


def test_a_lane_stands_at_the_first_event_that_is_not_acknowledged() -> None:
    box = outbox(piece("a", 1, 2, 3), pipelined=True)
    sent(box)
    box.delivered(logged(2))
    assert recorded(box) == {}
    box.delivered(logged(1))
    assert places(recorded(box).values()) == {"a": (3, False)}
    box.delivered(logged(3))
    assert places(recorded(box).values()) == {"a": (4, True)}


def test_a_lane_in_which_nothing_is_wanted_is_passed() -> None:
    box = outbox(piece("a", through=40))
    assert places(recorded(box).values()) == {"a": (41, True)}
    assert not box.claim().held


def test_a_failing_lane_rests_from_its_place_and_holds_up_itself_alone() -> None:
    box = outbox(piece("a", 1, 3), piece("b", 2, 4))
    assert sent(box) == [1, 2]
    box.failed(logged(1), attempts=1, at=5.0, reason="HTTP 500")
    box.delivered(logged(2, "b"))
    assert sent(box) == [4], "what follows the failed one waits"
    lane = recorded(box)["a"].lane
    assert lane == Lane("a", 1, 1, 5.0, "HTTP 500", behind=True, version=7)
    assert box.claim().held == {"b"}, "it is read again when it is due"


def test_attempts_are_counted_until_one_succeeds() -> None:
    box = outbox(piece("a", 1, 2, attempts=3, due_at=5.0, behind=True))
    (attempt,) = box.next_attempts()
    assert attempt.number == 4
    box.delivered(attempt.logged)
    (attempt,) = box.next_attempts()
    assert attempt.number == 1
    assert recorded(box)["a"].lane == Lane("a", 2, 0, 5.0, "", behind=True, version=7)


def test_a_lane_that_failed_is_tried_with_one_event() -> None:
    box = outbox(piece("a", 1, 2, 3, attempts=1, behind=True), pipelined=True)
    assert sent(box) == [1]


def test_after_a_dead_letter_its_lane_goes_on() -> None:
    box = outbox(piece("a", 1, 2))
    sent(box)
    letter = DeadLetter(1, "a", 10, "gave up")
    assert box.given_up(logged(1), letter)
    assert sent(box) == [2]
    record = recorded(box)["a"]
    assert (record.lane.seq, record.dead) == (2, (letter,))
    box.delivered(logged(2))
    assert recorded(box)["a"].dead == (), "once"


def test_what_is_behind_a_failure_is_not_given_up_before_its_turn() -> None:
    box = outbox(piece("a", 1, 2), pipelined=True)
    sent(box)
    box.failed(logged(1), attempts=1, at=5.0, reason="500")
    assert not box.given_up(logged(2), DeadLetter(2, "a", 1, "rejected"))
    assert recorded(box)["a"] == LaneRecord(Lane("a", 1, 1, 5.0, "500", behind=True, version=7))


def test_a_lane_rests_no_later_than_at_what_is_still_in_flight() -> None:
    box = outbox(piece("a", 1, 2, 3), pipelined=True)
    sent(box)
    box.failed(logged(2), attempts=4, at=5.0, reason="500")
    assert recorded(box) == {}, "the first may still arrive"
    box.delivered(logged(3))
    box.delivered(logged(1))
    lane = recorded(box)["a"].lane
    assert (lane.seq, lane.attempts, lane.due_at) == (2, 4, 5.0)
    assert not box.claim().held


def test_all_that_is_in_flight_fails() -> None:
    box = outbox(piece("a", 1, 2, 3), pipelined=True)
    sent(box)
    for seq in (2, 1, 3):
        box.failed(logged(seq), attempts=1, at=float(seq), reason="500")
    lane = recorded(box)["a"].lane
    assert (lane.seq, lane.attempts, lane.due_at) == (1, 1, 1.0)


def test_a_lost_connection_is_no_attempt() -> None:
    box = outbox(piece("a", 1, 2, 3), pipelined=True)
    sent(box)
    box.delivered(logged(1))
    for seq in (3, 2):
        box.returned(logged(seq))
    assert [(one.logged.seq, one.number) for one in box.next_attempts()] == [(2, 1), (3, 1)]


def test_what_somebody_has_moved_is_forgotten() -> None:
    box = outbox(piece("a", 1, 2, 3), piece("b", 4))
    assert sent(box) == [1, 4]
    box.delivered(logged(1))
    assert sent(box) == [2]
    assert set(recorded(box, "a")) == {"a"}
    assert box.claim().held == {"a", "b"}, "it has something in flight"
    box.failed(logged(2), attempts=1, at=5.0, reason="500")
    assert recorded(box) == {}, "the row counts"
    assert sent(box) == []
    assert box.claim().held == {"b"}
    assert box.wants_more(), "it is claimed again"


def test_what_happens_while_it_is_recorded_is_recorded_the_next_time() -> None:
    box = outbox(piece("a", 1, 2))
    sent(box)
    box.delivered(logged(1))
    records = box.progress()
    sent(box)
    box.failed(logged(2), attempts=1, at=5.0, reason="500")
    box.recorded(records, Recorded())
    assert (records[0].lane.seq, records[0].lane.attempts) == (2, 0)
    assert recorded(box)["a"].lane == Lane("a", 2, 1, 5.0, "500", behind=True, version=7)


def test_a_long_lane_is_read_in_pieces_before_it_runs_dry() -> None:
    box = outbox(piece("a", *range(1, 41), complete=False))
    assert not box.wants_more()
    for seq in range(1, 31):
        assert sent(box) == [seq]
        box.delivered(logged(seq))
    assert box.wants_more()
    ((lane, start),) = box.claim().read_on
    assert (lane.key, start) == ("a", 41)
    goes_on(box, piece("a", 41, 42))
    for seq in range(31, 43):
        assert sent(box) == [seq]
        box.delivered(logged(seq))
    assert places(recorded(box).values()) == {"a": (43, True)}


def test_what_was_read_of_a_lane_that_failed_meanwhile_is_not_taken() -> None:
    box = outbox(piece("a", 1, complete=False))
    sent(box)
    assert box.claim().read_on
    box.failed(logged(1), attempts=1, at=5.0, reason="500")
    goes_on(box, piece("a", 2, 3))
    assert sent(box) == []
    assert recorded(box)["a"].lane.seq == 1


def test_lanes_that_are_behind_take_turns_with_the_others() -> None:
    """A long replay holds up no alarm, nor does one long lane."""
    replayed = [piece(f"r{one}", one, behind=True, replay_through=99) for one in range(1, 9)]
    box = outbox(*replayed, piece("alarm", 100), window=2)
    assert 100 in sent(box)
    long = outbox(piece("long", *range(1, 50)), piece("alarm", 100), window=2, pipelined=True)
    assert sent(long) == [1, 100]


def test_only_what_was_delivered_before_is_marked_as_a_replay() -> None:
    box = outbox(piece("a", 1, 2, 3, behind=True, replay_through=2), pipelined=True)
    assert [one.replay for one in box.next_attempts()] == [True, True, False]


@pytest.mark.parametrize("room", [Share(2, 100, 10_000), Share(10, 4, 10_000), Share(10, 100, 40)])
def test_only_so_many_lanes_events_and_bytes_are_held(room: Share) -> None:
    box = Outbox(window=10, pipelined=False, fresh=room, behind=ROOM)
    pieces = (piece("a", 1, 3, size=10), piece("b", 2, 4, size=10))
    box.begin(Claimed(pieces, (), more_fresh=True, more_behind=False, next_due=None))
    assert 0 in (box.claim().fresh.lanes, box.claim().fresh.events, box.claim().fresh.size)
    assert not box.wants_more()
    assert box.claim().behind == ROOM, "lanes that are behind have a room of their own"
    sent(box)
    box.delivered(logged(1))
    sent(box)
    box.delivered(logged(3))
    assert box.wants_more()


def test_a_slow_lane_with_much_to_deliver_leaves_room_for_others() -> None:
    room = Share(lanes=10, events=100, size=10_000)
    box = Outbox(window=10, pipelined=False, fresh=room, behind=ROOM)
    slow = piece("slow", *range(1, 101))
    box.begin(Claimed((slow,), (), more_fresh=False, more_behind=False, next_due=None))
    assert sent(box) == [1]
    assert box.claim().fresh.events == 0
    box.begin(Claimed((), (), more_fresh=True, more_behind=False, next_due=None))
    assert box.claim().fresh.events > 50, "what waits of it is read again later"
    assert box.wants_more()
    assert not box.claim().read_on
    box.begin(Claimed((piece("other", 200),), (), more_fresh=False, more_behind=False, next_due=None))
    assert sent(box) == [200]
    for seq in range(1, 21):
        box.delivered(logged(seq, "slow"))
        assert sent(box) == [seq + 1]
    assert recorded(box)["slow"].lane.seq == 21
    assert [start for _, start in box.claim().read_on] == [22]


def test_when_the_clock_is_set_what_rests_rests_as_long_as_before() -> None:
    box = outbox(piece("a", 1), piece("b", 2, due_at=3.0, behind=True))
    sent(box)
    box.failed(logged(1), attempts=1, at=5.0, reason="500")
    box.clock_stepped(100.0)
    box.delivered(logged(2, "b"))
    assert recorded(box)["a"].lane.due_at == 105.0


def test_a_dead_letter_that_is_tried_again_is_a_lane_of_its_own() -> None:
    letter = Piece(Lane("letter:1", 1, behind=True), (logged(1, alone=True),), 1, complete=True)
    box = outbox(piece("a", 5), letter)
    assert sorted(sent(box)) == [1, 5]
    box.failed(logged(1, alone=True), attempts=1, at=9.0, reason="500")
    box.delivered(logged(5))
    records = recorded(box)
    assert (records["letter:1"].lane.seq, records["letter:1"].lane.due_at) == (1, 9.0)
    assert records["a"].drained


def test_while_it_winds_up_what_is_behind_waits_for_the_next_start() -> None:
    box = outbox()
    box.begin(Claimed((), (), more_fresh=False, more_behind=True, next_due=None))
    assert box.wants_more()
    box.winding_up = True
    assert not box.wants_more()
    assert box.idle
    assert box.claim().behind.lanes == 0


def test_a_lane_of_which_nothing_is_left_goes_on_beside_slow_ones_that_take_most_of_the_room() -> None:
    box = outbox(piece("slow", *range(1, 71)), piece("a", 101, complete=False))
    sent(box)
    assert not box.wants_more(), "some of it is on its way"
    box.delivered(logged(101))
    assert box.wants_more()


def test_slow_lanes_that_take_all_the_room_are_cut_where_another_has_nothing_left() -> None:
    box = outbox(piece("slow", *range(1, 71)), piece("a", 101, complete=False))
    sent(box)
    box.delivered(logged(101))
    box.begin(Claimed((piece("b", *range(201, 240)),), (), more_fresh=False, more_behind=False, next_due=None))
    assert box.wants_more()
    assert ("a", 102) in [(lane.key, start) for lane, start in box.claim().read_on]
    assert box.claim().fresh.events > 0


def test_a_lane_that_was_let_go_of_while_a_claim_was_on_its_way_is_asked_for_again() -> None:
    box = outbox(piece("a", 1))
    sent(box)
    box.delivered(logged(1))
    assert box.claim().held == {"a"}, "so it is left out, and it may have another row by now"
    recorded(box)
    goes_on(box)
    assert box.wants_more()
    assert not box.claim().held
    goes_on(box)
    assert not box.wants_more()


def test_a_sink_with_a_small_window_holds_a_part_of_what_others_do() -> None:
    webhook, broker = (Outbox(window=window, pipelined=False).claim() for window in (10, 200))
    assert (broker.fresh, broker.behind) == (FRESH, BEHIND)
    assert (webhook.fresh.events, webhook.behind.events) == (FRESH.events // 5, BEHIND.events // 5)
    assert Outbox(window=1, pipelined=False).claim().fresh == webhook.fresh, "a long lane is not read one by one"
