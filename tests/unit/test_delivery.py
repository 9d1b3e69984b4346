"""The deliveries of one sink, step by step; `test_delivery_model.py` drives them at random."""

from collections.abc import Sequence

import pytest

from bace_bridge.domain.delivery import Deliveries
from bace_bridge.domain.events import Event, LoggedEvent
from bace_bridge.domain.lanes import BRIDGE_LANE, UNDER_WAY, Attempt, DeadLetter, Parked, Progress, lane_key


def logged(seq: int, session: str | None) -> LoggedEvent:
    return LoggedEvent(seq, Event(f"evt_{seq}", "session.started", session, "d", 0.0, 0.0, b"{}"))


def log(sessions: str) -> list[LoggedEvent]:
    """One event a letter, which names its data session; `-` is an event of the bridge itself."""
    return [logged(seq, None if name == "-" else name) for seq, name in enumerate(sessions, start=1)]


def offered(sessions: str, *, window: int = 10, pipelined: bool = False, lookahead: int = 100) -> Deliveries:
    deliveries = Deliveries(0, window=window, pipelined=pipelined, lookahead=lookahead)
    deliveries.offer(log(sessions), read_upto=len(sessions))
    return deliveries


def told(attempts: Sequence[Attempt]) -> str:
    """`a1 b2`: session and place in the log; the number of the attempt where it is not the first."""
    return " ".join(
        f"{lane_key(one.logged)}{one.logged.seq}" + (f"#{one.number}" if one.number > 1 else "") for one in attempts
    )


def is_full(deliveries: Deliveries) -> bool:
    return not deliveries.room_to_read


def fail(deliveries: Deliveries, event: LoggedEvent, *, attempts: int = 1, at: float = 5.0) -> None:
    deliveries.failed(event, attempts=attempts, at=at, reason="HTTP 500")


def resume(deliveries: Deliveries, events: Sequence[LoggedEvent], *, now: float = 5.0, complete: bool = True) -> None:
    (lane,) = deliveries.due_lanes(now)
    deliveries.resume(lane, events, complete=complete)


@pytest.mark.parametrize(
    ("sessions", "window", "pipelined", "now_sent"),
    [
        ("abc", 10, False, "a1 b2 c3"),
        ("aab", 10, False, "a1 b3"),
        ("aab", 10, True, "a1 a2 b3"),
        ("abc", 2, False, "a1 b2"),
        ("aabc", 2, False, "a1 b3"),
        ("aaa", 2, True, "a1 a2"),
        ("--a", 10, False, ":bridge1 a3"),
        ("", 10, False, ""),
    ],
)
def test_what_is_sent_at_once(sessions: str, window: int, pipelined: bool, now_sent: str) -> None:
    deliveries = offered(sessions, window=window, pipelined=pipelined)
    assert told(deliveries.next_attempts()) == now_sent
    assert told(deliveries.next_attempts()) == ""
    assert deliveries.in_flight == len(now_sent.split())


def test_the_events_of_a_session_follow_one_another() -> None:
    deliveries = offered("aaba")
    one, two, _, four = log("aaba")
    assert told(deliveries.next_attempts()) == "a1 b3"
    deliveries.delivered(one)
    assert told(deliveries.next_attempts()) == "a2"
    deliveries.delivered(two)
    assert told(deliveries.next_attempts()) == "a4"
    deliveries.delivered(four)
    assert deliveries.cursor == 2  # b3 is still in flight


def test_the_cursor_passes_what_is_over() -> None:
    deliveries = offered("abc")
    a, b, c = log("abc")
    deliveries.next_attempts()
    assert deliveries.take_progress() is None
    deliveries.delivered(b)
    assert deliveries.cursor == 0
    assert deliveries.take_progress() == Progress(2, parked=(Parked("a", 1, 0, 0.0, UNDER_WAY),))
    deliveries.delivered(a)
    assert deliveries.cursor == 2
    assert deliveries.take_progress() == Progress(2, released=("a",))
    deliveries.given_up(c, attempts=10, reason="gave up after 10 attempts")
    dead = DeadLetter(3, "c", 10, "gave up after 10 attempts")
    assert deliveries.take_progress() == Progress(3, dead=(dead,))
    assert deliveries.take_progress() is None


def test_the_cursor_passes_what_is_not_wanted() -> None:
    deliveries = offered("")
    deliveries.offer([], read_upto=7)
    assert deliveries.take_progress() == Progress(7)


