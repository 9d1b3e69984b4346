"""Rows of the session list become known sessions and events."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from bace_bridge.errors import CloudFault, CloudGone, CloudRefused, UnexpectedReply
from bace_bridge.polling.device_labels import DeviceLabels
from bace_bridge.polling.needs import SessionCloud, SessionJournal
from bace_bridge.polling.rules.absences import Absence, is_removed, with_answer
from bace_bridge.polling.rules.changes import Changes, PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import Page, SeenSession
from bace_bridge.polling.rules.selection import decides_by_label, is_selected, starts_from
from bace_bridge.polling.rules.sessions import (
    DataSession,
    KnownSession,
    Observation,
    agree,
    contradicts,
    observe,
    observe_absence,
)
from bace_bridge.polling.unreadable import UnreadableRecords, record_of

log = structlog.get_logger()

MOST_ASKED_AGAIN = 20
"""Sessions of one page that are asked for once more; the others wait for the next poll."""

MOST_NAMED = 1000
"""Odd rows and fields that are named in the log, so that remembering which were has a bound."""


class SessionRecorder:
    """Compares what was seen with what is known and commits what is new, page by page.

    `deciding` is held from reading what is known to the commit: a fetch may be emitting events of the same session.
    """

    def __init__(
        self,
        cloud: SessionCloud,
        journal: SessionJournal,
        *,
        groups: Sequence[str],
        deciding: asyncio.Lock,
        clock: Callable[[], float],
    ) -> None:
        self.unreadable = UnreadableRecords(clock=clock)
        self.groups = groups
        self._cloud = cloud
        self._journal = journal
        self._deciding = deciding
        self._clock = clock
        self.labels = DeviceLabels(cloud, clock=clock)
        self._absences: dict[str, Absence] = {}
        self._named: set[tuple[str, str]] = set()
        self._settled: dict[str, tuple[tuple[DataSession, ...], float]] = {}

    @property
    def suspects(self) -> list[str]:
        """The ids of the sessions that the cloud has denied to have, but not for long enough to believe it."""
        return list(self._absences)

    async def record(self, page: Page[SeenSession], state: PollState) -> list[Observation]:
        """What is new on a page, after it was committed. What cannot be read on it is named in the log."""
        self._name_odd(page)
        return await self._record(page.items, state)

    async def check(self, known: KnownSession, state: PollState) -> None:
        """Asks for one session by its id.

        One on which the cloud breaks is left for a while: it is neither removed nor a reason to stop here.
        """
        seen = await self._asked(known.session.id)
        if seen is not None:
            await self._commit_rows([seen], state)

    async def _asked(self, session_id: str) -> SeenSession | None:
        """The session by its id; None where that cannot be read now, or where it is gone."""
        try:
            seen = await self._cloud.session(session_id)
        except CloudGone as answer:
            self.unreadable.was_read(record_of(session_id))
            await self._note_absence(session_id, str(answer))
            return None
        except (CloudFault, UnexpectedReply, CloudRefused) as fault:
            self.unreadable.failed(record_of(session_id), str(fault))
            return None
        self._was_seen(session_id)
        return seen

    async def _record(self, rows: Sequence[SeenSession], state: PollState) -> list[Observation]:
        for row in rows:
            self._was_seen(row.session.id)
        known = await self._journal.known([row.session.id for row in rows])
        doubtful = _doubtful(rows, known)
        sure = [row for row in rows if row.session.id not in doubtful]
        said: dict[str, tuple[DataSession, ...]] = {
            one: tuple(row.session for row in rows if row.session.id == one) for one in sorted(doubtful)
        }
        asked: list[str] = []
        for session_id in [one for one in said if not self._is_settled(one, said[one])][:MOST_ASKED_AGAIN]:
            log.debug("session.asked_once_more", session=session_id, reason="two answers differ and are equally new")
            if (seen := await self._asked(session_id)) is not None:
                sure.append(seen)
                asked.append(session_id)
        found = await self._commit_rows(sure, state)
        # Only now: where the poll fails before the commit, the session has to be asked for again.
        now = self._clock()
        recent = {one: kept for one, kept in self._settled.items() if 0 <= now - kept[1] < RETRY_UNREADABLE}
        self._settled = recent | {one: (said[one], now) for one in asked}
        return found

    def _is_settled(self, session_id: str, said: tuple[DataSession, ...]) -> bool:
        """True where the session's own address was asked about the very same rows a short while ago."""
        before, at = self._settled.get(session_id, ((), 0.0))
        return said == before and 0 <= self._clock() - at < RETRY_UNREADABLE

    async def _commit_rows(self, rows: Sequence[SeenSession], state: PollState) -> list[Observation]:
        before = await self._journal.known([row.session.id for row in rows])
        undecided = {row.session.group_id for row in rows if row.session.id not in before}
        labels = await self.labels.of(
            rows, before, deciding={group for group in undecided if decides_by_label(self.groups, group)}
        )
        rows = sorted(
            (
                row
                for row in rows
                if row.session.id in before
                or is_selected(self.groups, row.session.group_id, labels.get(row.session.group_id))
            ),
            key=lambda row: row.session.start,
        )
        async with self._deciding:
            known = await self._journal.known([row.session.id for row in rows])
            now = self._clock()
            found: list[Observation] = []
            for row in rows:
                session, label = row.session, labels.get(row.session.group_id)
                one = observe(
                    known.get(session.id),
                    session,
                    device_label=label,
                    start_from=starts_from(state, session.group_id, label),
                    now=now,
                    cloud_now=now + self._cloud.clock_ahead,
                )
                if one is not None:
                    known[session.id] = one.known
                    found.append(one)
            moved = {before[one.known.session.id].session.group_id for one in found if one.known.session.id in before}
            left = moved - {one.known.session.group_id for one in found}
            await self._commit(found, left=tuple(left))
        return found

    async def _note_absence(self, session_id: str, answer: str) -> None:
        """A session is removed when the cloud has denied it often and for long enough, by its id."""
        absence = with_answer(self._absences.get(session_id), now=self._clock())
        self._absences[session_id] = absence
        if not is_removed(absence, now=self._clock()):
            return
        log.info("session.gone", session=session_id, answer=answer)
        async with self._deciding:
            known = (await self._journal.known([session_id])).get(session_id)
            one = observe_absence(known, now=self._clock()) if known is not None else None
            await self._commit([one] if one is not None else [])
        del self._absences[session_id]

    def _was_seen(self, session_id: str) -> None:
        self._absences.pop(session_id, None)
        self.unreadable.was_read(record_of(session_id))

    async def _commit(self, found: Sequence[Observation], *, left: tuple[str, ...] = ()) -> None:
        if not found:
            return
        last = {one.known.session.id: one.known for one in found}
        events = tuple(event for one in found for event in one.events)
        await self._journal.commit(Changes(known=tuple(last.values()), events=events, left=left))
        for event in events:
            log.info(event.type, session=event.session_id, device=event.device_id, id=event.id)

    def _name_odd(self, page: Page[SeenSession]) -> None:
        """Each odd field once, and each row that cannot be read once."""
        for field, reason in page.odd:
            self._name_once("cloud.field_not_understood", field, reason)
        for row in page.lost:
            self._name_once("cloud.session_unreadable", row.id or "without a readable id", row.reason)

    def _name_once(self, event: str, what: str, reason: str) -> None:
        if (event, what) not in self._named and len(self._named) < MOST_NAMED:
            self._named.add((event, what))
            log.warning(event, what=what, reason=reason)


def _doubtful(rows: Sequence[SeenSession], known: dict[str, KnownSession]) -> set[str]:
    """The ids of sessions of which two equally new answers differ: two rows, or a row and what is known."""
    first: dict[str, SeenSession] = {}
    doubtful: set[str] = set()
    for row in rows:
        session = row.session
        other = first.setdefault(session.id, row).session
        before = known.get(session.id)
        if not agree(session, other) or (before is not None and contradicts(before, session)):
            doubtful.add(session.id)
    return doubtful
