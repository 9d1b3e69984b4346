"""Reading a text file as editors leave it: the one way for configurations, secrets, scenarios and files of TLS."""

import os
import re
import select
import stat
import time
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

from bace_bridge.config.values import format_size

PIPE_PATIENCE = 5.0
"""Seconds in which the writer of a pipe must have written everything and left."""

_MARK = "\ufeff"
"""The byte order mark: at the beginning, and wherever files were put behind one another."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
"""What YAML allows in no file either."""

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class TextProblem(Exception):
    """Why a file gives no text, in words that follow its path; they hold nothing of its content."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def read_text(path: Path, *, most: int, patience: float | None = None) -> str:
    r"""The text without byte order marks, with `\n` for every end of a line.

    `most` is in bytes. `patience` is how many seconds a pipe or a device may take; None: neither is read.

    Raises:
        OSError: The system does not give the file.
        TextProblem: It is no such file, or not text.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:  # Path.open takes no opener
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                content = file.read(most + 1)
            elif patience is not None:
                content = _written_to(file.fileno(), most, patience)
            else:
                raise TextProblem("is not a regular file")
    except ValueError:  # a character that no path holds
        raise TextProblem("is not the path of a file") from None
    if len(content) > most:
        raise TextProblem(f"is larger than {format_size(most)}")
    return _decoded(content)


def filled_lines(text: str) -> list[str]:
    """The lines that hold something, without the blanks at their ends."""
    return [line for one in text.splitlines() if (line := one.strip())]


def half_character(text: str) -> str | None:
    """The first one that UTF-8 has no bytes for; bytes that are not UTF-8 are such characters in the environment."""
    found = _HALF_CHARACTER.search(text)
    return found and found[0]


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe waits for its writer otherwise."""
    return os.open(path, flags | os.O_NONBLOCK)


def _written_to(pipe: int, most: int, patience: float) -> bytes:
    """What comes until the writer leaves, `most` + 1 bytes at most."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    content, until = b"", time.monotonic() + patience
    while len(content) <= most:
        left = max(0.0, until - time.monotonic())
        if not poll.poll(left * 1000):
            hint = "does a program write to it and close it?"
            raise TextProblem(f"is a pipe that did not end within {patience:g} s", hint)
        part = os.read(pipe, most + 1 - len(content))
        if not part:
            break
        content += part
    return content


def _decoded(content: bytes) -> str:
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise TextProblem("is UTF-16 text", "save it as UTF-8")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise TextProblem(f"is not UTF-8 text (byte {error.start + 1})", "save it as UTF-8") from None
    text = text.replace(_MARK, "").replace("\r\n", "\n").replace("\r", "\n")
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise TextProblem(f"holds a control character on line {line} (U+{ord(control[0]):04X})", "remove it")
    return text
