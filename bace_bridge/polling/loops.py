"""The two loops of an account: one polls the session list, the other fetches datapoints."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused, CloudUnavailable, StoreError, StoreUnusable
from bace_bridge.events.types import Event
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.points import PointEndpoint
from bace_bridge.polling.rules.batches import Batch
from bace_bridge.polling.rules.changes import (
    Changes,
    CloudOutage,
    Kind,
    PointJournal,
    SessionJournal,
    Urgency,
    after_failure,
    after_success,
)
from bace_bridge.polling.rules.sessions import END_PATIENCE, KnownSession
from bace_bridge.retry import FAILURES_UNTIL_REPORTED, backoff
from bace_bridge.waiting import pause_until

log = structlog.get_logger()

LONGEST_PAUSE = 60.0
"""Seconds between two polls of a cloud that is away; a longer wait only where the cloud itself asks for it."""

UNSTORED_PAUSE = 5.0
"""Seconds, at least, until a loop goes on whose commit the store did not take. Longer than the `STORE_PAUSE` of others:
what is tried again here also costs requests to the cloud."""

LONGEST_REST = 30.0
"""Seconds after which the loops go on even if nothing called them, which also shows that they live."""

Pause = Callable[[asyncio.Event, float], Awaitable[None]]


def pause_after(error: CloudError, failures: int, *, jitter: float, longest: float = LONGEST_PAUSE) -> float:
    """Seconds until the next request after so many failures in a row, and not before the cloud wants one."""
    retry_after = error.retry_after if isinstance(error, CloudUnavailable) else 0.0
    return max(retry_after, backoff(failures, jitter=jitter, longest=longest))


class SessionLoop:
    """Polls the session list for ever, and reports the cloud's outages."""

    def __init__(
        self,
        poll: Callable[[], Awaitable[None]],
        journal: SessionJournal,
        *,
        interval: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
        after_poll: Callable[[], None],
        pause: Pause = pause_until,
    ) -> None:
        self._poll_once = poll
        self._journal = journal
        self._interval = interval
        self._clock = clock
        self._monotonic = monotonic
        self._jitter = jitter
        self._after_poll = after_poll
        self._pause = pause
        self._called = asyncio.Event()
        self._outage: CloudOutage | None = None
        self._logged: set[Kind] = set()
        self.store_problem: str | None = None
        self.last_success_at: float | None = None
        self.next_poll_at: float | None = None
        self.beat_at = self.next_beat_at = monotonic()

    @property
    def outage(self) -> CloudOutage:
        return self._outage or CloudOutage()

    def poll_now(self) -> None:
        self._called.set()

    def clock_stepped(self, seconds: float) -> None:
        """The wall clock was set: what was noted by it moves along."""
        if self.outage.since is not None:
            self._outage = msgspec.structs.replace(self.outage, since=self.outage.since + seconds)
        if self.last_success_at is not None:
            self.last_success_at += seconds
        if self.next_poll_at is not None:
            self.next_poll_at += seconds

    async def run(self) -> None:
        while True:
            started = self._monotonic()
            wait = await self._poll()
            self.beat_at = self._monotonic()
            # From beginning to beginning: a poll of many pages must not make the interval longer.
            rest = max(0.0, wait - (self.beat_at - started))
            self.next_beat_at, self.next_poll_at = self.beat_at + rest, self._clock() + rest
            self._after_poll()
            await self._pause(self._called, rest)
            self._called.clear()

    async def _poll(self) -> float:
        """One poll; returns the seconds from its beginning to the next one."""
        try:
            # An outage that an earlier process reported: this one reports that it is over, once.
            self._outage = self._outage or await self._journal.outage()
            self._journal.ensure_room()
            await self._poll_once()
            # Committed before it is forgotten: where the store fails here, the next poll reports it again.
            after, events = after_success(self.outage, now=self._clock())
            await self._commit(events, after)
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("sessions.store_unusable", reason=str(error))
            self.store_problem = str(error)
            return max(self._interval, UNSTORED_PAUSE)
        except CloudError as error:
            return await self._note_failure(error)
        if self.outage.reported is not None or self._logged:
            log.info("cloud.recovered")
            self._logged.clear()
        self._outage = after
        self.last_success_at = self._clock()
        self.store_problem = None
        return self._interval

    async def _note_failure(self, error: CloudError) -> float:
        refused = isinstance(error, CloudLoginFailed) or (
            isinstance(error, CloudRefused) and error.status in {401, 403}
        )
        kind: Kind = "auth_failed" if refused else "unreachable"
        before = self.outage
        self._outage, events = after_failure(before, kind, str(error), now=self._clock())
        # In the log each kind once an outage, by every process: what an earlier one wrote is not in the log that is
        # read now. Events are another matter: which one was reported is kept in the store.
        name = f"cloud.{kind}"
        if kind in self._logged:
            log.debug(name, reason=str(error), failures=self.outage.failures)
        else:
            log.warning(name, reason=str(error), then="trying again")
            self._logged.add(kind)
        try:
            await self._commit(events, self.outage)
        except StoreUnusable:
            raise  # nothing here will make it usable: the process ends
        except StoreError as full:
            self.store_problem = str(full)
            # Not reported: the next failure is, with the same id.
            self._outage = msgspec.structs.replace(self.outage, reported=before.reported)
        longest = max(self._interval, LONGEST_PAUSE)
        return pause_after(error, self.outage.failures, jitter=self._jitter(), longest=longest)

    async def _commit(self, events: Sequence[Event], outage: CloudOutage) -> None:
        if events:
            await self._journal.commit(Changes(events=tuple(events), outage=outage))


