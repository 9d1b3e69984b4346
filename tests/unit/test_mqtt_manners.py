"""In which manners a broker is tried, as the attempts that follow from what it takes."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.sinks.mqtt.config import Version
from bace_bridge.sinks.mqtt.manners import (
    NO_RETAIN,
    QOS_TOO_HIGH,
    Course,
    Ending,
    Manner,
    accepted,
    begin,
    ended,
    from_the_top,
    subscribed,
)

HOUR = 3600.0
SILENT, REFUSED, MUTE = Ending("silent", ""), Ending("version_refused", ""), Ending("mute", "")
AWAY = Ending("unreachable", "")
ON_PROBE = Ending("lost", "", 0x80, "probe")
ON_SUBSCRIBE = Ending("lost", "", 0x80, "subscribe")
LOST = Ending("lost", "", 0x80, "use")


class Attempts(NamedTuple):
    made: list[str]
    course: Course
    kept: bool


def spelled(manner: Manner) -> str:
    return f"{manner.protocol} q{manner.qos}" + ("" if manner.retain else " no retain")


def attempts(course: Course, broker: Callable[[Course], Ending | None], *, now: float = 0.0) -> Attempts:
    """Those that are made at once, until a connection is kept or the next one waits. A broker takes it for None."""
    made: list[str] = []
    while len(made) < 40:
        made.append(spelled(course.manner))
        ending = broker(course)
        if ending is None:
            course, kept = accepted(course, now=now)
            if kept:
                return Attempts(made, course, kept=True)
        else:
            course, at_once = ended(course, ending, now=now)
            if not at_once:
                return Attempts(made, course, kept=False)
    raise AssertionError("it never ends")


def takes_all(_: Course) -> None:
    return None


def no_retain(course: Course) -> Ending | None:
    """As Mosquitto without retained messages."""
    if not course.manner.retain:
        return None
    return Ending("unreachable", "", NO_RETAIN) if course.manner.protocol == "5" else SILENT


def no_qos(course: Course) -> Ending | None:
    if not course.manner.qos:
        return None
    return Ending("unreachable", "", QOS_TOO_HIGH) if course.manner.protocol == "5" else SILENT


def no_qos_2(course: Course) -> Ending | None:
    return SILENT if course.manner.qos > 1 else None


def older_only(how: Ending) -> Callable[[Course], Ending | None]:
    return lambda course: how if course.manner.protocol == "5" else None


def closes_on_retained(course: Course) -> Ending | None:
    return ON_PROBE if course.probes and course.manner.retain else None


def closes_on_the_topic(course: Course) -> Ending | None:
    return ON_PROBE if course.probes else None


def frozen(_: Course) -> Ending:
    return MUTE


def away(_: Course) -> Ending:
    return AWAY


def proxy_without_a_broker(_: Course) -> Ending:
    return SILENT


FULL = "3.1.1 q1"
OLDER = [FULL, f"{FULL} no retain", "3.1.1 q0", "3.1.1 q0 no retain"]


@pytest.mark.parametrize(
    ("protocol", "qos", "broker", "made", "kept"),
    [
        ("5", 1, takes_all, ["5 q1"], True),
        ("3.1.1", 2, takes_all, ["3.1.1 q2"], True),
        ("5", 1, older_only(REFUSED), ["5 q1", FULL], True),
        ("5", 1, older_only(SILENT), ["5 q1", FULL, "5 q1", FULL], True),
        ("5", 1, older_only(MUTE), ["5 q1", FULL, "5 q1", FULL], True),
        ("5", 1, frozen, ["5 q1", FULL], False),
        ("5", 1, away, ["5 q1"], False),
        ("5", 1, proxy_without_a_broker, ["5 q1", *OLDER], False),
        ("5", 1, no_retain, ["5 q1", "5 q1 no retain"], True),
        ("5", 1, no_qos, ["5 q1", "5 q0"], True),
        ("3.1.1", 1, no_retain, OLDER[:2] * 2, True),
        ("3.1.1", 1, no_qos, OLDER[:3] * 2, True),
        ("3.1.1", 1, lambda course: no_qos(course) or no_retain(course), OLDER * 2, True),
        ("3.1.1", 2, no_qos_2, ["3.1.1 q2", "3.1.1 q2 no retain", FULL] * 2, True),
        ("3.1.1", 1, closes_on_retained, OLDER[:2] * 2, True),
        ("3.1.1", 1, closes_on_the_topic, OLDER, False),
    ],
)  # fmt: skip
def test_the_attempts_at_a_broker(
    protocol: Version, qos: int, broker: Callable[[Course], Ending | None], made: list[str], kept: bool
) -> None:
    found = attempts(begin(protocol, qos=qos), broker)

    assert (found.made, found.kept) == (made, kept)


def test_a_lesser_manner_that_worked_by_chance_is_not_kept() -> None:
    """The broker was starting while the proxy before it closed the connections."""
    opened = iter([SILENT, SILENT, None, None])

    found = attempts(begin("5", qos=1), lambda _: next(opened))

    assert found.made == ["5 q1", FULL, f"{FULL} no retain", "5 q1"]
    assert found.course.manner == Manner("5")
    assert found.course.again_at is None


@pytest.mark.parametrize("ending", [SILENT, MUTE, AWAY, LOST, ON_PROBE])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_has_worked_is_kept_through_an_outage(protocol: Version, ending: Ending) -> None:
    course = attempts(begin(protocol, qos=1), takes_all).course
    for now in range(10):
        found = attempts(course, lambda _: ending, now=float(now))
        assert (len(found.made), found.kept) == (1, False)
        course = found.course

    assert attempts(course, takes_all).made == [spelled(Manner(protocol))]


def test_after_an_hour_of_silence_everything_is_tried_again() -> None:
    course = attempts(begin("5", qos=1), takes_all).course
    course, _ = ended(course, LOST, now=5 * HOUR)
    assert attempts(course, proxy_without_a_broker, now=5.9 * HOUR).made == ["5 q1"]
    course = attempts(course, proxy_without_a_broker, now=6 * HOUR).course

    assert attempts(course, older_only(SILENT), now=6 * HOUR).made == ["5 q1", FULL, "5 q1", FULL]


def test_a_lesser_manner_is_tried_again_from_the_top_after_an_hour_then_ever_more_rarely() -> None:
    course, now, pauses = attempts(begin("5", qos=1), older_only(SILENT)).course, 0.0, []
    for _ in range(7):
        assert course.again_at is not None
        pauses.append((course.again_at - now) / HOUR)
        now = course.again_at
        found = attempts(from_the_top(course), older_only(SILENT), now=now)
        assert found.made == ["5 q1", FULL], "it needs no second proof"
        course = found.course
    assert pauses == [1, 2, 4, 8, 16, 24, 24]

    course = attempts(from_the_top(course), takes_all, now=now).course
    assert (course.manner.protocol, course.again_at) == ("5", None)


def test_a_new_find_after_that_is_proven_as_any_other() -> None:
    course = attempts(begin("5", qos=1), takes_all).course

    assert attempts(from_the_top(course), older_only(SILENT)).made == ["5 q1", FULL, "5 q1", FULL]


def test_a_subscription_that_closes_the_connection_is_done_without_after_three_endings() -> None:
    course = attempts(begin("5", qos=1), takes_all).course
    answers = []
    for _ in range(3):
        course, at_once = ended(course, ON_SUBSCRIBE, now=0.0)
        answers.append((at_once, course.manner.requests))
    assert answers == [(False, True), (False, True), (True, False)]
    course = attempts(course, takes_all).course
    assert course.again_at == HOUR

    course, at_once = ended(from_the_top(course), ON_SUBSCRIBE, now=HOUR)
    assert (at_once, course.manner.requests) == (True, False), "one more ending is enough then"
    assert attempts(course, takes_all, now=HOUR).course.again_at == 3 * HOUR

    course = subscribed(attempts(from_the_top(course), takes_all).course)
    assert (course.manner.requests, course.again_at) == (True, None)


@pytest.mark.parametrize("between", [AWAY, Ending("lost", "it shuts down", 0x8B, "subscribe"), LOST])
def test_other_endings_are_no_word_about_the_subscription(between: Ending) -> None:
    course = attempts(begin("5", qos=1), takes_all).course
    for _ in range(9):
        course, _ = ended(course, between, now=0.0)
    for _ in range(2):
        course, _ = ended(course, ON_SUBSCRIBE, now=0.0)
    assert course.manner.requests

    course, _ = ended(subscribed(course), ON_SUBSCRIBE, now=0.0)
    assert course.manner.requests


def test_without_requests_none_are_ever_asked_for() -> None:
    course = attempts(begin("5", qos=1, requests=False), older_only(SILENT)).course
    assert not course.manner.requests
    assert not from_the_top(course).manner.requests


def test_where_the_topic_itself_is_not_taken_no_manner_is_blamed() -> None:
    course = attempts(begin("3.1.1", qos=1), closes_on_the_topic).course

    found = attempts(course, closes_on_the_topic)

    assert (found.made, found.kept) == ([FULL], True)


BROKERS = st.builds(
    lambda speaks_5, retain, qos, words: (speaks_5, retain, qos, words),
    st.booleans(), st.booleans(), st.integers(0, 2), st.booleans(),
)  # fmt: skip


@given(broker=BROKERS, protocol=st.sampled_from(["5", "3.1.1"]), qos=st.integers(0, 2), noise=st.lists(st.booleans()))
def test_the_best_manner_that_a_broker_takes_is_found_whatever_outages_come_first(
    broker: tuple[bool, bool, int, bool], protocol: Version, qos: int, noise: list[bool]
) -> None:
    speaks_5, retain, highest, words = broker
    course = begin(protocol, qos=qos)
    for silent in noise:
        course = attempts(course, lambda _, silent=silent: SILENT if silent else AWAY).course  # type: ignore[misc]  # binds now

    def answer(course: Course) -> Ending | None:
        manner = course.manner
        if manner.protocol == "5" and not speaks_5:
            return REFUSED if words else SILENT
        if manner.retain and not retain:
            return Ending("unreachable", "", NO_RETAIN) if manner.protocol == "5" else SILENT
        if manner.qos > highest:
            return Ending("unreachable", "", QOS_TOO_HIGH) if manner.protocol == "5" else SILENT
        return None

    found = attempts(course, answer)

    assert found.kept
    assert found.course.manner.protocol == ("5" if speaks_5 and protocol == "5" else "3.1.1")
    assert found.course.manner.retain is retain
    if found.course.manner.protocol == "3.1.1":
        assert found.course.manner.qos == min(max(1, qos), highest)
