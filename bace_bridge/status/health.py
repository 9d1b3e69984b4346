"""What the running bridge says of itself: alive, ready, info and health."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from bace_bridge.events.types import DeviceState, KnownDevice
from bace_bridge.formats import iso_utc

SLOWEST_PROGRESS = 120.0
"""Seconds without progress after which a loop counts as standing still."""


Reasons = Callable[[], Mapping[str, str | None]]
"""Name -> why it is not well; None where it is."""


class Part(Protocol):
    """Answers for itself, by the names that health shows."""

    def silent_for(self) -> Mapping[str, float]:
        """Per loop the seconds since it made progress."""

    def ready(self) -> Mapping[str, str | None]:
        """Why something that the bridge needs is not usable; None where it is."""

    def degraded(self) -> Mapping[str, str | None]:
        """What does not work while the bridge as a whole does; None where it does."""


class Check(NamedTuple):
    """A part that has an answer to one of the questions only."""

    silent_for: Callable[[], Mapping[str, float]] = dict
    ready: Reasons = dict
    degraded: Reasons = dict


class Checks:
    """All that is asked for health: each part says by itself what is wrong with it.

    A new check is an answer of its own part, and where that is a new part, an argument here. Of several parts that
    answer to one name the first reason counts.
    """

    def __init__(self, *parts: Iterable[Part]) -> None:
        self._parts = parts

    def silent_for(self) -> dict[str, float]:
        return {name: seconds for part in self for name, seconds in part.silent_for().items()}

    def ready(self) -> dict[str, str | None]:
        return _merged(part.ready() for part in self)

    def degraded(self) -> dict[str, str]:
        return {name: why for name, why in _merged(part.degraded() for part in self).items() if why is not None}

    def __iter__(self) -> Iterator[Part]:
        for parts in self._parts:
            yield from parts


def _merged(answers: Iterable[Mapping[str, str | None]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for answer in answers:
        for name, why in answer.items():
            # A name that is well stays in the answer, with None: monitors want to see what was asked.
            found[name] = found.get(name) or why
    return found


class Polling(NamedTuple):
    """How an account polls the session list.

    `interval` is in seconds, and so is `clock_ahead`, by which the cloud's clock is ahead of ours. The times are epoch
    seconds: None before the first poll.
    """

    strategy: str
    interval: float
    last_success_at: float | None
    next_poll_at: float | None
    clock_ahead: float


class Account(Protocol):
    def polling(self) -> Polling: ...


class Outlet(Protocol):
    name: str
    disabled: str | None
    backlog: int | None
    parked: int
    dead_letters: int

    def state(self) -> dict[str, Any]: ...


class Store(Protocol):
    def figures(self) -> dict[str, int]: ...


class DeviceStates(Protocol):
    oldest_view: float
    """Seconds since the datapoints of the device that is furthest behind were fetched."""

    @property
    def is_current(self) -> bool: ...
    async def states(self, ids: Collection[str] | None) -> list[DeviceState]: ...
    async def known(self, ids: Collection[str] | None) -> list[KnownDevice]: ...


class Status:
    """Reads the parts that run; changes nothing."""

    def __init__(
        self,
        checks: Checks,
        accounts: Iterable[Account],
        outlets: Iterable[Outlet],
        store: Store,
        devices: DeviceStates,
        *,
        version: str,
        installation: str,
        clock: Callable[[], float],
    ) -> None:
        self.checks = checks
        self._accounts = accounts
        self._outlets = outlets
        self._store = store
        self.devices = devices
        self.version = version
        self.installation = installation
        self._started_at = clock()

    def alive(self) -> dict[str, str | None]:
        """Per loop None while it makes progress, else what stands still."""
        # Three intervals: a poll may take one, and one that fails waits for the next.
        slowest = max([SLOWEST_PROGRESS, *(3 * one.polling().interval for one in self._accounts)])
        return {
            name: None if seconds < slowest else f"no progress for {seconds:.0f} s"
            for name, seconds in self.checks.silent_for().items()
        }

    def info(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "installation": self.installation,
            "started_at": iso_utc(self._started_at),
            "strategy": ", ".join(dict.fromkeys(one.polling().strategy for one in self._accounts)),
        }

    def health(self) -> dict[str, Any]:
        problems = {name: why for name, why in {**self.alive(), **self.checks.ready()}.items() if why is not None}
        outlets, polling = tuple(self._outlets), [one.polling() for one in self._accounts]
        ahead: float = max((one.clock_ahead for one in polling), key=abs, default=0.0)
        return {
            "healthy": not problems,
            "problems": problems,
            "degraded": self.checks.degraded(),
            "last_poll_at": _earliest(one.last_success_at for one in polling),
            "next_poll_at": _earliest(one.next_poll_at for one in polling),
            "oldest_view_seconds": round(self.devices.oldest_view),
            "backlog": {one.name: one.backlog for one in outlets if one.backlog is not None},
            "parked_sessions": {one.name: one.parked for one in outlets if one.parked},
            "dead_letters": {one.name: one.dead_letters for one in outlets if one.dead_letters},
            "sinks": {one.name: one.state() for one in outlets},
            "disabled_sinks": {one.name: one.disabled for one in outlets if one.disabled is not None},
            "store": self._store.figures(),
            "cloud_clock_ahead_seconds": round(ahead),
        }


class StateForTopics:
    """What MQTT's retained topics show."""

    def __init__(self, status: Status) -> None:
        self.devices, self.known_devices = status.devices.states, status.devices.known
        # True while the session list can be polled: what is not known then is not there.
        self.is_current = lambda: status.devices.is_current
        self.info = lambda: msgspec.json.encode(status.info())
        self.health = lambda: msgspec.json.encode(status.health())


def _earliest(times: Iterable[float | None]) -> str | None:
    """None where one of them has not come yet."""
    found = list(times)
    known = [at for at in found if at is not None]
    return iso_utc(min(known)) if known and len(known) == len(found) else None
