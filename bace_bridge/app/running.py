"""What runs and when: signals, the steady clock, parts that come and go by the configuration, and reloads."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Concatenate, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

import structlog

from bace_bridge.config.models import Config
from bace_bridge.errors import ConfigError, StoreError, StoreUnusable
from bace_bridge.waiting import STORE_PAUSE

P = ParamSpec("P")


@dataclass(eq=False)
class Signal(Generic[P]):
    """Made before those who send it and those who listen, and handed to both. Calling it sends it.

    Listeners are called at once, in the order in which they came; they must neither block nor raise.
    """

    _listeners: list[Callable[P, None]] = field(default_factory=list)

    def listen(self, listener: Callable[P, None]) -> None:
        self._listeners.append(listener)

    def __call__(self, *given: P.args, **named: P.kwargs) -> None:
        for listener in self._listeners:
            listener(*given, **named)


@dataclass(frozen=True)
class Signals:
    """What happens in a bridge."""

    log_grew: Signal[[]] = field(default_factory=Signal)
    """There are new events, or somebody has moved lanes."""

    list_polled: Signal[[]] = field(default_factory=Signal)
    """A poll of a session list has ended, well or not."""

    devices_changed: Signal[[Collection[str] | None]] = field(default_factory=Signal)
    """The state of these devices may be another one now; None: of all of them."""

    status_changed: Signal[[]] = field(default_factory=Signal)
    """The bridge's info or health may be another one now."""

    clock_stepped: Signal[[float]] = field(default_factory=Signal)
    """The wall clock was set by so many seconds."""


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


class ClockWatch(NamedTuple):
    """Notices that the wall clock was set, and moves what is scheduled along with it.

    Between the step and `check` every schedule goes on by the steady clock, so nothing fires early or waits for days.
    `move_store` moves what is kept in the store, `stepped` what is in memory, by so many seconds.
    """

    clock: SteadyClock
    deciding: asyncio.Lock
    move_store: Callable[[float], Awaitable[None]]
    stepped: Callable[[float], None]

    async def check(self) -> None:
        if abs(self.clock.behind) < SMALLEST_STEP:
            # NTP slews a little at a time. Followed in silence, or the small steps would add up to one that is
            # announced.
            self.clock.follow(self.clock.behind)
            return
        # No decision may be on its way with times of before: the lock is held from what is known to the commit.
        async with self.deciding:
            seconds = self.clock.behind
            try:
                await self.move_store(seconds)
            except StoreUnusable:
                raise
            except StoreError as error:
                # Memory must not run ahead of the store; the steady clock goes on, and the next tick tries again.
                log.debug("clock.step_not_recorded", reason=str(error))
                return
            # The store first: where it fails, the clock stays as it is, and the step is found again at the next check.
            self.clock.follow(seconds)
            self.stepped(seconds)
        log.warning("clock.stepped", seconds=round(seconds, 1), then="scheduled retries and polls move with it")


class Part(Protocol):
    @property
    def usable(self) -> bool:
        """False where to begin anew could help: it has no connection that would be lost."""

    async def run(self, stop: asyncio.Event) -> None:
        """Returns when it has ended in order after `stop`; what it raises ends everything."""


ConfigT = TypeVar("ConfigT")
PartT = TypeVar("PartT", bound=Part)


class _One(NamedTuple, Generic[ConfigT, PartT]):
    config: ConfigT
    part: PartT
    stop: asyncio.Event
    task: asyncio.Task[None]


@dataclass(eq=False)
class Running(Generic[ConfigT, PartT]):
    """The parts of one kind that run now, each by its configuration; `group` runs their tasks."""

    group: asyncio.TaskGroup
    _running: tuple[_One[ConfigT, PartT], ...] = ()

    def __iter__(self) -> Iterator[PartT]:
        # A copy: a part may end, or begin, while its listeners are called.
        return iter([one.part for one in self._running])

    @property
    def configs(self) -> list[ConfigT]:
        return [one.config for one in self._running]

    def each(self, method: Callable[Concatenate[PartT, P], None]) -> Callable[P, None]:
        """Calls the method of each part that runs at the time of the call."""

        def call(*given: P.args, **named: P.kwargs) -> None:
            for part in self:
                method(part, *given, **named)

        return call

    def start(self, config: ConfigT, part: PartT) -> None:
        stop = asyncio.Event()
        task = self.group.create_task(part.run(stop))
        self._running = (*self._running, _One(config, part, stop, task))

    async def keep(self, wanted: Collection[ConfigT]) -> list[ConfigT]:
        """Ends the parts whose configuration is not wanted, and those that are not usable.

        Returns the wanted ones of which no part runs.
        """
        leaving = [one for one in self._running if one.config not in wanted or not one.part.usable]
        # All at once: each may take its seconds to deliver what is left. `wait` raises nothing of what a task raised;
        # the group does, and ends everything.
        for one in leaving:
            one.stop.set()
        if leaving:
            await asyncio.wait([one.task for one in leaving])
        self._running = tuple(one for one in self._running if one not in leaving)
        return [config for config in wanted if config not in self.configs]

    async def end(self) -> None:
        await self.keep(())


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup that raises a single error as it is, whether it came from a task or from the body."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as several:
        # The command line answers for StoreLocked and the like by their class, which a group would hide.
        if len(several.exceptions) == 1:
            raise several.exceptions[0] from None
        raise


Become = Callable[[Config], Awaitable[None]]


class _Asked(NamedTuple):
    config: Config
    answer: asyncio.Future[None]


@dataclass(eq=False)
class Reloads:
    """Takes them one after the other. `config` is the one that runs."""

    config: Config
    _asked: asyncio.Queue[_Asked] = field(default_factory=asyncio.Queue)

    async def ask(self, config: Config) -> None:
        """Returns when it runs. Raises ConfigError where it cannot run; then the one before does."""
        # A queue and not a lock: the service's own task applies it, so that its end cuts a reload off as well.
        asked = _Asked(config, asyncio.get_running_loop().create_future())
        self._asked.put_nowait(asked)
        await asked.answer

    async def serve(self, become: Become) -> None:
        """Never returns. `become` must be able to go on where it was cut off by a StoreError."""
        while True:
            config, answer = await self._asked.get()
            try:
                await _until_stored(become, config)
            except ConfigError as error:
                # What cannot run any more either, such as a listener on an address that is gone, ends nothing else.
                try:
                    await _until_stored(become, self.config)
                except ConfigError as again:
                    mistakes = [str(one) for one in again.mistakes]
                    log.warning("config.not_restored", mistakes=mistakes, then="everything else continues")
                answer.set_exception(error)
            else:
                self.config = config
                answer.set_result(None)


async def _until_stored(become: Become, config: Config) -> None:
    while True:
        try:
            return await become(config)
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("config.waits_for_the_store", reason=str(error))
            await asyncio.sleep(STORE_PAUSE)
