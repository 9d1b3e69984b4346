"""What the cloud cannot be read at, place by place: said once, tried again rarely, and shown in the health answer."""

from collections.abc import Callable

import msgspec
import structlog

from bace_bridge.polling.rules.narrowing import PLACE_RETRY

log = structlog.get_logger()

FAILURES_TO_TELL = 2
"""One 500 for a single request may be a hiccup."""


class _Place(msgspec.Struct):
    tried_at: float
    failures: int


class Unread:
    """The places of the session list on which the cloud breaks while it answers everything else."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[str, _Place] = {}

    @property
    def places(self) -> list[str]:
        return [name for name, place in self._places.items() if place.failures >= FAILURES_TO_TELL]

    def knows(self, name: str) -> bool:
        return name in self._places

    def failed(self, name: str, reason: str, *, sure: bool = False) -> None:
        """`sure` where the fault has been seen more than once already."""
        place = self._places.setdefault(name, _Place(0.0, 0))
        before = place.failures
        place.tried_at = self._clock()
        place.failures = max(before + 1, FAILURES_TO_TELL if sure else 0)
        if before < FAILURES_TO_TELL <= place.failures:
            log.error(
                "cloud.place_unreadable", place=name, reason=reason, then="everything else is read; trying it again"
            )

    def read(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None and place.failures >= FAILURES_TO_TELL:
            log.info("cloud.place_readable", place=name)

    def begin_anew(self) -> None:
        """Another strategy names the places in another way."""
        self._places.clear()

    def rests(self, name: str) -> bool:
        """True for a place that was tried a short while ago; a clock that was set back does not prolong it."""
        place = self._places.get(name)
        if place is None or place.failures < FAILURES_TO_TELL:
            return False
        return 0 <= self._clock() - place.tried_at < PLACE_RETRY
