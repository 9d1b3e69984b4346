"""Builds each sink with its dispatcher from the configuration, and answers the requests that arrive over MQTT."""

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from bace_bridge import logs
from bace_bridge.app.account import fingerprint
from bace_bridge.app.running import Clocks, Signals
from bace_bridge.app.storage import Devices, Storage
from bace_bridge.config.models import MqttConfig, WebhookConfig
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.errors import BridgeError
from bace_bridge.events.types import Filter
from bace_bridge.redaction import Redaction
from bace_bridge.status.standing import StateForTopics, Status

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
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
) -> Mapping[str, Handler]:
    """`poll`, `info`, `log_level` and `replay`. A handler raises BadRequest where the payload is not right."""

    async def poll(_: dict[str, Any]) -> dict[str, Any]:
        poll_now()
        return {}

    async def tell_info(_: dict[str, Any]) -> dict[str, Any]:
        return info()

    async def log_level(payload: dict[str, Any]) -> dict[str, Any]:
        level = payload.get("level")
        if not isinstance(level, str) or level not in _LEVELS:
            raise BadRequest('log_level takes {"level": "debug"}, "info", "warning" or "error"')
        set_level(level)
        return {"level": level}

    async def replay_events(payload: dict[str, Any]) -> dict[str, Any]:
        session, since = payload.get("session"), payload.get("since")
        if isinstance(session, int) and not isinstance(session, bool):
            session = str(session)
        asked_for = session if since is None else since
        if (session is not None and since is not None) or not isinstance(asked_for, str) or not asked_for:
            raise BadRequest('replay takes either {"session": "<id>"} or {"since": "2026-01-31T00:00:00Z"}')
        return {"events": await replay(session=session, since=_epoch(since))}

    return {"poll": poll, "info": tell_info, "log_level": log_level, "replay": replay_events}


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

    `files` are those that the sink reads itself, with the time of their last change. `elsewhere` are the `groups` of
    the other sinks on its broker and base topic.
    """

    sink: MqttConfig | WebhookConfig
    source: str
    files: tuple[tuple[Path, int], ...] = ()
    elsewhere: tuple[tuple[str, ...], ...] = ()


def outlet_config(sink: MqttConfig | WebhookConfig, source: str, brokers: Sequence[MqttConfig] = ()) -> OutletConfig:
    """A certificate that was renewed in its place is a change. `brokers` are all that are configured."""
    if isinstance(sink, WebhookConfig):
        return OutletConfig(sink, source)
    paths = [path for path in (sink.tls.ca_file, sink.tls.cert_file, sink.tls.key_file) if path is not None]
    there = [one for one in brokers if one is not sink and _place(one) == _place(sink)]
    elsewhere = tuple(sorted(one.groups for one in there))
    return OutletConfig(sink, source, tuple((path, _changed_at(path)) for path in paths), elsewhere)


def base_topics(outlets: Iterable[OutletConfig]) -> set[str]:
    return {one.sink.base_topic for one in outlets if isinstance(one.sink, MqttConfig)}


def _place(broker: MqttConfig) -> tuple[str, int, str]:
    return broker.host, broker.port, broker.base_topic


def _changed_at(path: Path) -> int:
    """In nanoseconds; 0 for a file that is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


class OutletBuilder:
    """Builds outlets over one event log.

    `installation` keeps MQTT client ids of two bridges apart; `running` are the outlets that run now. `redaction` is
    for what other sides answer.
    """

    def __init__(
        self,
        store: Storage,
        status: Status,
        devices: Devices,
        installation: str,
        running: Callable[[], Iterable[OutletConfig]],
        poll_now: Callable[[], None],
        signals: Signals,
        redaction: Redaction,
        *,
        clocks: Clocks,
        version: str,
    ) -> None:
        self._store = store
        self._log = store.event_log
        self._status = status
        self._state = StateForTopics(status, devices)
        self._installation = installation
        self._running = running
        self._poll_now = poll_now
        self._signals = signals
        self._redaction = redaction
        self._clocks = clocks
        self._version = version

    async def open(self, config: OutletConfig) -> Outlet:
        """From its first time on what the sink wants is kept for it. Raises StoreError."""
        sink = config.sink
        url = sink.url if isinstance(sink, MqttConfig) else sink.url.get_secret_value()
        filter_ = Filter(events=tuple(sink.events), groups=tuple(sink.groups), sink=sink.name)
        disabled = await self._log.open_sink(sink.name, target=fingerprint(url), filter_=filter_)
        if disabled is not None:
            log.warning("sink.is_disabled", sink=sink.name, reason=disabled, until="its url changes")
        build = partial(
            Outlet,
            event_log=self._log,
            filter_=filter_,
            disabled=disabled,
            grew=self._signals.log_grew,
            changed=self._signals.status_changed,
            clock=self._clocks.steady,
            monotonic=self._clocks.monotonic,
            jitter=random.random,
        )
        if isinstance(sink, WebhookConfig):
            return self._webhook(sink, config, build)
        return self._mqtt(sink, config, build)

    # Only the kinds that are configured are imported: MQTT is 1.5 MB.

    def _webhook(self, webhook: WebhookConfig, config: OutletConfig, build: Callable[..., Outlet]) -> Outlet:
        from bace_bridge.sinks.webhook.sink import WebhookSink  # noqa: PLC0415  # only where one is configured

        sink = WebhookSink(
            webhook,
            source=config.source,
            version=self._version,
            redaction=self._redaction,
            clock=self._clocks.wall,
        )
        return build("webhook", sink)

    def _mqtt(self, mqtt: MqttConfig, config: OutletConfig, build: Callable[..., Outlet]) -> Outlet:
        from bace_bridge.sinks.mqtt.sink import MqttSink  # noqa: PLC0415  # only where one is configured

        broker = MqttSink(
            mqtt,
            client_id=mqtt.client_id or f"bace-bridge-{self._installation}-{mqtt.name}",
            source=config.source,
            state=self._state,
            ledger=self._store.ledger(mqtt.name, f"{mqtt.host}:{mqtt.port}"),
            installation=self._installation,
            elsewhere=config.elsewhere,
            base_topics=lambda: base_topics(self._running()),
            requests=self._requests(mqtt.name),
            version=self._version,
            quote=self._redaction.quoted,
        )
        return build("mqtt", broker, broker=broker)

    def _requests(self, sink: str) -> Mapping[str, Handler]:
        return request_handlers(
            poll_now=self._poll_now,
            info=self._status.info,
            set_level=logs.set_level,
            replay=partial(self._replay, sink),
        )

    async def _replay(self, sink: str, **which: Any) -> int:
        count = await self._log.replay(sink, **which)
        self._signals.log_grew()
        return count
