"""Standard error that never holds up who writes to it: a reader that reads nothing costs lines, and no more."""

import atexit
import io
import os
import select
import sys
from collections.abc import Callable
from threading import Condition, Thread
from typing import TYPE_CHECKING

from bace_bridge import logs

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST_WAITING = 2**19
"""Bytes that wait for the reader, some 2,000 lines, beside as many that are being written. Further lines are lost."""

DRAINED_WITHIN = 1.0
"""Seconds that the end of the process waits for the reader."""


def unblock_stderr() -> None:
    """From here on `sys.stderr` takes everything at once, from any thread; a thread of its own writes it."""
    raw = Unblocked(sys.stderr.fileno(), note=logs.of_lost_lines)
    sys.stderr = io.TextIOWrapper(
        raw,
        encoding=sys.stderr.encoding,
        errors=sys.stderr.errors,
        write_through=True,
    )
    atexit.register(raw.drain)


class Unblocked(io.RawIOBase):
    """Writes to a file descriptor from a thread that may block. `note` is the line that says how many were lost.

    Lost is what comes while too much waits, and what the descriptor does not take: a full disk, a reader that is gone.
    """

    def __init__(self, descriptor: int, *, note: Callable[[int], str]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._note = note
        # Its lock is reentrant: the collector of garbage may log in the middle of a write.
        self._changed = Condition()
        self._waiting = bytearray()
        self._dropped = 0
        self._writing = False
        self._torn = False
        Thread(target=self._write_each, name="stderr", daemon=True).start()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: "ReadableBuffer", /) -> int:
        text = bytes(data)
        with self._changed:
            # What comes after a lost line is lost, too, until that is said: so the note stands where they are missing.
            if self._dropped or len(self._waiting) + len(text) > MOST_WAITING:
                self._dropped += text.count(b"\n") or 1
            else:
                self._waiting += text
            self._changed.notify_all()
        return len(text)

    def drain(self, within: float = DRAINED_WITHIN) -> None:
        """Waits until everything is written; what is not by then is lost."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._dropped or self._writing), within)

    def _write_each(self) -> None:
        lost = 0
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._dropped)
                self._writing = True
                text, self._waiting = self._waiting, bytearray()
                dropped, self._dropped = self._dropped, 0
            lost = self._say(lost)
            lost = self._say(lost + self._put(text) + dropped)

    def _say(self, lost: int) -> int:
        """0 where nothing was lost, or that is said now."""
        return lost if lost and self._put(self._note(lost).encode()) else 0

    def _put(self, text: bytes | bytearray) -> int:
        """The number of lines that could not be written."""
        rest = memoryview(b"\n" + text if self._torn else text)
        try:
            while rest:
                rest = rest[self._written(rest) :]
        except OSError:
            written = len(text) - len(rest)  # -1: not even the end of the torn line
            if written >= 0:
                self._torn = bytes(text[max(0, written - 1) : written]) not in {b"", b"\n"}
            return text.count(b"\n", max(0, written))
        self._torn = False
        return 0

    def _written(self, rest: memoryview) -> int:
        """Bytes, at least 1, however long that takes. A pipe that somebody else has made non-blocking may take none."""
        while True:
            try:
                return os.write(self._descriptor, rest)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