MOST_LIVE = 400
MOST_LATE = 16
"""Data sessions that are read from the store for one plan: with a thousand due it must not be made for each of them."""

MOST_ENDING = 4
"""Ends that are emitted at the same time: the summary of a month takes seconds, which the fetches do not wait for."""


class FetchKind(Enum):
    """What a fetch is for, in the order in which they are begun."""

    BATCH = auto()
    LIVE = auto()
    CHECK = auto()
    LATE = auto()


AT_ONCE = {FetchKind.BATCH: 8, FetchKind.LIVE: 4, FetchKind.CHECK: 2, FetchKind.LATE: 2}
"""Each kind has a limit of its own, so that none waits for another; whose request comes next is the budget's."""


class DatapointLoop:
    """Fetches what is due, a few at once; while nothing live waits the checks go on, one after the other."""

    def __init__(
        self,
        journal: PointJournal,
        fetch: Callable[[KnownSession, Urgency], Awaitable[CloudError | None]],
        emit_end: Callable[[KnownSession], Awaitable[None]],
        endpoint: PointEndpoint,
        batches: BatchFetch,
        *,
        interval: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
        pause: Pause = pause_until,
    ) -> None:
        self._journal = journal
        self._fetch = fetch
        self._emit_end = emit_end
        self._endpoint = endpoint
        self._batches = batches
        self._interval = interval
        self._clock = clock
        self._monotonic = monotonic
        self._jitter = jitter
        self._pause = pause
        self._called = asyncio.Event()
        self._polled = False
        self._more_checks = False
        self._waiting: dict[FetchKind, deque[Batch | KnownSession]] = {kind: deque() for kind in FetchKind}
        self._running: Counter[FetchKind] = Counter()
        self._in_flight: set[str] = set()
        self._ending: set[str] = set()
        self._times_away = 0
        self._resume_at = 0.0
        self._outage: str | None = None
        self.beat_at = monotonic()

    @property
    def problem(self) -> str | None:
        """Why datapoints are missing, where that is not about one data session."""
        return self._outage or self._endpoint.problem

    def poll_now(self) -> None:
        self._polled = True
        self._called.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as fetches:
            while True:
                self.beat_at = self._monotonic()
                try:
                    self._journal.ensure_room()
                    # An end does not wait for a fetch that hangs, nor for one that cannot begin yet.
                    for known in await self._journal.overdue_ends(self._clock() - END_PATIENCE):
                        if known.session.id not in self._ending and len(self._ending) < MOST_ENDING:
                            self._ending.add(known.session.id)
                            fetches.create_task(self._end(known))
                    rest = await self._fetch_due(fetches)
                except StoreUnusable:
                    raise
                except StoreError as error:
                    log.debug("datapoints.store_unusable", reason=str(error))
                    rest = UNSTORED_PAUSE
                await self._pause(self._called, min(rest, LONGEST_REST))
                self._called.clear()

    async def _fetch_due(self, fetches: asyncio.TaskGroup) -> float:
        """Begins what may begin now; returns the seconds until something else may be due."""
        if (silent_for := self._resume_at - self._monotonic()) > 0:
            return silent_for
        checks_go_on = self._more_checks and self._may_begin(FetchKind.CHECK)
        # A plan costs two queries and a walk through 400 sessions, so it is used up first, unless the list was polled:
        # then a session may have ended, and its datapoints are to come before its end.
        if self._polled or (not self._live_waits and (checks_go_on or await self._soonest() <= 0)):
            self._polled = False
            await self._plan()
        for kind, waiting in self._waiting.items():
            while waiting and self._may_begin(kind):
                what = waiting.popleft()
                ids = [what.session.id] if isinstance(what, KnownSession) else [member.id for member in what.members]
                # Noted here and not by the task, which begins later: it must not be planned again meanwhile.
                self._in_flight.update(ids)
                self._running[kind] += 1
                fetches.create_task(self._make(kind, what, ids))
        # Each fetch that ends calls this loop, so what waits needs no timer of its own.
        if self._live_waits:
            return LONGEST_REST
        return await self._soonest() or (LONGEST_REST if self._in_flight else 0.0)

    @property
    def _live_waits(self) -> bool:
        return bool(self._waiting[FetchKind.BATCH] or self._waiting[FetchKind.LIVE])

    async def _soonest(self) -> float:
        """Seconds until a session is due that is neither in flight nor waiting."""
        waiting = [one.session.id for queue in self._waiting.values() for one in queue if isinstance(one, KnownSession)]
        at = await self._journal.next_fetch_at(without=[*self._in_flight, *waiting])
        return LONGEST_REST if at is None else max(0.0, at - self._clock())

    async def _plan(self) -> None:
        now = self._clock()
        # Those that are due soon, too: they fill up the batches of those that are due now, and save a request later.
        live = await self._journal.due_fetches(now + self._interval, MOST_LIVE, late=False)
        late = await self._journal.due_fetches(now, MOST_LATE, late=True)
        checks = AT_ONCE[FetchKind.CHECK] - self._running[FetchKind.CHECK]
        plan = await self._batches.plan([one for one in live if one.session.id not in self._in_flight], checks=checks)
        # Those in flight are left out of every queue: two fetches of one session would race on its windows.
        self._more_checks = len(plan.checks) == checks
        self._waiting = {
            FetchKind.BATCH: deque(plan.batches),
            FetchKind.LIVE: deque(one for one in plan.singles if not one.unread),
            FetchKind.CHECK: deque(plan.checks),
            # What was tried in vain before shares the limit of the history, so that it delays no live session.
            FetchKind.LATE: deque(
                [one for one in plan.singles if one.unread]
                + [one for one in late if one.session.id not in self._in_flight]
            ),
        }

    def _may_begin(self, kind: FetchKind) -> bool:
        # While the cloud gives no datapoints at all, one fetch at a time finds out whether it does again.
        return not self._running.total() if self._times_away else self._running[kind] < AT_ONCE[kind]

    async def _make(self, kind: FetchKind, what: Batch | KnownSession, ids: Sequence[str]) -> None:
        try:
            if isinstance(what, Batch):
                self._note(await self._batches.read_batch(what))
            else:
                self._note(await self._fetch(what, Urgency.LIVE if kind is FetchKind.LIVE else Urgency.BACKLOG))
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("datapoints.store_unusable", sessions=len(ids), reason=str(error))
            # It stays in flight meanwhile, or it would be due again at once and hammer the store.
            await self._pause(asyncio.Event(), UNSTORED_PAUSE)
        finally:
            self._in_flight.difference_update(ids)
            self._running[kind] -= 1
            self._called.set()

    async def _end(self, known: KnownSession) -> None:
        try:
            await self._emit_end(known)
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("datapoints.store_unusable", session=known.session.id, reason=str(error))
            await self._pause(asyncio.Event(), UNSTORED_PAUSE)
        finally:
            self._ending.discard(known.session.id)
            self._called.set()

    def _note(self, away: CloudError | None) -> None:
        """What one fetch has learned of the cloud as a whole."""
        if away is None:
            if self._outage is not None:
                log.info("datapoints.available_again")
            self._times_away, self._resume_at, self._outage = 0, 0.0, None
            return
        self._times_away += 1
        wait = pause_after(away, self._times_away, jitter=self._jitter())
        self._resume_at = max(self._resume_at, self._monotonic() + wait)
        if self._times_away >= FAILURES_UNTIL_REPORTED:
            if self._outage is None:
                log.warning("datapoints.unavailable", reason=str(away), then="trying again")
            self._outage = str(away)