def test_only_so_many_events_are_held() -> None:
    deliveries = offered("ab", lookahead=3)
    assert not is_full(deliveries)
    deliveries.offer([logged(3, "c"), logged(4, "d")], read_upto=4)
    assert is_full(deliveries)
    deliveries.next_attempts()
    deliveries.delivered(logged(1, "a"))
    assert is_full(deliveries)
    fail(deliveries, logged(2, "b"))
    assert not is_full(deliveries)


def test_only_so_many_bytes_are_held() -> None:
    deliveries = Deliveries(0, window=10, pipelined=False, lookahead_bytes=4)
    deliveries.offer(log("aaa"), read_upto=3)  # of two bytes each
    assert is_full(deliveries)
    deliveries.next_attempts()
    fail(deliveries, logged(1, "a"))
    assert not is_full(deliveries)
    assert deliveries.cursor == 3


def test_a_failing_session_holds_up_itself_alone() -> None:
    deliveries = offered("aabab")
    a1, _, b3, _, b5 = log("aabab")
    deliveries.next_attempts()
    fail(deliveries, a1)
    deliveries.delivered(b3)
    assert told(deliveries.next_attempts()) == "b5"
    deliveries.delivered(b5)
    assert deliveries.take_progress() == Progress(5, parked=(Parked("a", 1, 1, 5.0, "HTTP 500"),))


def test_later_events_of_a_parked_session_stay_in_the_log() -> None:
    deliveries = offered("a")
    deliveries.next_attempts()
    fail(deliveries, logged(1, "a"))
    deliveries.offer([logged(2, "a"), logged(3, "b")], read_upto=3)
    assert told(deliveries.next_attempts()) == "b3"
    deliveries.delivered(logged(3, "b"))
    assert deliveries.cursor == 3


def test_a_parked_session_goes_on_in_its_order_when_it_is_due() -> None:
    deliveries = offered("aab")
    a1, a2, b3 = log("aab")
    deliveries.next_attempts()
    deliveries.delivered(b3)
    fail(deliveries, a1)
    assert deliveries.due_lanes(4.9) == []
    assert deliveries.next_due() == 5.0
    resume(deliveries, [a1, a2])
    assert deliveries.next_due() is None
    assert told(deliveries.next_attempts()) == "a1#2"
    deliveries.delivered(a1)
    assert told(deliveries.next_attempts()) == "a2"
    deliveries.delivered(a2)
    deliveries.take_progress()
    resume(deliveries, [])
    assert deliveries.take_progress() == Progress(3, released=("a",))
    deliveries.offer([logged(4, "a")], read_upto=4)
    assert told(deliveries.next_attempts()) == "a4"


def test_attempts_are_counted_until_one_succeeds() -> None:
    deliveries = offered("aa")
    a1, a2 = log("aa")
    deliveries.next_attempts()
    fail(deliveries, a1, attempts=1, at=5.0)
    resume(deliveries, [a1, a2])
    assert told(deliveries.next_attempts()) == "a1#2"
    fail(deliveries, a1, attempts=2, at=300.0)
    assert deliveries.due_lanes(299.0) == []
    resume(deliveries, [a1, a2], now=300.0)
    assert told(deliveries.next_attempts()) == "a1#3"
    deliveries.delivered(a1)
    assert told(deliveries.next_attempts()) == "a2"
    fail(deliveries, a2, attempts=1, at=305.0)
    assert deliveries.take_progress() == Progress(2, parked=(Parked("a", 2, 1, 305.0, "HTTP 500"),))


def test_after_a_dead_letter_its_session_goes_on() -> None:
    deliveries = offered("aa")
    a1, a2 = log("aa")
    deliveries.next_attempts()
    fail(deliveries, a1)
    resume(deliveries, [a1, a2])
    deliveries.next_attempts()
    deliveries.given_up(a1, attempts=2, reason="rejected")
    assert told(deliveries.next_attempts()) == "a2"


def test_a_parked_session_is_read_in_portions() -> None:
    deliveries = offered("aaa")
    a1, a2, a3 = log("aaa")
    deliveries.next_attempts()
    fail(deliveries, a1)
    for portion, complete in ([a1, a2], False), ([a3], True):
        resume(deliveries, portion, complete=complete)
        for event in portion:
            assert [attempt.logged for attempt in deliveries.next_attempts()] == [event]
            deliveries.delivered(event)
    resume(deliveries, [])
    assert deliveries.next_due() is None


def test_a_lost_connection_is_no_attempt() -> None:
    deliveries = offered("abab")
    a1, b2, _, _ = log("abab")
    deliveries.next_attempts()
    deliveries.returned([b2, a1])
    assert deliveries.in_flight == 0
    assert told(deliveries.next_attempts()) == "a1 b2"
    assert deliveries.take_progress() is None


