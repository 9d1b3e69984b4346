"""The records that cannot be read while the cloud answers everything else: named once, and shown in `degraded`."""

from collections.abc import Callable, Sequence

import structlog

from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE, is_recent
from bace_bridge.polling.rules.seen import LostRow

log = structlog.get_logger()


class UnreadableRecords:
    """Data sessions, and parts of the session list."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed_at: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        return list(self._failed_at)

    def failed(self, name: str, reason: str) -> None:
        if name not in self._failed_at:
            log.error(
                "cloud.record_unreadable", record=name, reason=reason, then="everything else is read; trying again"
            )
        self._failed_at[name] = self._clock()

    def was_read(self, name: str) -> None:
        if self._failed_at.pop(name, None) is not None:
            log.info("cloud.record_readable", record=name)

    def name_rows(self, lost: Sequence[LostRow], place: str) -> None:
        """Names rows that cannot be read by their ids, and those without one by their place in the list."""
        for row in lost:
            self.failed(place if row.id is None else record_of(row.id), row.reason)
        if all(row.id is not None for row in lost):
            self.was_read(place)

    def forget(self, name: str) -> None:
        """Whether it can be read is not asked any more."""
        self._failed_at.pop(name, None)

    def rests(self, name: str) -> bool:
        """True for one that was tried a short while ago."""
        return is_recent(self._failed_at.get(name), self._clock(), RETRY_UNREADABLE)


def record_of(session_id: str) -> str:
    return f"data session {session_id}"
