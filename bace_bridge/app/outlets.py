"""Builds each sink with its dispatcher from the configuration, and answers the requests that arrive over MQTT."""

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from bace_bridge import logs
from bace_bridge.app.account import fingerprint
from bace_bridge.app.running import Clocks, Running, Signals
from bace_bridge.app.storage import Devices, Storage
from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.csv.links import with_link
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.errors import BridgeError
from bace_bridge.events.types import Filter
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.api import Answer
from bace_bridge.sinks.kind import SinkConfig, SinkContext
from bace_bridge.status.health import Status
from bace_bridge.store.facts import RetainedLedger

Replay = Callable[..., Awaitable[int]]

_LEVELS = ("debug", "info", "warning", "error")


class BadRequest(BridgeError):
    """The request cannot be done as it stands; the message says what it takes."""


def request_handlers(
    *,
    poll_now: Callable[[], None],
    info: Callable[[], dict[str, Any]],
    set_level: Callable[[str], None],
    replay: Replay,
    log_grew: Callable[[], None],
) -> Mapping[str, Answer]:
    """`poll`, `info`, `log_level` and `replay`. A handler raises BadRequest where the payload is not right."""

    async def poll(_: dict[str, Any]) -> dict[str, Any]:
        poll_now()
        return {}

    async def bridge_info(_: dict[str, Any]) -> dict[str, Any]:
        return info()

    async def log_level(payload: dict[str, Any]) -> dict[str, Any]:
        level = payload.get("level")
        if not isinstance(level, str) or level not in _LEVELS:
            raise BadRequest('log_level takes {"level": "debug"}, "info", "warning" or "error"')
        set_level(level)
        return {"level": level}

    async def replay_events(payload: dict[str, Any]) -> dict[str, Any]:
        session, since = payload.get("session"), payload.get("since")
        # An id may be all digits, and people leave out the quotes.
        if isinstance(session, int) and not isinstance(session, bool):
            session = str(session)
        asked_for = session if since is None else since
        if (session is not None and since is not None) or not isinstance(asked_for, str) or not asked_for:
            raise BadRequest('replay takes either {"session": "<id>"} or {"since": "2026-01-31T00:00:00Z"}')
        count = await replay(session=session, since=_epoch(since))
        # The lanes have moved, and only this process knows: the watch for commands sees others' commits alone.
        log_grew()
        return {"events": count}

    return {"poll": poll, "info": bridge_info, "log_level": log_level, "replay": replay_events}


def _epoch(since: str | None) -> float | None:
    if since is None:
        return None
    try:
        moment = datetime.fromisoformat(since)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest("since takes a time such as 2026-01-31T00:00:00Z") from None


log = structlog.get_logger()


class OutletConfig(NamedTuple):
    """What an outlet is made from; while it stays the same, so does the outlet. `source` is CloudEvents' own word.

    `files` are those that the sink reads itself, with the time of their last change.
    """

    sink: SinkConfig
    source: str
    files: tuple[tuple[Path, int], ...] = ()


def outlet_config(sink: SinkConfig, source: str) -> OutletConfig:
    return OutletConfig(sink, source, tuple((path, _changed_at(path)) for path in sink.files))


def _changed_at(path: Path) -> int:
    """In nanoseconds; 0 for a file that is not there."""
    try:
        # A certificate that is renewed in place changes nothing in the configuration but this time.
        return path.stat().st_mtime_ns
    except OSError:
        return 0


class StateForTopics:
    """What MQTT's retained topics show."""

    def __init__(self, devices: Devices, status: Status) -> None:
        self.devices, self.known_devices = devices.states, devices.views.known_devices
        # True while the session list can be polled: what is not known then is not there.
        self.is_current = lambda: bool(devices.is_current)
        self.info = lambda: msgspec.json.encode(status.info())
        self.health = lambda: msgspec.json.encode(status.health())


@dataclass(eq=False)
class OutletBuilder:
    """Builds outlets over one event log, of which `running` are there now. `redaction` is for others' answers."""

    store: Storage
    devices: Devices
    status: Status
    running: Running[OutletConfig, Outlet]
    poll_now: Callable[[], None]
    signals: Signals
    redaction: Redaction
    clocks: Clocks
    datatypes: Mapping[int, DatatypeConfig] = field(default_factory=dict)

    def adjust(self, datatypes: Mapping[int, DatatypeConfig]) -> None:
        """What numbers mean changes in place: no connection need end for a name."""
        if datatypes != self.datatypes:
            self.datatypes = datatypes
            self.signals.devices_changed(None)

    async def open(self, config: OutletConfig) -> Outlet:
        """From its first time on what the sink wants is kept for it. Raises StoreError."""
        sink = config.sink
        # The store first: from here on events are kept for the sink, whether it can be built and reached or not.
        filter_ = Filter(events=tuple(sink.events), groups=tuple(sink.groups), sink=sink.name)
        disabled = await self.store.event_log.open_sink(sink.name, target=fingerprint(sink.target), filter_=filter_)
        if disabled is not None:
            log.warning("sink.is_disabled", sink=sink.name, reason=disabled, until="its url changes")
        built = sink.build(
            SinkContext(
                source=config.source,
                version=self.status.version,
                installation=self.status.installation,
                running=lambda: [one.sink for one in self.running.configs],
                state=StateForTopics(self.devices, self.status),
                ledger=lambda broker: RetainedLedger(self.store.file, sink.name, broker),
                requests=self._requests(sink.name),
                datatypes=lambda: self.datatypes,
                redaction=self.redaction,
                clock=self.clocks.wall,
            )
        )
        return Outlet(
            sink.kind,
            built.sink,
            self.store.event_log,
            filter_,
            broker=built.broker,
            disabled=disabled,
            grew=self.signals.log_grew,
            changed=self.signals.status_changed,
            prepared=partial(with_link, link=self.store.links.link),
            clock=self.clocks.steady,
            monotonic=self.clocks.monotonic,
            jitter=random.random,
        )

    def _requests(self, sink: str) -> Mapping[str, Answer]:
        return request_handlers(
            poll_now=self.poll_now,
            info=self.status.info,
            set_level=logs.set_level,
            replay=partial(self.store.event_log.replay, sink),
            log_grew=self.signals.log_grew,
        )