def test_after_a_restart_parked_sessions_are_parked() -> None:
    deliveries = Deliveries(1, [Parked("a", 2, 3, 60.0)], window=10, pipelined=False)
    deliveries.offer([logged(2, "a"), logged(3, "b"), logged(4, "a")], read_upto=4)
    assert told(deliveries.next_attempts()) == "b3"
    assert deliveries.next_due() == 60.0
    resume(deliveries, [logged(2, "a"), logged(4, "a")], now=60.0)
    assert told(deliveries.next_attempts()) == "a2#4"


def test_the_bridges_own_events_are_a_lane() -> None:
    deliveries = offered("-a-")
    deliveries.next_attempts()
    fail(deliveries, logged(1, None))
    deliveries.delivered(logged(2, "a"))
    assert deliveries.take_progress() == Progress(3, parked=(Parked(BRIDGE_LANE, 1, 1, 5.0, "HTTP 500"),))


# --- pipelined: several events of a session are in flight at once


def test_all_that_is_in_flight_fails() -> None:
    deliveries = offered("aaa", pipelined=True)
    deliveries.next_attempts()
    for event in log("aaa"):
        fail(deliveries, event)
    assert deliveries.take_progress() == Progress(3, parked=(Parked("a", 1, 1, 5.0, "HTTP 500"),))


def test_a_session_is_parked_no_later_than_what_is_still_in_flight() -> None:
    deliveries = offered("aab", pipelined=True)
    a1, a2, _ = log("aab")
    deliveries.next_attempts()
    fail(deliveries, a2)
    assert deliveries.take_progress() == Progress(0, parked=(Parked("a", 1, 0, 5.0, "HTTP 500"),))
    deliveries.returned([a1])
    deliveries.delivered(logged(3, "b"))
    assert told(deliveries.next_attempts()) == ""
    assert deliveries.cursor == 3
    resume(deliveries, [a1, a2])
    assert told(deliveries.next_attempts()) == "a1"


def test_what_was_still_in_flight_is_not_sent_again_when_it_arrives() -> None:
    deliveries = offered("aa", pipelined=True)
    a1, a2 = log("aa")
    deliveries.next_attempts()
    fail(deliveries, a2)
    deliveries.delivered(a1)
    assert deliveries.take_progress() == Progress(2, parked=(Parked("a", 2, 0, 5.0, "HTTP 500"),))


def test_a_session_does_not_go_on_while_it_has_something_in_flight() -> None:
    deliveries = offered("aaa", pipelined=True)
    a1, a2, a3 = log("aaa")
    deliveries.next_attempts()
    fail(deliveries, a1)
    assert deliveries.due_lanes(99.0) == []
    assert deliveries.next_due() is None
    deliveries.delivered(a2)
    deliveries.delivered(a3)
    assert deliveries.next_due() == 5.0
    resume(deliveries, [a1, a2, a3])
    assert told(deliveries.next_attempts()) == "a1#2"


def test_what_is_behind_a_failure_is_not_given_up_before_its_turn() -> None:
    deliveries = offered("aa", pipelined=True)
    a1, a2 = log("aa")
    deliveries.next_attempts()
    fail(deliveries, a1)
    deliveries.given_up(a2, attempts=1, reason="rejected")
    assert deliveries.take_progress() == Progress(2, parked=(Parked("a", 1, 1, 5.0, "HTTP 500"),))


# --- the log grows while a parked session is read


def test_an_event_is_not_sent_twice_that_still_waits_when_its_session_goes_on() -> None:
    deliveries = offered("aba", window=1)
    a1, b2, a3 = log("aba")
    deliveries.next_attempts()
    fail(deliveries, a1)
    assert told(deliveries.next_attempts()) == "b2"
    resume(deliveries, [a1, a3])
    deliveries.delivered(b2)
    sent = []
    while attempts := deliveries.next_attempts():
        sent.append(told(attempts))
        deliveries.delivered(attempts[0].logged)
    assert sent == ["a1#2", "a3"]
    resume(deliveries, [])
    assert deliveries.take_progress() == Progress(3, released=("a",))


def test_a_session_goes_on_no_further_than_the_log_was_read() -> None:
    deliveries = offered("a")
    a1, a2 = log("aa")
    deliveries.next_attempts()
    fail(deliveries, a1)
    resume(deliveries, [a1, a2])
    deliveries.next_attempts()
    deliveries.delivered(a1)
    resume(deliveries, [a2])
    assert deliveries.take_progress() == Progress(1, released=("a",))
    deliveries.offer([a2], read_upto=2)
    assert told(deliveries.next_attempts()) == "a2"


