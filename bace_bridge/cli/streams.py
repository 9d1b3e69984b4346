"""Standard output that says so when it cannot take what is printed: a full disk, or none (`>&-`).

Standard error cannot say so: what is not read there (`2>&1 | head`) is dropped, and changes no exit code.
"""

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
import atexit
import io
import select
from collections.abc import Callable
from threading import Condition, Thread

from bace_bridge import logs

_STDOUT, _STDERR = 1, 2


class CannotPrint(click.ClickException):
    """Standard output does not take what is printed; exit code 1."""


class _Stdout(FileIO):
    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:  # a reader that has left is no mistake (`| head`)
            raise
        except OSError as error:
            # Python flushes once more at its end, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
            raise CannotPrint(f"cannot write to standard output: {error.strerror}") from None


class _Stderr(FileIO):
    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def guard_stdout() -> None:
    """From here on a write to stdout that fails raises CannotPrint, and one to stderr is dropped."""
    if sys.stdout is None:
        # Else the next file that is opened, such as the store, would be taken for stdout. Writes to this one fail.
        _take(_STDOUT, os.O_RDONLY)
        encoding, errors, terminal = "utf-8", "strict", False
    else:
        encoding, errors, terminal = sys.stdout.encoding, sys.stdout.errors or "strict", sys.stdout.isatty()
    if sys.stderr is None:
        _take(_STDERR, os.O_WRONLY)
    sys.stderr = TextIOWrapper(
        BufferedWriter(_Stderr(_STDERR, "w", closefd=False)),
        "utf-8" if sys.stderr is None else sys.stderr.encoding,
        "backslashreplace",
        line_buffering=True,
    )
    if errors == "strict":  # a label or a path may hold what the terminal's encoding has not
        errors = "backslashreplace"
    raw = BufferedWriter(_Stdout(_STDOUT, "w", closefd=False))
    sys.stdout = TextIOWrapper(raw, encoding, errors, line_buffering=terminal)


def _take(number: int, flags: int) -> None:
    opened = os.open(os.devnull, flags)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


MOST_WAITING = 2**19
"""Bytes that wait for the reader, some 2,000 lines, beside as many that are being written. Further lines are lost."""

DRAINED_WITHIN = 1.0
"""Seconds that the end of the process waits for the reader."""


def unblock_stderr() -> None:
    """From here on `sys.stderr` takes everything at once, from any thread; a thread of its own writes it."""
    raw = Unblocked(sys.stderr.fileno(), note=logs.of_lost_lines)
    # Without a buffer of Python's own (`write_through`): what it held at the end would be lost.
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
        # A daemon: a reader that has stopped for ever must not keep the process from its end.
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
                # Taken as a whole, and written without the lock: whoever logs waits for no reader.
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
