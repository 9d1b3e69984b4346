"""What the running bridge says of itself: alive, ready, info and health."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from bace_bridge.domain.timestamps import iso_utc
from bace_bridge.polling.rules.outages import CloudOutage

SLOWEST_PROGRESS = 120.0
"""Seconds without progress after which a loop counts as standing still."""


class WatchedSessions(Protocol):
    outage: CloudOutage
    store_problem: str | None
    last_success_at: float | None
    next_poll_at: float | None
    beat_at: float
    next_beat_at: float


class WatchedDatapoints(Protocol):
    beat_at: float

    @property
    def problem(self) -> str | None: ...


class CloudLine(Protocol):
    @property
    def active_at(self) -> float: ...
    @property
    def clock_ahead(self) -> float: ...


class Broker(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def problem(self) -> str | None: ...
    @property
    def state_problem(self) -> str | None: ...


class StoreLine(Protocol):
    @property
    def problem(self) -> str | None: ...
    def figures(self) -> dict[str, int]: ...


class WatchedSink(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def problem(self) -> str | None: ...
    def state(self) -> dict[str, Any]: ...


class WatchedDispatcher(Protocol):
    beat_at: float


class Status:
    """Reads the loops; changes nothing."""

    def __init__(
        self,
        sessions: WatchedSessions,
        datapoints: WatchedDatapoints,
        cloud: CloudLine,
        store: StoreLine,
        *,
        brokers: Sequence[Broker],
        version: str,
        installation: str,
        strategy: Callable[[], str],
        unread: Callable[[], Sequence[str]] = lambda: (),
        selection_problem: Callable[[], str | None] = lambda: None,
        config_problem: Callable[[], str | None] = lambda: None,
        interval: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._datapoints = datapoints
        self._cloud = cloud
        self._store = store
        self._brokers = brokers
        self._version = version
        self._installation = installation
        self._strategy = strategy
        self._unread = unread
        self._selection_problem = selection_problem
        self._config_problem = config_problem
        self._slowest = max(SLOWEST_PROGRESS, 3 * interval)
        self._monotonic = monotonic
        self._started_at = clock()
        self.backlogs: Mapping[str, int] = {}
        self.waiting: Mapping[str, tuple[int, int]] = {}
        self.oldest_view = 0.0
        self.disabled: dict[str, str] = {}
        self.sinks: dict[str, WatchedSink] = {}
        self.dispatchers: dict[str, WatchedDispatcher] = {}

    def alive(self) -> dict[str, str | None]:
        """Per loop None while it makes progress, else what stands still."""
        now = self._monotonic()
        session_beat = max(self._sessions.beat_at, self._sessions.next_beat_at, self._cloud.active_at)
        return {
            "sessions": self._standing_still(now - session_beat),
            "datapoints": self._standing_still(now - max(self._datapoints.beat_at, self._cloud.active_at)),
            **{f"deliveries:{sink}": self._standing_still(now - one.beat_at) for sink, one in self.dispatchers.items()},
        }

    def ready(self) -> dict[str, str | None]:
        """Per outside part None while it is usable, else the reason."""
        return {
            "cloud": self.cloud_problem,
            "store": self._store.problem or self._sessions.store_problem,
            **{f"mqtt:{broker.name}": broker.problem for broker in self._brokers},
        }

    def degraded(self) -> dict[str, str]:
        """What does not work while the bridge as a whole does."""
        places, config = self._unread(), self._config_problem()
        found = {
            "sessions": f"{len(places)} places cannot be read: {'; '.join(places[:3])}" if places else None,
            "groups": self._selection_problem(),
            "datapoints": self._datapoints.problem if self.cloud_problem is None else None,
            "config": f"the file on disk is not what runs: {config}" if config else None,
            **{f"retained:{one.name}": one.state_problem for one in self._brokers if one.problem is None},
            **{sink.name: sink.problem for sink in self.sinks.values()},
            **{self.sinks[name].name: f"disabled: {why}" for name, why in self.disabled.items()},
        }
        return {name: why for name, why in found.items() if why is not None}

    @property
    def cloud_problem(self) -> str | None:
        outage = self._sessions.outage
        if outage.failures:
            return outage.reason
        return None if self._sessions.last_success_at is not None else "not asked yet"

    @property
    def view_is_current(self) -> bool:
        """True while the last poll of the session list went well; a device's datapoints may be old all the same."""
        sessions = self._sessions
        asked = sessions.last_success_at is not None
        return asked and not sessions.outage.failures and sessions.store_problem is None

    def info(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "installation": self._installation,
            "started_at": iso_utc(self._started_at),
            "strategy": self._strategy(),
        }

    def health(self) -> dict[str, Any]:
        sessions = self._sessions
        problems = {name: why for name, why in {**self.alive(), **self.ready()}.items() if why is not None}
        return {
            "healthy": not problems,
            "problems": problems,
            "degraded": self.degraded(),
            "last_poll_at": None if sessions.last_success_at is None else iso_utc(sessions.last_success_at),
            "next_poll_at": None if sessions.next_poll_at is None else iso_utc(sessions.next_poll_at),
            "oldest_view_seconds": round(self.oldest_view),
            "backlog": dict(self.backlogs),
            "parked_sessions": {sink: parked for sink, (parked, _) in self.waiting.items() if parked},
            "dead_letters": {sink: dead for sink, (_, dead) in self.waiting.items() if dead},
            "sinks": {name: sink.state() for name, sink in self.sinks.items()},
            "disabled_sinks": dict(self.disabled),
            "store": self._store.figures(),
            "cloud_clock_ahead_seconds": round(self._cloud.clock_ahead),
        }

    def _standing_still(self, silent_for: float) -> str | None:
        return None if silent_for < self._slowest else f"no progress for {silent_for:.0f} s"


class StateForTopics:
    """What MQTT's retained topics show."""

    def __init__(self, status: Status, devices: Callable[..., Any]) -> None:
        self._status = status
        self._devices = devices

    async def devices(self, ids: Any) -> Any:
        return await self._devices(ids, available=self._status.view_is_current)

    def is_current(self) -> bool:
        return self._status.view_is_current

    def info(self) -> bytes:
        return msgspec.json.encode(self._status.info())

    def health(self) -> bytes:
        return msgspec.json.encode(self._status.health())
