"""What the running bridge says of itself: alive, ready, info and health."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from bace_bridge.events.state import DeviceState, KnownDevice
from bace_bridge.formats import iso_utc

SLOWEST_PROGRESS = 120.0
"""Seconds without progress after which a loop counts as standing still."""


class Part(Protocol):
    """Answers for itself, by the names that health shows."""

    def silent_for(self) -> Mapping[str, float]: ...
    def ready(self) -> Mapping[str, str | None]: ...
    def degraded(self) -> Mapping[str, str | None]: ...


class Account(Part, Protocol):
    @property
    def interval(self) -> float: ...
    @property
    def store_problem(self) -> str | None: ...
    @property
    def strategy(self) -> str: ...
    @property
    def last_success_at(self) -> float | None: ...
    @property
    def next_poll_at(self) -> float | None: ...
    @property
    def clock_ahead(self) -> float: ...


class Outlet(Part, Protocol):
    @property
    def name(self) -> str: ...
    @property
    def disabled(self) -> str | None: ...
    @property
    def backlog(self) -> int | None: ...
    @property
    def parked(self) -> int: ...
    @property
    def dead_letters(self) -> int: ...
    def state(self) -> dict[str, Any]: ...


class Store(Protocol):
    @property
    def problem(self) -> str | None: ...
    def figures(self) -> dict[str, int]: ...


class Views(Protocol):
    @property
    def oldest_view(self) -> float: ...


class DeviceStates(Protocol):
    @property
    def is_current(self) -> bool: ...
    async def states(self, ids: Collection[str] | None) -> list[DeviceState]: ...
    async def known(self, ids: Collection[str] | None) -> list[KnownDevice]: ...


class Status:
    """Reads the parts that run; changes nothing."""

    def __init__(
        self,
        accounts: Iterable[Account],
        outlets: Iterable[Outlet],
        store: Store,
        views: Views,
        *,
        version: str,
        installation: str,
        config_problem: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float],
    ) -> None:
        self._accounts = accounts
        self._outlets = outlets
        self._store = store
        self._views = views
        self._version = version
        self._installation = installation
        self._config_problem = config_problem
        self._started_at = clock()

    def alive(self) -> dict[str, str | None]:
        """Per loop None while it makes progress, else what stands still."""
        slowest = max([SLOWEST_PROGRESS, *(3 * one.interval for one in self._accounts)])
        silent = {name: seconds for part in self._parts for name, seconds in part.silent_for().items()}
        return {
            name: None if seconds < slowest else f"no progress for {seconds:.0f} s" for name, seconds in silent.items()
        }

    def ready(self) -> dict[str, str | None]:
        """Per outside part None while it is usable, else the reason."""
        store = [self._store.problem, *(one.store_problem for one in self._accounts)]
        found: dict[str, str | None] = {"cloud": "not asked yet"}
        for account in self._accounts:
            found |= account.ready()
        found["store"] = next(filter(None, store), None)
        for outlet in self._outlets:
            found |= outlet.ready()
        return found

    def degraded(self) -> dict[str, str]:
        """What does not work while the bridge as a whole does."""
        config = self._config_problem()
        found = {name: why for part in self._parts for name, why in part.degraded().items() if why is not None}
        return found | (
            {"config": f"the file on disk differs from the running configuration: {config}"} if config else {}
        )

    def info(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "installation": self._installation,
            "started_at": iso_utc(self._started_at),
            "strategy": ", ".join(dict.fromkeys(one.strategy for one in self._accounts)),
        }

    def health(self) -> dict[str, Any]:
        problems = {name: why for name, why in {**self.alive(), **self.ready()}.items() if why is not None}
        outlets = tuple(self._outlets)
        return {
            "healthy": not problems,
            "problems": problems,
            "degraded": self.degraded(),
            "last_poll_at": _earliest(one.last_success_at for one in self._accounts),
            "next_poll_at": _earliest(one.next_poll_at for one in self._accounts),
            "oldest_view_seconds": round(self._views.oldest_view),
            "backlog": {one.name: one.backlog for one in outlets if one.backlog is not None},
            "parked_sessions": {one.name: one.parked for one in outlets if one.parked},
            "dead_letters": {one.name: one.dead_letters for one in outlets if one.dead_letters},
            "sinks": {one.name: one.state() for one in outlets},
            "disabled_sinks": {one.name: one.disabled for one in outlets if one.disabled is not None},
            "store": self._store.figures(),
            "cloud_clock_ahead_seconds": round(_furthest(one.clock_ahead for one in self._accounts)),
        }

    @property
    def _parts(self) -> Iterable[Part]:
        return [*self._accounts, *self._outlets]


class StateForTopics:
    """What MQTT's retained topics show."""

    def __init__(self, status: Status, devices: DeviceStates) -> None:
        self._status = status
        self._devices = devices

    async def devices(self, ids: Collection[str] | None) -> list[DeviceState]:
        """Raises StoreError."""
        return await self._devices.states(ids)

    async def known_devices(self, ids: Collection[str] | None) -> list[KnownDevice]:
        """Raises StoreError."""
        return await self._devices.known(ids)

    def is_current(self) -> bool:
        """True while the session list can be polled: what is not known then is not there."""
        return self._devices.is_current

    def info(self) -> bytes:
        return msgspec.json.encode(self._status.info())

    def health(self) -> bytes:
        return msgspec.json.encode(self._status.health())


def _earliest(times: Iterable[float | None]) -> str | None:
    """None where one of them has not come yet."""
    found = list(times)
    known = [at for at in found if at is not None]
    return iso_utc(min(known)) if known and len(known) == len(found) else None


def _furthest(seconds: Iterable[float]) -> float:
    return max(seconds, key=math.fabs, default=0.0)
