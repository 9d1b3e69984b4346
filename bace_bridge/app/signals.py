"""That something has happened, between parts that do not know each other."""

from collections.abc import Callable, Collection
from typing import Generic, ParamSpec

P = ParamSpec("P")


class Signal(Generic[P]):
    """Made before those who send it and those who listen, and handed to both. Calling it sends it.

    Listeners are called at once, in the order in which they came; they must neither block nor raise.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[P, None]] = []

    def listen(self, listener: Callable[P, None]) -> None:
        self._listeners.append(listener)

    def __call__(self, *given: P.args, **named: P.kwargs) -> None:
        for listener in self._listeners:
            listener(*given, **named)


class Signals:
    """What happens in a bridge."""

    def __init__(self) -> None:
        self.log_grew: Signal[[]] = Signal()
        """There are new events, or somebody has moved lanes."""

        self.list_polled: Signal[[]] = Signal()
        """A poll of a session list has ended, well or not."""

        self.devices_changed: Signal[[Collection[str] | None]] = Signal()
        """The state of these devices may be another one now; None: of all of them."""

        self.status_changed: Signal[[]] = Signal()
        """The bridge's info or health may be another one now."""

        self.clock_stepped: Signal[[float]] = Signal()
        """The wall clock was set by so many seconds."""
