"""The clock that schedules go by: wall time that does not step, and what happens when the wall clock was set."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import structlog

from bace_bridge.errors import StoreError, StoreUnusable

log = structlog.get_logger()

SMALLEST_STEP = 1.0
"""Seconds: NTP slews the clock by a few milliseconds a tick; what is less than this is followed in silence."""

Seconds = Callable[[], float]


class SteadyClock:
    """Epoch seconds that go on evenly when the wall clock is set, until `follow` says by how much to move."""

    def __init__(self, wall: Seconds = time.time, monotonic: Seconds = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def __call__(self) -> float:
        return self._monotonic() + self._offset

    @property
    def behind(self) -> float:
        """Seconds by which the wall clock was set forward since the last `follow`; negative: back."""
        return self._wall() - self()

    def follow(self, seconds: float) -> None:
        self._offset += seconds


class Clocks(NamedTuple):
    """In seconds: what others compare with theirs, what schedules go by, and what waits are measured with."""

    wall: Seconds
    steady: SteadyClock
    monotonic: Seconds


class ClockWatch:
    """Notices that the wall clock was set, and moves what is scheduled along with it.

    Between the step and `look` every schedule goes on by the steady clock, so nothing fires early or waits for days.
    `move_store` moves what is kept in the store, `stepped` what is in memory, by so many seconds.
    """

    def __init__(
        self,
        clock: SteadyClock,
        *,
        deciding: asyncio.Lock,
        move_store: Callable[[float], Awaitable[None]],
        stepped: Callable[[float], None],
    ) -> None:
        self._clock = clock
        self._deciding = deciding
        self._move_store = move_store
        self._stepped = stepped

    async def look(self) -> None:
        if abs(self._clock.behind) < SMALLEST_STEP:
            self._clock.follow(self._clock.behind)
            return
        async with self._deciding:
            seconds = self._clock.behind
            try:
                await self._move_store(seconds)
            except StoreUnusable:
                raise
            except StoreError as error:
                log.debug("clock.step_not_recorded", reason=str(error))
                return
            self._clock.follow(seconds)
            self._stepped(seconds)
        log.warning("clock.stepped", seconds=round(seconds, 1), then="what is scheduled moves along")


class Schedules(Protocol):
    async def bound(self, *, now: float, furthest: float) -> int: ...


async def bring_back(schedules: Schedules, *, now: float, furthest: float) -> None:
    """At the start: the clock may have been set back while nothing ran. Raises StoreError."""
    if sessions := await schedules.bound(now=now, furthest=furthest):
        log.warning("clock.was_behind", sessions=sessions, then="what lay too far ahead is due now")