def test_an_event_that_came_after_the_reading_is_not_lost() -> None:
    deliveries = offered("a")
    a1, a2 = log("aa")
    deliveries.next_attempts()
    fail(deliveries, a1)
    resume(deliveries, [a1])
    deliveries.next_attempts()
    deliveries.delivered(a1)
    (lane,) = deliveries.due_lanes(5.0)
    nothing: list[LoggedEvent] = []
    deliveries.offer([a2], read_upto=2)
    deliveries.resume(lane, nothing, complete=True)
    resume(deliveries, [a2])
    assert told(deliveries.next_attempts()) == "a2"


def test_a_session_whose_next_event_is_gone_from_the_log_is_released() -> None:
    deliveries = offered("a")
    deliveries.next_attempts()
    fail(deliveries, logged(1, "a"))
    deliveries.offer([logged(2, "a")], read_upto=2)
    resume(deliveries, [])
    resume(deliveries, [])
    assert deliveries.next_due() is None


def test_an_event_in_flight_does_not_hide_a_replay() -> None:
    deliveries = offered("aaaa")
    a1, a2, a3, a4 = log("aaaa")
    for event in (a1, a2):
        deliveries.next_attempts()
        deliveries.delivered(event)
    assert told(deliveries.next_attempts()) == "a3"
    deliveries.replay([Parked("a", 1, 0, 0.0)])
    assert deliveries.due_lanes(5.0) == []
    deliveries.delivered(a3)
    resume(deliveries, [a1, a2, a3, a4])
    sent = []
    while attempts := deliveries.next_attempts():
        sent.append(told(attempts))
        deliveries.delivered(attempts[0].logged)
    assert sent == ["a1", "a2", "a3", "a4"]
    resume(deliveries, [])
    assert deliveries.take_progress() == Progress(4, released=("a",))


def test_a_replay_wins_over_a_session_that_is_just_being_read() -> None:
    deliveries = offered("aa")
    a1, a2 = log("aa")
    deliveries.next_attempts()
    deliveries.delivered(a1)
    deliveries.next_attempts()
    fail(deliveries, a2)
    (lane,) = deliveries.due_lanes(5.0)
    deliveries.replay([Parked("a", 1, 0, 0.0)])
    deliveries.resume(lane, [a2], complete=True)
    resume(deliveries, [a1, a2])
    assert told(deliveries.next_attempts()) == "a1"


def test_a_replay_does_not_skip_what_is_parked_earlier() -> None:
    deliveries = offered("aa")
    deliveries.next_attempts()
    fail(deliveries, logged(1, "a"))
    deliveries.replay([Parked("a", 2, 0, 0.0)])
    assert [lane.seq for lane in deliveries.due_lanes(5.0)] == [1]


def test_a_replay_does_not_skip_what_is_not_delivered_yet() -> None:
    deliveries = offered("aaab")
    deliveries.next_attempts()
    deliveries.replay([Parked("a", 2, 0, 0.0)])
    deliveries.returned([logged(1, "a")])
    assert [lane.seq for lane in deliveries.due_lanes(5.0)] == [1]
    deliveries.delivered(logged(4, "b"))
    assert told(deliveries.next_attempts()) == ""
    assert deliveries.cursor == 4


def test_a_replay_of_what_was_not_read_yet_leaves_nothing_out() -> None:
    deliveries = offered("a")
    deliveries.replay([Parked("a", 3, 0, 0.0)])
    deliveries.offer([logged(2, "a"), logged(3, "a")], read_upto=3)
    for seq in (1, 2, 3):
        assert told(deliveries.next_attempts()) == f"a{seq}"
        deliveries.delivered(logged(seq, "a"))
    assert deliveries.due_lanes(5.0) == []


def test_a_session_that_waits_for_a_later_attempt_is_tried_at_once_when_it_is_asked_for() -> None:
    deliveries = offered("aa")
    deliveries.next_attempts()
    fail(deliveries, logged(1, "a"))
    assert deliveries.due_lanes(0.0) == []
    deliveries.replay([Parked("a", 2, 0, 0.0)])
    assert [(lane.seq, lane.attempts) for lane in deliveries.due_lanes(0.0)] == [(1, 1)]


def test_new_events_and_those_of_parked_sessions_take_turns() -> None:
    deliveries = offered("abababab", window=1)
    deliveries.replay([Parked(key, 1, 0, 0.0) for key in "ab"])
    lanes = [logged(seq, "ab"[(seq + 1) % 2]) for seq in range(1, 9)]
    for lane in deliveries.due_lanes(0.0):
        deliveries.resume(lane, [one for one in lanes if one.event.session_id == lane.key], complete=True)
    deliveries.offer([logged(seq, "c") for seq in (9, 10, 11)], read_upto=11)
    order = []
    while attempts := deliveries.next_attempts():
        order.append(attempts[0].logged.event.session_id)
        deliveries.delivered(attempts[0].logged)
    assert order.count("c") == 3
    assert {len(order[at : at + 2]) - order[at : at + 2].count("c") for at in (0, 2, 4)} == {1}


