"""What the running bridge says of itself: alive, ready, info and health."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

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


class Account(Part, Protocol):
    def polling(self) -> Polling: ...


class Outlet(Part, Protocol):
    name: str
    disabled: str | None
    backlog: int | None
    parked: int
    dead_letters: int

    def state(self) -> dict[str, Any]: ...


class Devices(Protocol):
    oldest_view: float
    """Seconds since the datapoints of the device that is furthest behind were fetched."""


@dataclass(eq=False)
class Status:
    """Reads the parts that run; changes nothing. Each says by itself what is wrong with it.

    A new check is an answer of its own part, and where that is a new part, one of `checks`. Of several parts that
    answer to one name the first reason counts. `figures` are the store's; `started_at` is in epoch seconds.
    """

    checks: Iterable[Check]
    accounts: Iterable[Account]
    outlets: Iterable[Outlet]
    figures: Callable[[], dict[str, int]]
    devices: Devices
    version: str
    installation: str
    started_at: float

    def _parts(self) -> Iterator[Part]:
        return chain(self.checks, self.accounts, self.outlets)

    def alive(self) -> dict[str, str | None]:
        """Per loop None while it makes progress, else what stands still."""
        # Three intervals: a poll may take one, and one that fails waits for the next.
        slowest = max([SLOWEST_PROGRESS, *(3 * one.polling().interval for one in self.accounts)])
        return {
            name: None if seconds < slowest else f"no progress for {seconds:.0f} s"
            for part in self._parts()
            for name, seconds in part.silent_for().items()
        }

    def ready(self) -> dict[str, str | None]:
        """Why something that the bridge needs is not usable; None where it is."""
        return _merged(part.ready() for part in self._parts())

    def degraded(self) -> dict[str, str]:
        """What does not work while the bridge as a whole does."""
        answers = _merged(part.degraded() for part in self._parts())
        return {name: why for name, why in answers.items() if why is not None}

    def info(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "installation": self.installation,
            "started_at": iso_utc(self.started_at),
            "strategy": ", ".join(dict.fromkeys(one.polling().strategy for one in self.accounts)),
        }

    def health(self) -> dict[str, Any]:
        problems = {name: why for name, why in {**self.alive(), **self.ready()}.items() if why is not None}
        outlets, polling = tuple(self.outlets), [one.polling() for one in self.accounts]
        ahead: float = max((one.clock_ahead for one in polling), key=abs, default=0.0)
        return {
            "healthy": not problems,
            "problems": problems,
            "degraded": self.degraded(),
            "last_poll_at": _earliest(one.last_success_at for one in polling),
            "next_poll_at": _earliest(one.next_poll_at for one in polling),
            "oldest_view_seconds": round(self.devices.oldest_view),
            "backlog": {one.name: one.backlog for one in outlets if one.backlog is not None},
            "parked_sessions": {one.name: one.parked for one in outlets if one.parked},
            "dead_letters": {one.name: one.dead_letters for one in outlets if one.dead_letters},
            "sinks": {one.name: one.state() for one in outlets},
            "disabled_sinks": {one.name: one.disabled for one in outlets if one.disabled is not None},
            "store": self.figures(),
            "cloud_clock_ahead_seconds": round(ahead),
        }


def _merged(answers: Iterable[Mapping[str, str | None]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for answer in answers:
        for name, why in answer.items():
            # A name that is well stays in the answer, with None: monitors want to see what was asked.
            found[name] = found.get(name) or why
    return found


def _earliest(times: Iterable[float | None]) -> str | None:
    """None where one of them has not come yet."""
    found = list(times)
    known = [at for at in found if at is not None]
    return iso_utc(min(known)) if known and len(known) == len(found) else None
