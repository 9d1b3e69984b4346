"""Rows of the session list become known sessions and events."""

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog

from bace_bridge.errors import CloudError, CloudFault, CloudGone, UnexpectedReply
from bace_bridge.polling.needs import SessionCloud, SessionJournal
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.seen import Page, SeenSession
from bace_bridge.polling.rules.sessions import KnownSession, Observation, observe, observe_absence
from bace_bridge.polling.unread import Unread

log = structlog.get_logger()

LABEL_AGE = 3600.0
"""Seconds after which a device's label is asked for again, where sessions do not bring it along."""

MOST_CHECKS = 20
"""Sessions that are asked for one by one in a poll, so that a poll stays short."""

MOST_NAMED = 1000
"""Odd rows and fields that are named in the log, so that remembering which were has a bound."""


class SessionRecorder:
    """Compares what was seen with what is known and commits what is new, page by page.

    `deciding` is held from reading what is known to the commit: a visit may be telling of the same session.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        *,
        groups: Collection[str],
        deciding: asyncio.Lock,
        clock: Callable[[], float],
        unread: Unread | None = None,
    ) -> None:
        self.unread = unread or Unread(clock=clock)
        self._cloud = cloud
        self._journal = journal
        self._groups = frozenset(groups)
        self._deciding = deciding
        self._clock = clock
        self._labels: dict[str, tuple[str | None, float]] = {}
        self._named: set[tuple[str, str]] = set()

    async def record(self, rows: Sequence[SeenSession], *, start_from: float) -> list[Observation]:
        """What is new in `rows`, after it was committed."""
        for row in rows:
            self.unread.read(f"data session {row.session.id}")
        before = await self._journal.known([row.session.id for row in rows])
        rows = sorted(
            (row for row in rows if self._is_watched(row) or row.session.id in before),
            key=lambda row: row.session.start,
        )
        ids = [row.session.id for row in rows]
        labels = await self._device_labels(rows, before)
        async with self._deciding:
            known = await self._journal.known(ids)
            now = self._clock()
            found: list[Observation] = []
            for row in rows:
                session = row.session
                label = labels.get(session.group_id)
                one = observe(
                    known.get(session.id),
                    session,
                    device_label=label,
                    start_from=start_from,
                    now=now,
                    cloud_now=now + self._cloud.clock_ahead,
                )
                if one is not None:
                    known[session.id] = one.known
                    found.append(one)
            left = {
                before[one.known.session.id].session.group_id for one in found if one.known.session.id in before
            } - {one.known.session.group_id for one in found}
            await self._commit(found, left=tuple(left))
        return found

    async def check(self, suspects: Sequence[KnownSession], *, start_from: float) -> int:
        """Asks for sessions one by one; returns how many of them are gone.

        One on which the cloud breaks is left for a while: it is neither gone nor a reason to stop here.
        """
        gone = 0
        for known in [one for one in suspects if not self.unread.rests(place_of(one))][:MOST_CHECKS]:
            try:
                seen = await self._cloud.session(known.session.id)
            except (CloudFault, UnexpectedReply) as fault:
                self.unread.failed(place_of(known), str(fault))
                continue
            except CloudGone as answer:
                log.info("session.gone", session=known.session.id, answer=str(answer))
                await self._record_absence(known.session.id)
                gone += 1
            else:
                await self.record([seen], start_from=start_from)
            self.unread.read(place_of(known))
        return gone

    async def _record_absence(self, session_id: str) -> None:
        async with self._deciding:
            known = (await self._journal.known([session_id])).get(session_id)
            one = observe_absence(known, now=self._clock()) if known is not None else None
            await self._commit([one] if one is not None else [])

    async def _commit(self, found: Sequence[Observation], *, left: tuple[str, ...] = ()) -> None:
        if not found:
            return
        last = {one.known.session.id: one.known for one in found}
        events = tuple(event for one in found for event in one.events)
        await self._journal.commit(Changes(known=tuple(last.values()), events=events, left=left))
        for event in events:
            log.info(event.type, session=event.session_id, device=event.device_id, id=event.id)

    def name_unreadable(self, page: Page[SeenSession]) -> None:
        """Each odd field once, and each row that cannot be read once."""
        for field, reason in page.odd:
            self._name_once("cloud.field_not_understood", field, reason)
        for row in page.lost:
            self._name_once("cloud.session_unreadable", row.id or "without a readable id", row.reason)

    def _name_once(self, event: str, what: str, reason: str) -> None:
        if (event, what) not in self._named and len(self._named) < MOST_NAMED:
            self._named.add((event, what))
            log.warning(event, what=what, reason=reason)

    def _is_watched(self, row: SeenSession) -> bool:
        return not self._groups or row.session.group_id in self._groups

    async def _device_labels(
        self, rows: Sequence[SeenSession], known: dict[str, KnownSession]
    ) -> dict[str, str | None]:
        now = self._clock()
        for row in rows:
            group = row.session.group_id
            if row.device_label is not None:
                self._labels[group] = (row.device_label, now)
            elif group not in self._labels and (one := known.get(row.session.id)) is not None and one.device_label:
                self._labels[group] = (one.device_label, now)
        wanted = {row.session.group_id for row in rows if self._is_stale(row.session.group_id, now)}
        if wanted:
            self._labels.update({group: (self._labels.get(group, (None, 0))[0], now) for group in wanted})
            try:
                found = await self._cloud.group_labels(wanted)
            except CloudError as error:
                log.debug("cloud.no_group_labels", reason=str(error))
            else:
                self._labels.update({group: (label, now) for group, label in found.items()})
        return {group: label for group, (label, _) in self._labels.items()}

    def _is_stale(self, group: str, now: float) -> bool:
        return group not in self._labels or not 0 <= now - self._labels[group][1] <= LABEL_AGE


def place_of(known: KnownSession) -> str:
    return f"data session {known.session.id}"