def test_a_slow_session_with_much_to_tell_leaves_room_for_others() -> None:
    deliveries = Deliveries(0, window=10, pipelined=False, lookahead=6, long_lane=2)
    many = [logged(seq, "slow") for seq in range(1, 7)]
    deliveries.offer(many, read_upto=6)
    assert deliveries.room_to_read, "what waits of it comes again from the log"
    assert deliveries.next_attempts() == []
    (lane,) = deliveries.due_lanes(0.0)
    assert (lane.seq, lane.attempts) == (1, 0)
    deliveries.resume(lane, many[:3], complete=False)
    deliveries.offer([logged(7, "alarm")], read_upto=7)
    assert sorted(attempt.logged.seq for attempt in deliveries.next_attempts()) == [1, 7]


def test_what_is_set_aside_begins_with_what_is_in_flight() -> None:
    deliveries = Deliveries(0, window=10, pipelined=False, lookahead=4, long_lane=1)
    deliveries.offer([logged(1, "slow")], read_upto=1)
    assert told(deliveries.next_attempts()) == "slow1"
    deliveries.offer([logged(seq, "slow") for seq in (2, 3)] + [logged(4, "b")], read_upto=4)
    assert told(deliveries.next_attempts()) == "b4"
    deliveries.delivered(logged(4, "b"))
    progress = deliveries.take_progress()
    assert progress is not None
    assert [(lane.key, lane.seq) for lane in progress.parked] == [("slow", 1)], "a crash would lose it"
    deliveries.delivered(logged(1, "slow"))
    assert [lane.seq for lane in deliveries.due_lanes(0.0)] == [2]


def test_a_session_that_is_released_and_fails_again_is_parked() -> None:
    deliveries = offered("a")
    deliveries.next_attempts()
    fail(deliveries, logged(1, "a"))
    resume(deliveries, [logged(1, "a")])
    deliveries.next_attempts()
    deliveries.delivered(logged(1, "a"))
    resume(deliveries, [])
    deliveries.offer([logged(2, "a")], read_upto=2)
    deliveries.next_attempts()
    fail(deliveries, logged(2, "a"), at=9.0)
    assert deliveries.take_progress() == Progress(2, parked=(Parked("a", 2, 1, 9.0, "HTTP 500"),))


def ahead() -> tuple[Deliveries, list[LoggedEvent]]:
    """A session whose first delivery hangs, while another got all of its own."""
    events = log("aabbba")
    deliveries = offered("aabbba", window=2)
    deliveries.next_attempts()
    for event in events[2:5]:
        deliveries.delivered(event)
        deliveries.next_attempts()
    return deliveries, events


def test_a_slow_delivery_does_not_make_a_crash_repeat_what_others_got() -> None:
    deliveries, _ = ahead()
    assert deliveries.cursor == 0
    assert deliveries.take_progress() == Progress(5, parked=(Parked("a", 1, 0, 0.0, UNDER_WAY),))
    assert deliveries.take_progress() is None


def test_the_place_of_a_lane_under_way_moves_with_it_and_goes_when_the_cursor_has_come_to_it() -> None:
    deliveries, events = ahead()
    deliveries.take_progress()
    deliveries.delivered(events[0])
    assert deliveries.take_progress() == Progress(5, parked=(Parked("a", 2, 0, 0.0, UNDER_WAY),))
    deliveries.next_attempts()
    deliveries.delivered(events[1])
    assert deliveries.take_progress() == Progress(5, released=("a",))


def test_a_lane_under_way_that_fails_is_parked_as_any_other() -> None:
    deliveries, events = ahead()
    deliveries.take_progress()
    fail(deliveries, events[0], at=9.0)
    assert deliveries.take_progress() == Progress(6, parked=(Parked("a", 1, 1, 9.0, "HTTP 500"),))


def test_after_a_crash_a_lane_under_way_goes_on_from_its_place() -> None:
    deliveries = Deliveries(5, [Parked("a", 2, 0, 0.0, UNDER_WAY)], window=2, pipelined=False)
    deliveries.offer(log("aabbba")[5:], read_upto=6)
    resume(deliveries, [logged(2, "a"), logged(6, "a")])
    assert told(deliveries.next_attempts()) == "a2"
