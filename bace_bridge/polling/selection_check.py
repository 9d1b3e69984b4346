"""Does every entry of `cloud.groups` match a device? One that does not watches nothing, and would say nothing."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused
from bace_bridge.polling.device_labels import DeviceLabels
from bace_bridge.polling.needs import GroupCloud, SessionCloud, SessionJournal
from bace_bridge.polling.reading import pages
from bace_bridge.polling.rules.selection import nearest, unmatched

log = structlog.get_logger()

CHECK_EVERY = 3600.0
CHECK_AGAIN = 600.0
"""Seconds to the next check; sooner while an entry matches nothing, or where the cloud did not list its devices."""

MOST_PAGES = 1000


class ListedDevices(msgspec.Struct, frozen=True):
    """The devices that the account sees: labels by id. Where it is not `complete` there may be others."""

    labels: dict[str, str | None]
    complete: bool


async def listed_devices(cloud: GroupCloud) -> ListedDevices:
    """All pages of the devices. Raises CloudErrors."""
    labels: dict[str, str | None] = {}
    total, unreadable = 0, False
    async for page in pages(cloud.group_page, most=MOST_PAGES):
        labels.update(page.items)
        total, unreadable = page.total or 0, unreadable or bool(page.unreadable)
    return ListedDevices(labels, complete=not unreadable and len(labels) >= total)


class SelectionCheck:
    """Asks for the devices at the start and rarely after. An entry without one is no error: it may come later."""

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        labels: DeviceLabels,
        groups: Sequence[str],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._cloud = cloud
        self._journal = journal
        self._labels = labels
        self._groups = groups
        self._clock = clock
        self._next_at = 0.0
        self._unmatched: list[str] = []
        self._refusal: str | None = None

    @property
    def problem(self) -> str | None:
        """The entries that match no device, and what to do about them."""
        if not self._unmatched:
            return None
        return f"cloud.groups: {', '.join(map(repr, self._unmatched[:3]))}: {self._reason()}"

    async def check_due(self) -> None:
        """Never raises CloudErrors: that a device cannot be checked keeps no other from being watched."""
        now = self._clock()
        if not self._groups or 0 < self._next_at - now <= CHECK_EVERY:
            return
        self._next_at = now + CHECK_AGAIN
        try:
            listed = await listed_devices(self._cloud)
        except (CloudRefused, CloudLoginFailed) as refusal:
            # The session list has just been answered, so it is this endpoint that the account may not use.
            listed, self._refusal = ListedDevices({}, complete=True), str(refusal)
        except CloudError as error:
            log.debug("cloud.devices_not_listed", reason=str(error))
            return
        else:
            self._refusal = None
        seen = await self._journal.device_labels() | self._labels.known | listed.labels
        missing = unmatched(self._groups, seen)
        if missing and not listed.complete:
            return
        if not missing:
            self._next_at = now + CHECK_EVERY
        self._report(missing, seen)
        self._unmatched = missing

    def _report(self, missing: Sequence[str], seen: Mapping[str, str | None]) -> None:
        """Each entry once, and once more when it matches a device."""
        for group in missing:
            if group not in self._unmatched:
                log.warning(
                    "cloud.group_matches_nothing",
                    group=group,
                    reason=self._reason(),
                    nearest=nearest(group, seen),
                    then="it is watched as soon as there is one",
                )
        for group in self._unmatched:
            if group not in missing:
                log.info("cloud.group_matches_now", group=group)

    def _reason(self) -> str:
        if self._refusal is None:
            return "no device that the account sees has this id or label; bace-bridge devices --cloud lists them"
        if self._labels.refusal is not None:
            return f"labels cannot be read ({self._refusal}): name the device by its id_group"
        return f"no device seen so far has this id or label, and the others cannot be listed ({self._refusal})"
