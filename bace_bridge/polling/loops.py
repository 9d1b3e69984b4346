"""The loop that polls the session list, and how long a loop rests."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused, CloudUnavailable, StoreError, StoreUnusable
from bace_bridge.events.types import Event
from bace_bridge.polling.needs import SessionJournal
from bace_bridge.polling.rules.changes import Changes, CloudOutage, Kind, after_failure, after_success
from bace_bridge.retry import backoff

log = structlog.get_logger()

LONGEST_PAUSE = 60.0
"""Seconds between two polls of a cloud that is away; a longer wait only where the cloud itself asks for it."""

LONGEST_REST = 30.0
"""Seconds after which the loops check for work even if nothing woke them, which also shows that they live."""

Pause = Callable[[asyncio.Event, float], Awaitable[None]]


async def pause_until(called: asyncio.Event, seconds: float) -> None:
    """Returns when called, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await called.wait()
    except TimeoutError:
        pass
    called.clear()


def pause_after(error: CloudError, failures: int, *, jitter: float, longest: float = LONGEST_PAUSE) -> float:
    """Seconds until the cloud is asked again after so many failures in a row: not before it wants to be."""
    asked = error.retry_after if isinstance(error, CloudUnavailable) else 0.0
    return max(asked, backoff(failures, jitter=jitter, longest=longest))


class SessionLoop:
    """Polls the session list for ever; an outage of the cloud is an event once, and in the log once a process."""

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
            rest = max(0.0, wait - (self.beat_at - started))
            self.next_beat_at, self.next_poll_at = self.beat_at + rest, self._clock() + rest
            self._after_poll()
            await self._pause(self._called, rest)

    async def _poll(self) -> float:
        """One poll; returns the seconds from its beginning to the next one."""
        try:
            # One that an earlier process reported: this one reports that it is over, once.
            self._outage = self._outage or await self._journal.outage()
            self._journal.ensure_room()
            await self._poll_once()
            await self._note_success()
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("sessions.store_unusable", reason=str(error))
            self.store_problem = str(error)
            return max(self._interval, 5.0)
        except CloudError as error:
            return await self._note_failure(error)
        return self._interval

    async def _note_success(self) -> None:
        reported = self.outage.reported
        after, events = after_success(self.outage, now=self._clock())
        await self._commit(events, after)
        self._outage = after
        if reported is not None or self._logged:
            log.info("cloud.recovered")
            self._logged.clear()
        self.last_success_at = self._clock()
        self.store_problem = None

    async def _note_failure(self, error: CloudError) -> float:
        refused = isinstance(error, CloudLoginFailed) or (
            isinstance(error, CloudRefused) and error.status in {401, 403}
        )
        kind: Kind = "auth_failed" if refused else "unreachable"
        before = self.outage
        self._outage, events = after_failure(before, kind, str(error), now=self._clock())
        self._log_failure(kind, str(error))
        try:
            await self._commit(events, self.outage)
        except StoreUnusable:
            raise
        except StoreError as full:
            self.store_problem = str(full)
            # Not reported: the next failure is, with the same id.
            self._outage = msgspec.structs.replace(self.outage, reported=before.reported)
        longest = max(self._interval, LONGEST_PAUSE)
        return pause_after(error, self.outage.failures, jitter=self._jitter(), longest=longest)

    def _log_failure(self, kind: Kind, reason: str) -> None:
        """Each kind once an outage, by every process: what an earlier one wrote is not in the log that is read now."""
        name = f"cloud.{kind}"
        if kind in self._logged:
            log.debug(name, reason=reason, failures=self.outage.failures)
        else:
            log.warning(name, reason=reason, then="trying again")
            self._logged.add(kind)

    async def _commit(self, events: Sequence[Event], outage: CloudOutage) -> None:
        if events:
            await self._journal.commit(Changes(events=tuple(events), outage=outage))
