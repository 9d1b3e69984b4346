"""Which message it is that a broker answers by closing the connection: MQTT 3.1.1 has no other way to refuse one."""

from collections.abc import Callable, Sequence

from structlog.typing import FilteringBoundLogger

_LOSSES = 3
"""Connections in a row that are lost before anything is suspected: a restart or a bad network ends some, too."""

_UNFINISHED = 2
"""Connections in a row that are lost amid retained topics before these are suspected."""

_MOST_REMEMBERED = 1000


class Suspicion:
    """Counts the connections that were lost while the same event was the oldest in flight.

    After some, with nothing acknowledged in between, what was in flight each time is sent alone. What is alone in
    flight when the next connection is lost is to blame. It is sent alone from then on, so that a later attempt at it
    costs one connection, and cuts off nothing else.
    """

    def __init__(self, log: FilteringBoundLogger, *, explained: Callable[[], None]) -> None:
        self._log = log
        self._explained = explained
        self._oldest: str | None = None
        self._losses = 0
        self._suspects: set[str] = set()
        self._blamed: dict[str, None] = {}
        self.counts = False
        """False while nothing was lost, which spares each message the rest."""

    def sent_alone(self, event: str) -> bool:
        return event in self._blamed or (self._losses >= _LOSSES and event in self._suspects)

    def acknowledged(self, event: str) -> None:
        """The broker has said something to the event, be it no."""
        if not self.counts:
            return
        self._blamed.pop(event, None)
        if self._losses >= _LOSSES:
            self._suspects.discard(event)
        if self._losses < _LOSSES or not self._suspects:
            self._forget()

    def blames(self, in_flight: Sequence[str]) -> bool:
        """The broker closed the connection with these events in flight, in this order; whether on the only one."""
        if not in_flight:
            return False
        self.counts = True
        oldest = in_flight[0]
        if self.sent_alone(oldest):
            self._blame(oldest)
            return True
        if oldest == self._oldest:
            self._losses += 1
            self._suspects.intersection_update(in_flight)
        else:
            self._oldest, self._losses, self._suspects = oldest, 1, set(in_flight)
        if self._losses == _LOSSES:
            self._log.warning(
                "mqtt.events_suspected",
                events=len(self._suspects),
                hint="the broker may close the connection on one of them; they are sent one by one",
            )
        return False

    def _blame(self, event: str) -> None:
        self._blamed[event] = None
        if len(self._blamed) > _MOST_REMEMBERED:
            del self._blamed[next(iter(self._blamed))]
        self._forget()
        self._explained()

    def _forget(self) -> None:
        self._oldest, self._losses = None, 0
        self._suspects.clear()
        self.counts = bool(self._blamed)


class TopicSuspicion:
    """The same of retained topics, all of which are published on every connect: that some were taken says little.

    After two connections in a row that were lost before all of it was acknowledged, what was in flight is suspected: it
    is published last, and one by one. What is alone in flight when a connection is lost is to blame.
    """

    def __init__(self, log: FilteringBoundLogger, *, explained: Callable[[], None]) -> None:
        self._log = log
        self._explained = explained
        self._losses = 0
        self._in_flight: set[str] = set()
        self._blamed: dict[str, None] = {}
        self.counts = False
        """False while nothing is suspected, which spares each message the rest."""

    def sent_alone(self, topic: str) -> bool:
        return topic in self._blamed or (self._losses >= _UNFINISHED and topic in self._in_flight)

    def acknowledged(self, topic: str) -> None:
        """The broker has said something to the topic, be it no."""
        self._blamed.pop(topic, None)
        self._clear(topic)

    def is_blamed(self, topic: str) -> bool:
        return topic in self._blamed

    def completed(self) -> None:
        """The broker has acknowledged all that is not suspected."""
        if self._losses < _UNFINISHED:
            self._losses = 0
            self._in_flight.clear()

    def blames(self, topics: Sequence[str], *, alone: bool) -> bool:
        """The broker closed the connection with these in flight; whether on one of them that was `alone`."""
        if not topics:
            return False
        if alone and self.sent_alone(topics[0]):
            self._blame(topics[0])
            return True
        before = self._losses
        self._losses += 1
        self.counts = self.counts or self._losses >= _UNFINISHED
        if self._losses > _UNFINISHED:
            self._in_flight.update(topics)
        else:
            self._in_flight = set(topics)
        if before < _UNFINISHED <= self._losses:
            self._log.warning(
                "mqtt.topics_suspected",
                topics=len(self._in_flight),
                hint="the broker may close the connection on one of them; they are published last, one by one",
            )
        return False

    def _blame(self, topic: str) -> None:
        self._blamed[topic] = None
        if len(self._blamed) > _MOST_REMEMBERED:
            del self._blamed[next(iter(self._blamed))]
        self._clear(topic)
        self._explained()

    def _clear(self, topic: str) -> None:
        if topic in self._in_flight:
            self._in_flight.discard(topic)
            if not self._in_flight:
                self._losses = 0
        self.counts = bool(self._blamed) or self._losses >= _UNFINISHED
