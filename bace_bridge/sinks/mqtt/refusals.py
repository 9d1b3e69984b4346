"""What the broker refuses, also by closing the connection, MQTT 3.1.1's only way: events, retained topics."""

from collections.abc import Callable, Sequence

import msgspec
from structlog.typing import FilteringBoundLogger

from bace_bridge.retry import backoff
from bace_bridge.sinks.mqtt.topics import Kind

# A PUBACK of 3.1.1 has no reason code: the only no is a closed connection, which has many other reasons.
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
            self._blamed[oldest] = None
            if len(self._blamed) > _MOST_REMEMBERED:
                del self._blamed[next(iter(self._blamed))]
            self._forget()
            self._explained()
            return True
        if oldest == self._oldest:
            self._losses += 1
            # Only an event that was in flight each time can be the cause of each time.
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

    def _forget(self) -> None:
        self._oldest, self._losses = None, 0
        self._suspects.clear()
        self.counts = bool(self._blamed)


class TopicSuspicion:
    """The same of retained topics, all of which are published on every connect: that some were taken says little.

    After two connections in a row that were lost before all of it was acknowledged, what was in flight is suspected: it
    is published last, and one by one. What is alone in flight when a connection is lost is to blame. Where a connection
    is lost before that, amid others of the same kind, what is suspected goes first on the next one.
    """

    def __init__(self, log: FilteringBoundLogger, *, explained: Callable[[], None]) -> None:
        self._log = log
        self._explained = explained
        self._losses = 0
        self._in_flight: set[str] = set()
        self.blamed: dict[str, None] = {}
        self.counts = False
        """False while nothing is suspected, which spares each message the rest."""

    def sent_alone(self, topic: str) -> bool:
        return topic in self.blamed or (self._losses >= _UNFINISHED and topic in self._in_flight)

    @property
    def spreads(self) -> bool:
        """Whether a connection was lost amid others, too: with each one that follows more would be suspected."""
        return self._losses > _UNFINISHED

    def acknowledged(self, topic: str) -> None:
        """The broker has said something to the topic, be it no."""
        self.blamed.pop(topic, None)
        self._clear(topic)

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
            self.blamed[topics[0]] = None
            if len(self.blamed) > _MOST_REMEMBERED:
                del self.blamed[next(iter(self.blamed))]
            self._losses = min(self._losses, _UNFINISHED)
            self._clear(topics[0])
            self._explained()
            return True
        before = self._losses
        self._losses += 1
        self.counts = self.counts or self._losses >= _UNFINISHED
        # Retained topics all come again on each connect, so what is suspected only grows until one is alone.
        if self._losses > _UNFINISHED:
            self._in_flight.update(topics)
        else:
            self._in_flight = set(topics)
        if before < _UNFINISHED <= self._losses:
            self._log.warning(
                "mqtt.topics_suspected",
                topics=len(self._in_flight),
                hint="the broker may close the connection on one of them; they are published one by one",
            )
        return False

    def _clear(self, topic: str) -> None:
        if topic in self._in_flight:
            self._in_flight.discard(topic)
            if not self._in_flight:
                self._losses = 0
        self.counts = bool(self.blamed) or self._losses >= _UNFINISHED


FIRST, LONGEST = 5.0, 300.0
"""Seconds to the next attempt, where the broker says no."""

FIRST_AFTER_CLOSING, LONGEST_AFTER_CLOSING = 60.0, 3600.0
"""Seconds to the next attempt, where the broker closes the connection: each attempt costs one."""

_ALIKE = 3
"""Topics of a kind on which the broker closes the connection before all of that kind are set aside."""

_NAMED = 3
_WARNINGS = 10


class _Refusal(msgspec.Struct):
    """`due_at` is of the clock that `Refusals` was given."""

    problem: str
    closes: bool = False
    attempts: int = 0
    due_at: float = 0.0


class Refusals:
    """What of a sink's retained state is refused, over all of its connections."""

    def __init__(self, log: FilteringBoundLogger, *, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._jitter = jitter
        self._topics: dict[str, _Refusal] = {}
        self._kinds: dict[Kind, _Refusal] = {}
        self._closings: dict[Kind, int] = {}
        self._taken: set[Kind] = set()
        self._warned: set[str] = set()

    @property
    def problem(self) -> str | None:
        """A sentence that names some of the topics."""
        if not self._topics:
            return None
        named = ", ".join(list(self._topics)[:_NAMED])
        more = f" and {len(self._topics) - _NAMED} more" if len(self._topics) > _NAMED else ""
        reason = next(iter(self._topics.values())).problem
        kinds = f" (and with them all of {', '.join(sorted(self._kinds))})" if self._kinds else ""
        return f"{len(self._topics)} retained topics are refused and tried again later: {named}{more}{kinds}: {reason}"

    def begin(self) -> None:
        """A new connection: what the broker only said no to may be tried at once."""
        self._taken.clear()
        for refusal in self._topics.values():
            # The access rules may have been changed, or the broker may be another one.
            if not refusal.closes:
                refusal.due_at = 0.0

    def may_try(self, topic: str, kind: Kind | None) -> bool:
        """False while the topic is set aside. Of a kind that is set aside one topic is tried at a time."""
        if self.due_in(topic, kind) > 0:
            return False
        if kind in self._kinds:
            # One topic stands for its kind: were all tried at once, each would cost a connection.
            self._kinds[kind].due_at = self._clock() + FIRST_AFTER_CLOSING
        return True

    def due_in(self, topic: str, kind: Kind | None) -> float:
        """Seconds until the topic may be tried; 0 where it may be now."""
        waiting = (self._topics.get(topic), self._kinds.get(kind) if kind is not None else None)
        return max([0.0, *(one.due_at - self._clock() for one in waiting if one is not None)])

    def refused(self, topic: str, kind: Kind | None, problem: str, *, closes: bool) -> None:
        refusal = self._topics.setdefault(topic, _Refusal(problem))
        self._put_off(refusal, problem, closes=closes)
        # Each topic is named once, and no more than some of them: a broker may refuse all.
        if topic in self._warned or len(self._warned) > _WARNINGS:
            self._log.debug("mqtt.state_refused", topic=topic, problem=problem)
        else:
            self._warned.add(topic)
            more = "; further topics are named in health only" if len(self._warned) > _WARNINGS else ""
            self._log.warning("mqtt.state_refused", topic=topic, problem=problem, then=f"tried again later{more}")
        if closes and kind is not None and kind not in self._taken:
            self._closings[kind] = self._closings.get(kind, 0) + 1
            if self._closings[kind] >= _ALIKE:
                self._put_off(self._kinds.setdefault(kind, _Refusal(problem)), problem, closes=True)

    def taken(self, topic: str, kind: Kind | None) -> bool:
        """The broker has acknowledged the topic; True where others of its kind may be tried now."""
        if self._topics.pop(topic, None) is not None:
            self._log.info("mqtt.state_taken", topic=topic)
        if kind is None:
            return False
        self._taken.add(kind)
        self._closings.pop(kind, None)
        return self._kinds.pop(kind, None) is not None

    def drop(self, topic: str) -> None:
        """There is nothing to publish or clear there any more."""
        self._topics.pop(topic, None)

    def _put_off(self, refusal: _Refusal, problem: str, *, closes: bool) -> None:
        refusal.problem, refusal.closes = problem, closes
        refusal.attempts += 1
        first, longest = (FIRST_AFTER_CLOSING, LONGEST_AFTER_CLOSING) if closes else (FIRST, LONGEST)
        refusal.due_at = self._clock() + backoff(refusal.attempts, jitter=self._jitter(), first=first, longest=longest)
