"""The loop that fetches datapoints: those of many active data sessions in one request, the others one by one."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto

import structlog

from bace_bridge.errors import CloudError, StoreError, StoreUnusable
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.loops import LONGEST_REST, UNSTORED_PAUSE, Pause, pause_after
from bace_bridge.polling.points import PointEndpoint
from bace_bridge.polling.rules.batches import Batch
from bace_bridge.polling.rules.changes import PointJournal, Urgency
from bace_bridge.polling.rules.sessions import END_PATIENCE, KnownSession
from bace_bridge.retry import FAILURES_UNTIL_REPORTED
from bace_bridge.waiting import pause_until

log = structlog.get_logger()

MOST_LIVE = 400
MOST_LATE = 16
"""Data sessions that are read from the store for one plan: with a thousand due it must not be made for each of them."""


class Kind(Enum):
    """What a fetch is for, in the order in which they are begun."""

    BATCH = auto()
    LIVE = auto()
    CHECK = auto()
    LATE = auto()


AT_ONCE = {Kind.BATCH: 8, Kind.LIVE: 4, Kind.CHECK: 2, Kind.LATE: 2}
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
        self._waiting: dict[Kind, deque[Batch | KnownSession]] = {kind: deque() for kind in Kind}
        self._running: Counter[Kind] = Counter()
        self._in_flight: set[str] = set()
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
                        await self._emit_end(known)
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
        checks_go_on = self._more_checks and self._may_begin(Kind.CHECK)
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
        return bool(self._waiting[Kind.BATCH] or self._waiting[Kind.LIVE])

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
        checks = AT_ONCE[Kind.CHECK] - self._running[Kind.CHECK]
        plan = await self._batches.plan([one for one in live if one.session.id not in self._in_flight], checks=checks)
        # Those in flight are left out of every queue: two fetches of one session would race on its windows.
        self._more_checks = len(plan.checks) == checks
        self._waiting = {
            Kind.BATCH: deque(plan.batches),
            Kind.LIVE: deque(one for one in plan.singles if not one.unread),
            Kind.CHECK: deque(plan.checks),
            # What was tried in vain before shares the limit of the history, so that it delays no live session.
            Kind.LATE: deque(
                [one for one in plan.singles if one.unread]
                + [one for one in late if one.session.id not in self._in_flight]
            ),
        }

    def _may_begin(self, kind: Kind) -> bool:
        # While the cloud gives no datapoints at all, one fetch at a time finds out whether it does again.
        return not self._running.total() if self._times_away else self._running[kind] < AT_ONCE[kind]

    async def _make(self, kind: Kind, what: Batch | KnownSession, ids: Sequence[str]) -> None:
        try:
            if isinstance(what, Batch):
                self._note(await self._batches.read_batch(what))
            else:
                self._note(await self._fetch(what, Urgency.LIVE if kind is Kind.LIVE else Urgency.BACKLOG))
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
