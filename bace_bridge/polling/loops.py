"""The loop that polls the session list, and how long a loop rests."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused, CloudUnavailable, StoreError, StoreUnusable
from bace_bridge.events.types import Event
from bace_bridge.polling.rules.changes import Changes, CloudOutage, Kind, SessionJournal, after_failure, after_success
from bace_bridge.retry import backoff
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
