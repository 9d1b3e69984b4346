"""What libraries log a thousand times is said a few times, and how often it was left out."""

import logging
import threading
from collections.abc import Callable

import pytest

from bace_bridge.logs import MINUTE, MOST, RateLimit


class Line:
    """The filter with a clock and a timer of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.said: list[logging.LogRecord] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.limit = RateLimit(
            self.said.append,
            clock=lambda: self.now,
            later=lambda seconds, then: self.due.append((self.now + seconds, then)),
        )

    def passes(self, text: str, *facts: object, name: str = "asyncio", level: int = logging.ERROR) -> bool:
        return self.limit(logging.LogRecord(name, level, "", 0, text, facts, None))

    def after(self, seconds: float) -> None:
        self.now += seconds
        ready = [one for one in self.due if one[0] <= self.now]
        self.due = [one for one in self.due if one not in ready]
        for _, then in ready:
            then()

    @property
    def messages(self) -> list[str]:
        return [one.getMessage() for one in self.said]


@pytest.fixture
def line() -> Line:
    return Line()


def test_the_same_text_passes_a_few_times_a_minute_and_is_counted(line: Line) -> None:
    assert [line.passes("no free descriptor") for _ in range(1000)] == [True] * MOST + [False] * (1000 - MOST)
    assert line.messages == []
    line.after(MINUTE)
    assert line.messages == [f"{1000 - MOST} more like this in the minute before: no free descriptor"]
    assert (line.said[0].name, line.said[0].levelno) == ("asyncio", logging.ERROR)
    assert line.passes("no free descriptor"), "a new minute"
    line.after(2 * MINUTE)
    assert len(line.said) == 1


def test_numbers_addresses_and_further_lines_make_no_other_text(line: Line) -> None:
    for number in range(50):
        line.passes("Task-%d at <0x%x> failed\nfuture: %s", number, id(line) + number, number)
    line.after(MINUTE)
    assert line.messages == [f"{50 - MOST} more like this in the minute before: Task-# at <#> failed"]


def test_others_pass_beside_it(line: Line) -> None:
    for _ in range(100):
        line.passes("this")
    assert line.passes("that")
    assert line.passes("this", name="paho")
    assert line.passes("this", level=logging.WARNING)


def test_each_text_is_counted_by_itself_and_one_timer_says_all(line: Line) -> None:
    for text in ("a", "b"):
        for _ in range(20):
            line.passes(text)
    assert len(line.due) == 1
    line.after(MINUTE)
    assert [one.split()[0] for one in line.messages] == ["15", "15"]


def test_texts_that_are_always_new_are_bounded_too(line: Line) -> None:
    passed = sum(line.passes(f"text {'x' * number}") for number in range(190))
    assert passed == 100 + MOST
    line.after(MINUTE)
    assert line.messages == ["85 more like this in the minute before: other messages of libraries"]


def test_a_record_that_cannot_be_formatted_passes(line: Line) -> None:
    assert line.passes("%d", "no number")


class Talkative:
    """As what the collector of garbage may do in the middle of any record: it logs by itself."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def __str__(self) -> str:
        self._line.passes("from within")
        return "talkative"


def test_a_record_may_come_in_the_middle_of_another(line: Line) -> None:
    """In a thread, which a deadlock would keep."""
    passed: list[bool] = []
    thread = threading.Thread(target=lambda: passed.append(line.passes("%s", Talkative(line))), daemon=True)
    thread.start()
    thread.join(60)
    assert passed == [True]
