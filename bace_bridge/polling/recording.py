"""What was seen of data sessions becomes commits; the records that cannot be read are named, once."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from bace_bridge.errors import CloudGone, CloudRefused, CloudUnavailable
from bace_bridge.polling.devices import Devices
from bace_bridge.polling.reading import Reader, Unreadable
from bace_bridge.polling.rules.changes import (
    Changes,
    LostRow,
    Page,
    PollState,
    SeenSession,
    SessionCloud,
    SessionJournal,
)
from bace_bridge.polling.rules.session_list import is_selected, starts_from
from bace_bridge.polling.rules.sessions import (
    DataSession,
    Observation,
    in_the_log,
    is_doubtful,
    is_removed,
    observe,
    observe_absence,
)
from bace_bridge.polling.rules.windows import RETRY_UNREADABLE, is_recent

log = structlog.get_logger()


class UnreadableRecords:
    """Data sessions, and parts of the session list, on which the cloud breaks while it answers everything else.

    `failed_at` holds their names, and when each was tried last.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.failed_at: dict[str, float] = {}

    def failed(self, name: str, reason: str) -> None:
        if name not in self.failed_at:
            log.error("cloud.record_unreadable", record=name, reason=reason, then="everything else is read; retrying")
        self.failed_at[name] = self._clock()

    def was_read(self, name: str) -> None:
        if self.failed_at.pop(name, None) is not None:
            log.info("cloud.record_readable", record=name)

    def name_rows(self, lost: Sequence[LostRow], part: str) -> None:
        """Names rows that cannot be read by their ids, and those without one by the part of the list they are in."""
        for row in lost:
            self.failed(part if row.id is None else record_of(row.id), row.reason)
        if all(row.id is not None for row in lost):
            self.was_read(part)

    def forget(self, name: str) -> None:
        """It is not read any more, so it cannot be seen whether it could be."""
        self.failed_at.pop(name, None)

    def rests(self, name: str) -> bool:
        """True for one that was tried a short while ago."""
        return is_recent(self.failed_at.get(name), self._clock(), RETRY_UNREADABLE)


def record_of(session_id: str) -> str:
    return f"data session {session_id}"


MOST_DOUBTED = 20
"""Sessions of one page that are requested once more; the others wait for the next poll."""

BY_ID = "data sessions by their ids"


