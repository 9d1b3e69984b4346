"""The retained topics that the broker does not take: set aside one by one, and tried again."""

from collections.abc import Callable

import msgspec
from structlog.typing import FilteringBoundLogger

from bace_bridge.domain.retry import backoff
from bace_bridge.sinks.mqtt.topics import Kind

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
            if not refusal.closes:
                refusal.due_at = 0.0

    def may_try(self, topic: str, kind: Kind | None) -> bool:
        """False while the topic is set aside. Of a kind that is set aside one topic is tried at a time."""
        if self.due_in(topic, kind) > 0:
            return False
        if kind in self._kinds:
            self._kinds[kind].due_at = self._clock() + FIRST_AFTER_CLOSING
        return True

    def due_in(self, topic: str, kind: Kind | None) -> float:
        """Seconds until the topic may be tried; 0 where it may be now."""
        waiting = (self._topics.get(topic), self._kinds.get(kind) if kind is not None else None)
        return max([0.0, *(one.due_at - self._clock() for one in waiting if one is not None)])

    def refused(self, topic: str, kind: Kind | None, problem: str, *, closes: bool) -> None:
        refusal = self._topics.setdefault(topic, _Refusal(problem))
        self._put_off(refusal, problem, closes=closes)
        self._warn(topic, problem)
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

    def _warn(self, topic: str, problem: str) -> None:
        """Each topic once, and no more than some of them: a broker may refuse all."""
        if topic in self._warned or len(self._warned) > _WARNINGS:
            self._log.debug("mqtt.state_refused", topic=topic, problem=problem)
            return
        self._warned.add(topic)
        more = "; further topics are named in health only" if len(self._warned) > _WARNINGS else ""
        self._log.warning("mqtt.state_refused", topic=topic, problem=problem, then=f"tried again later{more}")
