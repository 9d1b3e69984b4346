"""Standard output that says so when it cannot take what is printed: a full disk, or none (`>&-`).

Standard error cannot say so: what nobody reads there (`2>&1 | head`) is dropped, and changes no exit code.
"""

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

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
