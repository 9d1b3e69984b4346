"""Parts that run side by side, and come and go while the others go on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from typing import Concatenate, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")


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

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait((self.task,))


class Running(Generic[ConfigT, PartT]):
    """The parts of one kind that run now, each by its configuration; `group` runs their tasks."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: tuple[_One[ConfigT, PartT], ...] = ()

    def __iter__(self) -> Iterator[PartT]:
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
        task = self._group.create_task(part.run(stop))
        self._running = (*self._running, _One(config, part, stop, task))

    async def keep(self, wanted: Collection[ConfigT]) -> list[ConfigT]:
        """Ends the parts whose configuration is not wanted, and those that are not usable.

        Returns the wanted ones of which no part runs.
        """
        leaving = [one for one in self._running if one.config not in wanted or not one.part.usable]
        await asyncio.gather(*(one.end() for one in leaving))
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
        if len(several.exceptions) == 1:
            raise several.exceptions[0] from None
        raise
