"""The devices of the account: their labels, and whether every entry of `cloud.groups` is one of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudFault, CloudLoginFailed, CloudRefused, UnexpectedReply
from bace_bridge.polling.reading import pages
from bace_bridge.polling.rules.changes import SeenSession, SessionCloud, SessionJournal
from bace_bridge.polling.rules.session_list import decides_by_label, unmatched
from bace_bridge.polling.rules.sessions import KnownSession

log = structlog.get_logger()

LIST_AGAIN = 3600.0
SOON = 600.0
"""Seconds after which the devices are listed again; sooner where that failed, or an entry matches no device."""

MOST_PAGES = 1000


class ListedDevices(msgspec.Struct, frozen=True):
    """The devices that the account sees: labels by id. Where it is not `complete` there may be others."""

    labels: dict[str, str | None]
    complete: bool


async def listed_devices(cloud: SessionCloud) -> ListedDevices:
    """All pages of the devices. Raises CloudErrors."""
    labels: dict[str, str | None] = {}
    total, unreadable = 0, False
    async for page in pages(cloud.group_page, most=MOST_PAGES):
        labels.update(page.items)
        total, unreadable = page.total or 0, unreadable or bool(page.unreadable)
    return ListedDevices(labels, complete=not unreadable and len(labels) >= total)


class Devices:
    """Labels come with the sessions, else from the list of all devices; one that cannot be had is None.

    That is no reason not to report a session. Nor is an entry of `groups` without a device an error: it may come later.
    Then `matched_anew` is set: sessions of that device may have been passed over.
    """

    def __init__(
        self, cloud: SessionCloud, journal: SessionJournal, groups: Sequence[str], *, clock: Callable[[], float]
    ) -> None:
        self._cloud = cloud
        self._journal = journal
        self._groups = groups
        self._clock = clock
        self._labels: dict[str, str | None] = {}
        self._list_at = 0.0
        self._problem: str | None = None
        self._unmatched: list[str] = []
        self.matched_anew = False

    @property
    def expand(self) -> bool:
        """True where sessions are to bring their labels along: these are old, or devices cannot be listed."""
        return self._problem is not None or self._is_due

    @property
    def problem(self) -> str | None:
        """The entries of `groups` that match no device, and what to do about them."""
        if not self._unmatched:
            return None
        return f"cloud.groups: {', '.join(map(repr, self._unmatched[:3]))}: {self._reason()}"

    async def labels_of(
        self, rows: Sequence[SeenSession], known: Mapping[str, KnownSession]
    ) -> Mapping[str, str | None]:
        """Labels by group, those of the rows among them.

        Raises CloudErrors where the cloud is away and only an unknown label decides whether a row is watched.
        """
        for row in rows:
            before = known.get(row.session.id)
            if row.device_label is not None:
                self._labels[row.session.group_id] = row.device_label
            elif before is not None and before.device_label is not None:
                self._labels.setdefault(row.session.group_id, before.device_label)
        unknown = {row.session.group_id: row for row in rows if row.session.group_id not in self._labels}
        away = False
        if unknown or (rows and self._is_due):
            try:
                await self._list()
            except CloudError as error:
                # A row that is passed over now is not shown again before it changes: better the poll fails. A label
                # that is known is kept, so nothing hangs on it for sessions that are known.
                away = not isinstance(error, CloudFault | UnexpectedReply)
                new = [group for group, row in unknown.items() if row.session.id not in known]
                if away and any(decides_by_label(self._groups, group) for group in new):
                    raise
        for group, row in unknown.items():
            if self._problem is not None and not away:
                # The account may not list devices; but a session by its id brings its device's label along.
                with suppress(CloudError):
                    self._labels[group] = (await self._cloud.session(row.session.id)).device_label
            self._labels.setdefault(group, None)
        return self._labels

    async def check_due(self) -> None:
        """Does every entry of `groups` match a device? Raises no CloudErrors: nothing else depends on it."""
        if self._groups and self._is_due:
            with suppress(CloudError):
                await self._list()

    @property
    def _is_due(self) -> bool:
        return not 0 < self._list_at - self._clock() <= LIST_AGAIN

    async def _list(self) -> None:
        """Notes the labels of all devices, or why the account may not list them, and which entries match none."""
        self._list_at = self._clock() + SOON  # also where this fails: not at every poll
        try:
            listed = await listed_devices(self._cloud)
            self._problem = None
        except CloudError as error:
            log.debug("cloud.devices_not_listed", reason=str(error))
            before, self._problem = self._problem, str(error)
            # The session list has just been answered, so it is this endpoint that does not work; a 500 may be a hiccup.
            broken = before is not None and isinstance(error, CloudFault | UnexpectedReply)
            if not broken and not isinstance(error, CloudRefused | CloudLoginFailed):
                raise
            listed = ListedDevices({}, complete=True)
        self._labels.update(listed.labels)
        seen = await self._journal.device_labels() | self._labels if self._groups else {}
        missing = unmatched(self._groups, seen)
        if not missing:
            self._list_at = self._clock() + LIST_AGAIN
        # Where not all devices could be listed, one that is missing may be among the others: no reason for a warning.
        if not missing or listed.complete:
            self._report(missing)
            self._unmatched = missing

    def _report(self, missing: Sequence[str]) -> None:
        """Each entry once, and once more when it matches a device."""
        for group in missing:
            if group not in self._unmatched:
                then = "it is watched as soon as there is one"
                log.warning("cloud.group_matches_nothing", group=group, reason=self._reason(), then=then)
        for group in self._unmatched:
            if group not in missing:
                log.info("cloud.group_matches_now", group=group)
                self.matched_anew = True

    def _reason(self) -> str:
        if self._problem is None:
            return "no device that the account sees has this id or label; bace-bridge devices --cloud lists them"
        if self._labels and not any(self._labels.values()):
            return f"labels cannot be read ({self._problem}): name the device by its id_group"
        return f"no device seen so far has this id or label, and the others cannot be listed ({self._problem})"
