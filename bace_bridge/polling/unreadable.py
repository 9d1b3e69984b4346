"""The records that cannot be read while the cloud answers everything else: named once, and shown in `degraded`."""

from collections.abc import Callable, Sequence

import msgspec
import structlog

from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import LostRow

log = structlog.get_logger()

SURE_FAILURES = 2
"""One 500 for a single request may be a hiccup."""


class _Failures(msgspec.Struct, frozen=True):
    last_at: float
    count: int


class UnreadableRecords:
    """Data sessions, and parts of the session list."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, _Failures] = {}

    @property
    def names(self) -> list[str]:
        return [name for name, failures in self._failures.items() if failures.count >= SURE_FAILURES]

    def failed(self, name: str, reason: str, *, sure: bool = False) -> None:
        """`sure` where the fault has been seen more than once already."""
        before = self._failures.get(name, _Failures(0.0, 0)).count
        after = max(before + 1, SURE_FAILURES if sure else 0)
        self._failures[name] = _Failures(self._clock(), after)
        if before < SURE_FAILURES <= after:
            log.error(
                "cloud.record_unreadable", record=name, reason=reason, then="everything else is read; trying again"
            )

    def was_read(self, name: str) -> None:
        failures = self._failures.pop(name, None)
        if failures is not None and failures.count >= SURE_FAILURES:
            log.info("cloud.record_readable", record=name)

    def name_rows(self, lost: Sequence[LostRow], place: str) -> str | None:
        """Names rows that cannot be read by their ids, and those without one by their place; returns why those."""
        reason: str | None = None
        for row in lost:
            if row.id is None:
                reason = reason or row.reason
            else:
                self.failed(record_of(row.id), row.reason, sure=True)
        if reason is None:
            self.was_read(place)
        else:
            self.failed(place, reason, sure=True)
        return reason

    def forget(self, name: str) -> None:
        """Whether it can be read is not asked any more."""
        self._failures.pop(name, None)

    def rests(self, name: str) -> bool:
        """True for one that was tried a short while ago; a clock that was set back does not prolong it."""
        failures = self._failures.get(name)
        if failures is None or failures.count < SURE_FAILURES:
            return False
        return 0 <= self._clock() - failures.last_at < RETRY_UNREADABLE


def record_of(session_id: str) -> str:
    return f"data session {session_id}"
