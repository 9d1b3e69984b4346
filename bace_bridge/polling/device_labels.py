"""The labels of devices: from the sessions' expanded groups, else from the groups themselves, once an hour."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import structlog

from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused
from bace_bridge.polling.needs import SessionCloud
from bace_bridge.polling.reading import Reader
from bace_bridge.polling.rules.ranges import halves_of
from bace_bridge.polling.rules.seen import SeenSession
from bace_bridge.polling.rules.sessions import KnownSession

log = structlog.get_logger()

LABEL_AGE = 3600.0
"""Seconds after which a device's label is asked for again, where sessions do not bring it along."""

LABEL_RETRY = 300.0
"""The same where the cloud failed to answer."""

LABELS_AT_ONCE = 10
"""Groups in one request: the answer's `Link` header repeats their ids, and proxies limit headers."""


class DeviceLabels:
    """Labels by group id. One that cannot be had is None, which is no reason not to report a session.

    `refusal` says why the account may not read them.
    """

    def __init__(self, cloud: SessionCloud, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._labels: dict[str, str | None] = {}
        self._fresh_until: dict[str, float] = {}
        self._expanded: set[str] = set()
        self.refusal: str | None = None

    @property
    def known(self) -> dict[str, str | None]:
        """What was seen of devices since the start."""
        return self._labels

    @property
    def wanted(self) -> bool:
        """True where sessions are to bring their labels along: one is missing or old, or groups cannot be read."""
        now = self._clock()
        return self.refusal is not None or not self._labels or any(self._is_stale(one, now) for one in self._labels)

    async def of(
        self, rows: Sequence[SeenSession], known: dict[str, KnownSession], *, deciding: Collection[str] = ()
    ) -> dict[str, str | None]:
        """The labels of the rows' groups.

        Raises CloudErrors where the cloud is away and the label of a group in `deciding` is unknown: only the label
        decides whether the group is watched, and a row that is passed over is not shown again for long.
        """
        now = self._clock()
        for row in rows:
            group = row.session.group_id
            if row.device_label is not None:
                self._note(group, row.device_label, now + LABEL_AGE)
            elif group not in self._labels and (one := known.get(row.session.id)) is not None and one.device_label:
                self._note(group, one.device_label, now + LABEL_AGE)
        groups = {row.session.group_id for row in rows}
        stale = sorted(group for group in groups if self._is_stale(group, now))
        while stale:
            part, stale = stale[:LABELS_AT_ONCE], stale[LABELS_AT_ONCE:]
            await self._ask(part, now, deciding=set(part) & set(deciding))
            stale = [group for group in stale if self._is_stale(group, now)]
        if self.refusal is not None:
            await self._expand([row for row in rows if self._labels[row.session.group_id] is None], now)
        return {group: self._labels[group] for group in groups}

    async def _expand(self, rows: Sequence[SeenSession], now: float) -> None:
        """Where the account may not read groups, a session brings its group's label along, if its page did not."""
        for group, row in {
            row.session.group_id: row for row in rows if row.session.group_id not in self._expanded
        }.items():
            self._expanded.add(group)
            with suppress(CloudError):
                self._note(group, (await self._cloud.session(row.session.id)).device_label, now + LABEL_AGE)

    async def _ask(self, groups: Sequence[str], now: float, *, deciding: Collection[str]) -> None:
        """Notes the labels that came, which may be more than were asked for, and that the others did not."""
        reader = Reader(self._cloud)

        async def read(part: Sequence[str]) -> None:
            labels = await reader.ask(lambda: self._cloud.group_labels(part), long=len(part) > 1)
            for group in {*part, *labels}:
                self._note(group, labels.get(group, self._labels.get(group)), now + LABEL_AGE)

        again = LABEL_RETRY
        try:
            await reader.bisect(groups, read, halves_of)
            self.refusal = None
        except CloudRefused as error:
            self.refusal, again = str(error), LABEL_AGE
            log.debug("cloud.no_group_labels", reason=str(error))
        except CloudLoginFailed as error:
            log.debug("cloud.no_group_labels", reason=str(error))
        except CloudError as error:
            log.debug("cloud.no_group_labels", reason=str(error))
            if any(self._labels.get(one) is None for one in deciding):
                raise
        for group in groups:
            if self._is_stale(group, now):
                self._note(group, self._labels.get(group), now + again)

    def _note(self, group: str, label: str | None, until: float) -> None:
        self._labels[group], self._fresh_until[group] = label, until

    def _is_stale(self, group: str, now: float) -> bool:
        return group not in self._labels or not 0 < self._fresh_until[group] - now <= LABEL_AGE
