"""The labels of devices: from the sessions' expanded groups, else from the groups themselves, once an hour."""

from collections.abc import Callable, Sequence

import structlog

from bace_bridge.errors import CloudError
from bace_bridge.polling.needs import SessionCloud
from bace_bridge.polling.reading import Reader
from bace_bridge.polling.rules.ranges import halves_of
from bace_bridge.polling.rules.seen import SeenSession
from bace_bridge.polling.rules.sessions import KnownSession

log = structlog.get_logger()

LABEL_AGE = 3600.0
"""Seconds after which a device's label is asked for again, where sessions do not bring it along."""

LABELS_AT_ONCE = 10
"""Groups in one request: the answer's `Link` header repeats their ids, and proxies limit headers."""


class DeviceLabels:
    """Labels by group id. A label that cannot be had is None: it is never a reason not to report a session."""

    def __init__(self, cloud: SessionCloud, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._labels: dict[str, tuple[str | None, float]] = {}

    async def of(self, rows: Sequence[SeenSession], known: dict[str, KnownSession]) -> dict[str, str | None]:
        """The labels of the rows' groups."""
        now = self._clock()
        for row in rows:
            group = row.session.group_id
            if row.device_label is not None:
                self._labels[group] = (row.device_label, now)
            elif group not in self._labels and (one := known.get(row.session.id)) is not None and one.device_label:
                self._labels[group] = (one.device_label, now)
        groups = {row.session.group_id for row in rows}
        stale = sorted(group for group in groups if self._is_stale(group, now))
        self._labels |= {group: (self._labels.get(group, (None, 0.0))[0], now) for group in stale}
        while stale:
            found = await self._ask(stale[:LABELS_AT_ONCE], now)
            stale = [group for group in stale[LABELS_AT_ONCE:] if group not in found]
        return {group: self._labels[group][0] for group in groups}

    async def _ask(self, groups: Sequence[str], now: float) -> set[str]:
        """The groups whose labels came, which may be more than were asked for."""
        reader = Reader(self._cloud)
        found: set[str] = set()

        async def read(part: Sequence[str]) -> None:
            labels = await reader.ask(lambda: self._cloud.group_labels(part), long=len(part) > 1)
            self._labels.update({group: (label, now) for group, label in labels.items()})
            found.update(labels)

        try:
            await reader.bisect(groups, read, halves_of)
        except CloudError as error:
            log.debug("cloud.no_group_labels", reason=str(error))
        return found

    def _is_stale(self, group: str, now: float) -> bool:
        return group not in self._labels or not 0 <= now - self._labels[group][1] <= LABEL_AGE