class SessionRecorder:
    """Compares what was seen with what is known and commits what is new, page by page.

    `denied_at` holds the sessions that the cloud has denied to have, and when, while that is not sure enough.
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
        self.groups = groups
        self.unreadable = UnreadableRecords(clock=clock)
        self.devices = Devices(cloud, journal, groups, clock=clock)
        self.cloud = cloud
        self.journal = journal
        self._deciding = deciding
        self.clock = clock
        self.denied_at: dict[str, list[float]] = {}
        self._doubted_at: dict[tuple[DataSession, ...], float] = {}
        self._named: set[str] = set()

    async def record(self, page: Page[SeenSession], state: PollState, reader: Reader) -> list[Observation]:
        """What is new on a page, after it was committed."""
        for field, reason in page.odd:
            if field not in self._named:  # one of a whole account may be odd in every row
                self._named.add(field)
                log.warning("cloud.field_not_understood", what=field, reason=reason)
        rows: dict[str, list[SeenSession]] = {}
        for row in page.items:
            self._was_seen(row.session.id)
            rows.setdefault(row.session.id, []).append(row)
        known = await self.journal.known(rows)
        now = self.clock()
        sure: list[SeenSession] = []
        doubted: dict[tuple[DataSession, ...], float] = {}
        for session_id, seen in rows.items():
            versions = tuple(one.session for one in seen)
            if not is_doubtful(known.get(session_id), versions):
                sure += seen
            # Equally new rows that differ: a cache or a replica is behind, and the list does not show which of
            # them. So the session's own address decides.
            elif len(doubted) < MOST_DOUBTED and not is_recent(self._doubted_at.get(versions), now, RETRY_UNREADABLE):
                doubted[versions] = now
                log.debug("session.asked_once_more", session=session_id, reason="answers differ and are equally new")
                answer = await self._request(session_id, reader)
                if isinstance(answer, SeenSession):
                    sure.append(answer)
                elif len(set(versions)) == 1 and (not isinstance(answer, CloudGone) or await reader.denies_all()):
                    sure += seen  # no other answer is to be had
        found = await self._commit(sure, state)
        # Only now: where the poll fails before the commit, the session has to be requested again.
        recently = {one: at for one, at in self._doubted_at.items() if is_recent(at, now, RETRY_UNREADABLE)}
        self._doubted_at = doubted | recently
        return found

    async def check(self, session_id: str, state: PollState, reader: Reader) -> bool:
        """Requests a known session by its id; False where others had better not be requested now."""
        answer = await self._request(session_id, reader)
        # One that cannot be read is not removed, nor a reason to stop here. But where no answer came, which may take a
        # minute, the next one may take as long.
        if isinstance(answer, SeenSession):
            await self._commit([answer], state)
        return not (isinstance(answer, Unreadable) and isinstance(answer.cause, CloudUnavailable))

    async def _request(self, session_id: str, reader: Reader) -> SeenSession | Exception:
        """The session by its id, or why that cannot be read now, or that it is gone."""
        try:
            seen = await reader.session(session_id)
        except CloudGone as answer:
            self.unreadable.was_read(record_of(session_id))
            await self._note_absence(session_id, str(answer), reader)
            return answer
        except (Unreadable, CloudRefused) as fault:
            self.unreadable.failed(record_of(session_id), str(fault))
            return fault
        self._was_seen(session_id)
        return seen

    async def _commit(self, rows: Sequence[SeenSession], state: PollState) -> list[Observation]:
        ids = [row.session.id for row in rows]
        # Before the lock, since it may have to list all devices: no fetch is to wait for that with its commit.
        labels = await self.devices.labels_of(rows, await self.journal.known(ids))
        # From reading what is known to the commit: a fetch may be emitting an event of the same session, and of two who
        # decide on the same version of it the later one would write over what the other has found.
        async with self._deciding:
            known = await self.journal.known(ids)
            now, cloud_now = self.clock(), self.cloud.now()
            found: list[Observation] = []
            left: list[str] = []
            # Oldest first, so that of a device the session that began before is also reported before.
            for row in sorted(rows, key=lambda row: row.session.start):
                session, label = row.session, labels.get(row.session.group_id)
                before = known.get(session.id)
                if before is None and not is_selected(self.groups, session.group_id, label):
                    continue
                one = observe(
                    before,
                    session,
                    device_label=label,
                    start_from=starts_from(state, session.group_id, label),
                    now=now,
                    cloud_now=cloud_now,
                )
                if one is not None:
                    known[session.id] = one.known
                    found.append(one)
                    left += [before.session.group_id] if before is not None else []
            await self._write(found, left)
        return found

    async def _note_absence(self, session_id: str, answer: str, reader: Reader) -> None:
        # Not the list that lacks it, and not the first 404: during maintenance a cloud may deny what it has.
        now = self.clock()
        denied_at = self.denied_at.setdefault(session_id, [])
        denied_at[:] = [*(at for at in denied_at if at <= now), now]  # a clock that was set back begins anew
        if not is_removed(denied_at):
            return
        del self.denied_at[session_id]
        if await reader.denies_all(but=session_id):
            self.unreadable.failed(BY_ID, f"those of the list are denied, too: {answer}")
            return
        self.unreadable.was_read(BY_ID)
        log.info("session.gone", session=session_id, answer=answer)
        async with self._deciding:
            known = (await self.journal.known([session_id])).get(session_id)
            one = observe_absence(known, now=now) if known is not None else None
            await self._write([one] if one is not None else [])

    def _was_seen(self, session_id: str) -> None:
        self.denied_at.pop(session_id, None)
        self.unreadable.was_read(record_of(session_id))

    async def _write(self, found: Sequence[Observation], left: Sequence[str] = ()) -> None:
        """`left` are the devices of the sessions before, which may be others than now."""
        if not found:
            return
        last = {one.known.session.id: one.known for one in found}
        events = tuple(event for one in found for event in one.events)
        await self.journal.commit(Changes(known=tuple(last.values()), events=events, left=tuple(left)))
        for one in found:
            for event in one.events:
                log.info(event.type, **in_the_log(event, one.known))
