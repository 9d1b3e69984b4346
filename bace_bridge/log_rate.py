"""Keeps libraries from flooding the log: what goes wrong a thousand times a second is said a few times a minute."""

import logging
import re
import threading
import time
from collections.abc import Callable

MOST = 5
"""Records of the same text that pass within a minute."""

MINUTE = 60.0

_MOST_TEXTS = 100
"""Texts that are told apart within a minute; the rest of them counts as one."""

_VARIES = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
_LONGEST = 200

_Key = tuple[str, int, str]


def in_background(seconds: float, then: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, then)
    timer.daemon = True
    timer.start()


class RateLimit:
    """A logging filter. How many records it has left out goes to `say`, once their minute is over.

    Texts are the same where their first lines differ in numbers and addresses only. It may be called by any thread.
    """

    def __init__(
        self,
        say: Callable[[logging.LogRecord], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] = in_background,
    ) -> None:
        self._say = say
        self._clock = clock
        self._later = later
        self._lock = threading.Lock()
        self._counts: dict[_Key, int] = {}
        self._until = 0.0

    def __call__(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = self._clock()
            if now >= self._until and not self._left_out():
                self._counts.clear()
                self._until = now + MINUTE
            key = _key(record)
            if key not in self._counts and len(self._counts) >= _MOST_TEXTS:
                key = ("", logging.WARNING, "other messages of libraries")
            counted = self._counts[key] = self._counts.get(key, 0) + 1
            if counted == MOST + 1 and len(self._left_out()) == 1:
                self._later(max(0.0, self._until - now), self._sum_up)
            return counted <= MOST

    def _left_out(self) -> dict[_Key, int]:
        return {key: count - MOST for key, count in self._counts.items() if count > MOST}

    def _sum_up(self) -> None:
        with self._lock:
            left_out = self._left_out()
            self._counts.clear()
        for (name, level, text), count in left_out.items():
            more = f"{count} more like this in the minute before: {text}"
            self._say(logging.LogRecord(name or __name__, level, "", 0, more, (), None))


def _key(record: logging.LogRecord) -> _Key:
    try:
        text = record.getMessage()
    except (TypeError, ValueError):
        text = str(record.msg)
    return record.name, record.levelno, _VARIES.sub("#", text[:_LONGEST].partition("\n")[0])
