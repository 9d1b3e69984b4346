import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from bace_bridge.cli.streams import MOST_WAITING, Unblocked


def note(lost: int) -> str:
    return f"lost {lost}\n"


def read_late(given: int) -> list[str]:
    """What a reader gets that begins to read only when `given` lines of 100 bytes were written; at last one more."""
    reading, writing = os.pipe()
    stderr = Unblocked(writing, note=note)
    for number in range(given):
        stderr.write(b"%099d\n" % number)

    def go_on() -> None:
        stderr.drain(60)
        stderr.write(b"last\n")
        stderr.drain(60)
        os.close(writing)

    later = Thread(target=go_on)
    with os.fdopen(reading) as reader:
        later.start()
        lines = reader.read().splitlines()
    later.join()
    return lines


def test_what_waits_is_bounded_and_the_note_stands_where_lines_are_missing() -> None:
    given = 3 * MOST_WAITING // 100
    *lines, last = read_late(given)
    number = 0
    for line in lines:
        if line.startswith("lost"):
            number += int(line.removeprefix("lost"))
        else:
            assert int(line) == number
            number += 1
    assert number == given
    assert last == "last"
    written = sum(not line.startswith("lost") for line in lines)
    assert MOST_WAITING // 100 <= written < given


def test_nothing_is_lost_of_what_there_is_room_for() -> None:
    *kept, last = read_late(MOST_WAITING // 100)
    assert [int(line) for line in kept] == list(range(MOST_WAITING // 100))
    assert last == "last"


@contextmanager
def room_on_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond that: a write takes what there is room for, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_line_that_was_torn_by_a_full_disk_is_lost_and_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        stderr = Unblocked(log.fileno(), note=note)
        with room_on_disk(8):
            for line in (b"first\n", b"second\n", b"third\n"):
                stderr.write(line)
                stderr.drain(60)
        stderr.write(b"fourth\n")
        stderr.drain(60)
    assert (tmp_path / "log").read_text().splitlines() == ["first", "se", "lost 2", "fourth"]


def test_a_reader_that_is_gone_costs_lines_and_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stderr = Unblocked(writing, note=note)
    for _ in range(3):
        assert stderr.write(b"nobody reads this\n") == len(b"nobody reads this\n")
        stderr.drain(60)
    os.close(writing)
