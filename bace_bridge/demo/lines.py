"""One plain line an event, for what is no terminal."""

from collections import deque
from collections.abc import Callable
from datetime import datetime

from bace_bridge.demo.board import Shown

PATIENCE = 0.5
"""Seconds that an event which has arrived on one way is waited for on the other."""


class Lines:
    """Writes events in the order of their first arrival."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._waiting: deque[Shown] = deque()

    def add(self, event: Shown, *, now: float) -> None:
        """An event has arrived: for the first time, or on its second way."""
        if event.at == now:
            self._waiting.append(event)
        self.release(now=now)

    def release(self, *, now: float, all_of_them: bool = False) -> None:
        while self._waiting:
            first = self._waiting[0]
            if not (first.complete or all_of_them or now - first.at >= PATIENCE):
                return
            self._write(line(self._waiting.popleft()))


def line(event: Shown) -> str:
    moment = datetime.fromtimestamp(event.at).astimezone()
    parts = [f"{moment:%H:%M:%S} {event.type:<18}", f"{event.device:<20}", f"{event.detail:<20}", ways(event)]
    return "  ".join(parts)


def ways(event: Shown) -> str:
    """The ways on which it has arrived."""
    found = [] if event.topic is None else [f"mqtt {event.topic}"]
    if event.signed is not None:
        found.append("webhook " + signature(signed=event.signed))
    return " + ".join(found)


def signature(*, signed: bool) -> str:
    return "\N{CHECK MARK} signature" if signed else "WRONG SIGNATURE"
