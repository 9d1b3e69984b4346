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

    def add(self, event: Shown) -> None:
        self._waiting.append(event)

    def release(self, *, now: float) -> None:
        """Writes what need not wait any longer; infinity for `now` is the end."""
        while self._waiting and (self._waiting[0].complete or now - self._waiting[0].at >= PATIENCE):
            self._write(line(self._waiting.popleft()))


def line(event: Shown) -> str:
    moment = datetime.fromtimestamp(event.at).astimezone()
    ways = [] if event.topic is None else [f"mqtt {event.topic}"]
    if event.by_webhook:
        ways.append("webhook, signature \N{CHECK MARK}")
    head = f"{moment:%H:%M:%S} {event.type:<18}"
    return "  ".join([head, f"{event.device:<20}", f"{event.detail:<38}", " + ".join(ways)])
