"""The composition root: builds every part, runs them together, and ends them in order."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Literal

import structlog

from bace_bridge import logs
from bace_bridge.answers import request_handlers
from bace_bridge.app.account import cloud_http, fingerprint
from bace_bridge.app.clocks import ClockWatch, SteadyClock
from bace_bridge.app.service import Service
from bace_bridge.cloud.api import BaceCloud, csv_url
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.config.models import Config, MqttConfig, WebhookConfig
from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.delivery.sink_watch import SinkWatch
from bace_bridge.domain.events import SINK_DISABLED, bridge_event
from bace_bridge.domain.routing import Filter
from bace_bridge.domain.timestamps import iso_utc
from bace_bridge.failpoints import Failpoint
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.datapoint_fetch import DatapointFetch, FetchSettings
from bace_bridge.polling.datapoint_loop import DatapointLoop
from bace_bridge.polling.list_poll import ListPoll, PollSettings
from bace_bridge.polling.loops import SessionLoop
from bace_bridge.polling.points import PointEndpoint
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules.datapoints import Datatype
from bace_bridge.polling.rules.fetches import SLOWEST_FETCH
from bace_bridge.polling.rules.first_start import FirstStart
from bace_bridge.polling.rules.seen import Urgency
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.sinks.mqtt.sink import MqttSink
from bace_bridge.sinks.webhook.sink import WebhookSink
from bace_bridge.status import StateForTopics, Status
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import Facts
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.schedules import Schedules
from bace_bridge.store.sqlite import SqliteFile
from bace_bridge.store.standing import Standing
from bace_bridge.systemd import long_start
from bace_bridge.web.health import HealthServer

log = structlog.get_logger()

AnySink = MqttSink | WebhookSink
Wish = MqttConfig | WebhookConfig


class Bridge:
    """One configuration, running. `run` returns after `stop`; raises StoreLocked, StoreUnusable or ConfigError."""

    def __init__(
        self,
        config: Config,
        *,
        version: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        config_problem: Callable[[], str | None] = lambda: None,
        failpoint: Failpoint | None = None,
    ) -> None:
        self._config = config
        self._version = version
        self._wall = clock
        self._monotonic = monotonic
        self._clock = SteadyClock(clock, monotonic)
        self._config_problem = config_problem
        self._failpoint = failpoint

    async def run(self, stop: asyncio.Event, *, notify: Callable[[str], None], watchdog: float | None) -> None:
        async with AsyncExitStack() as stack:
            async with long_start(notify):
                file = await stack.enter_async_context(SqliteFile(self._config.store.path))
                login = cloud_http(
                    self._config.cloud, Facts(file), version=self._version, clock=self._clock, monotonic=self._monotonic
                )
                http = await stack.enter_async_context(login)
                service = await self._assemble(file, http)
            if self._config.http.enabled:
                status = service.status
                health = HealthServer(
                    self._config.http, alive=status.alive, ready=status.ready, degraded=status.degraded
                )
                await stack.enter_async_context(health)
            await service.run(stop, notify=notify, watchdog=watchdog)

    async def _assemble(self, file: SqliteFile, http: CloudHttp) -> Service:
        config, clock = self._config, self._clock
        dispatchers: dict[str, Dispatcher] = {}

        def log_grew() -> None:
            for dispatcher in dispatchers.values():
                dispatcher.log_grew()

        def devices_changed(devices: Collection[str]) -> None:
            for broker in brokers:
                broker.refresh_devices(devices)

        brokers: list[MqttSink] = []
        store = config.store
        cap = Cap(
            file,
            store.max_size,
            crowded=lambda: service.store_crowded(),  # noqa: PLW0108  # the service is made below
        )
        journal = Journal(file, grew=log_grew, changed=devices_changed, ensure_room=cap.ensure_room)
        cloud, deciding = BaceCloud(http), asyncio.Lock()
        event_log = EventLog(file)
        if self._failpoint is not None:
            cloud, journal = self._failpoint.around_cloud(cloud), self._failpoint.around_journal(journal)
            event_log = self._failpoint.around_log(event_log)
        poll = self._list_poll(cloud, journal, deciding)
        endpoint = PointEndpoint(cloud, clock=clock)
        sessions = SessionLoop(
            poll,
            journal,
            interval=config.watch.session_interval,
            clock=clock,
            monotonic=self._monotonic,
            jitter=random.random,
            after_poll=lambda: service.after_poll(),  # noqa: PLW0108  # the service is made below
        )
        datapoints = self._datapoint_loop(cloud, endpoint, journal, deciding)
        upkeep = Upkeep(file, event_log, cap, retention=store.retention, session_retention=store.session_retention)
        status = Status(
            sessions,
            datapoints,
            http,
            upkeep,
            brokers=brokers,
            version=self._version,
            strategy=lambda: poll.strategy,
            unread=lambda: poll.unreadable,
            selection_problem=lambda: poll.selection_problem,
            config_problem=self._config_problem,
            interval=config.watch.session_interval,
            clock=clock,
            monotonic=self._monotonic,
        )
        clock_watch = await self._clock_watch(file, deciding)
        clock_watch.followers += [sessions.clock_stepped, http.clock_stepped]
        devices = Standing(
            file, csv_url=self._csv_url, fetch_interval=config.watch.datapoint_interval, clock=self._clock
        )
        service = Service(
            sessions,
            datapoints,
            status,
            event_log,
            upkeep,
            clock=clock,
            watch_clock=clock_watch.look,
            stale_devices=devices.stale,
            oldest_view=devices.oldest_view,
        )
        standing = StateForTopics(status, devices.devices)
        brokers += await self._brokers(service, standing, Facts(file), partial(self._replay, event_log, dispatchers))
        sinks: list[tuple[Wish, AnySink]] = [
            *zip(config.mqtt, brokers, strict=True),
            *zip(config.webhooks, self._webhooks(), strict=True),
        ]
        await event_log.retire_others([wish.name for wish, _ in sinks])
        for wish, one in sinks:
            await self._add_sink(service, dispatchers, wish, one, event_log, log_grew)
        clock_watch.followers += [one.clock_stepped for one in dispatchers.values()]
        return service

    def _datapoint_loop(
        self, cloud: BaceCloud, endpoint: PointEndpoint, journal: Journal, deciding: asyncio.Lock
    ) -> DatapointLoop:
        watch, clock = self._config.watch, self._clock
        settings = FetchSettings(
            interval=watch.datapoint_interval,
            resolution=watch.resolution,
            datatypes={number: Datatype(one.name, one.unit) for number, one in self._config.datatypes.items()},
            csv_url=self._csv_url,
        )
        batches = BatchFetch(cloud, endpoint, journal, settings, deciding=deciding, clock=clock)

        def of(known: KnownSession, urgency: Urgency = Urgency.LIVE) -> DatapointFetch:
            return DatapointFetch(
                known, cloud, endpoint, journal, settings, urgency=urgency, deciding=deciding, clock=clock
            )

        return DatapointLoop(
            journal,
            lambda known, urgency: batches.alone(of(known, urgency)),
            lambda known: of(known).emit_end(),
            endpoint,
            batches,
            interval=watch.datapoint_interval,
            clock=clock,
            monotonic=self._monotonic,
            jitter=random.random,
        )

    async def _brokers(
        self, service: Service, standing: StateForTopics, facts: Facts, replay: Callable[..., Awaitable[int]]
    ) -> list[MqttSink]:
        installation = await facts.installation()
        return [
            MqttSink(
                mqtt,
                client_id=mqtt.client_id or f"bace-bridge-{installation}-{mqtt.name}",
                source=self._config.cloud.url,
                state=standing,
                requests=request_handlers(
                    poll_now=service.poll_now,
                    info=service.status.info,
                    set_level=logs.set_level,
                    replay=partial(replay, mqtt.name),
                ),
                version=self._version,
            )
            for mqtt in self._config.mqtt
        ]

    async def _clock_watch(self, file: SqliteFile, deciding: asyncio.Lock) -> ClockWatch:
        schedules = Schedules(file)
        furthest = max(SLOWEST_FETCH, self._config.watch.datapoint_interval)
        if brought_back := await schedules.bound(now=self._clock(), furthest=furthest):
            log.warning("clock.was_behind", sessions=brought_back, then="what lay too far ahead is due now")
        return ClockWatch(self._clock, deciding=deciding, move_store=schedules.move)

    @staticmethod
    async def _replay(event_log: EventLog, dispatchers: Mapping[str, Dispatcher], sink: str, **which: Any) -> int:
        count = await event_log.replay(sink, **which)
        dispatchers[sink].log_grew()
        return count

    def _webhooks(self) -> Sequence[WebhookSink]:
        source, version = self._config.cloud.url, self._version
        return [WebhookSink(one, source=source, version=version, clock=self._wall) for one in self._config.webhooks]

    async def _add_sink(
        self,
        service: Service,
        dispatchers: dict[str, Dispatcher],
        wish: Wish,
        sink: AnySink,
        event_log: EventLog,
        log_grew: Callable[[], None],
    ) -> None:
        """Gives the sink its place in the log before anything is watched, so that it misses nothing."""
        address = wish.url if isinstance(wish, MqttConfig) else wish.url.get_secret_value()
        filter_ = Filter(events=tuple(wish.events), groups=tuple(wish.groups), sink=wish.name)
        disabled = await event_log.open_sink(wish.name, target=fingerprint(address), filter_=filter_)
        kind: Literal["mqtt", "webhook"] = "mqtt" if isinstance(wish, MqttConfig) else "webhook"
        watch = service.status.sinks[wish.name] = SinkWatch(kind, wish.name, clock=self._clock)
        if disabled is not None:
            service.status.disabled[wish.name] = disabled
            log.warning("sink.is_disabled", sink=wish.name, reason=disabled, until="its url changes")
            return

        async def on_disabled(name: str, reason: str) -> None:
            now = self._clock()
            service.status.disabled[name] = reason
            data = {"sink": name, "reason": reason, "observed_at": iso_utc(now)}
            told = bridge_event(SINK_DISABLED, at=now, facts=(name, now), data=data)
            await event_log.disable(name, reason, told)
            log.error(SINK_DISABLED, sink=name, reason=reason)
            log_grew()

        dispatcher = Dispatcher(
            sink if self._failpoint is None else self._failpoint.around_sink(sink),
            event_log,
            filter_,
            clock=self._clock,
            jitter=random.random,
            sleep=asyncio.sleep,
            on_disabled=on_disabled,
            on_told=log_grew,
            on_attempt=watch.attempted,
            monotonic=self._monotonic,
        )
        dispatchers[wish.name] = dispatcher
        service.add(sink, dispatcher)

    def _list_poll(self, cloud: BaceCloud, journal: Journal, deciding: asyncio.Lock) -> ListPoll:
        watch, clock = self._config.watch, self._clock
        return ListPoll(
            cloud,
            journal,
            SessionRecorder(cloud, journal, groups=self._config.cloud.groups, deciding=deciding, clock=clock),
            PollSettings(
                first_start=FirstStart(watch.start_from.kind, watch.start_from.seconds),
                session_interval=watch.session_interval,
                recheck_interval=watch.recheck_interval,
                backfill_interval=watch.backfill_interval,
                requests_per_minute=self._config.cloud.requests_per_minute,
            ),
            clock=clock,
        )

    def _csv_url(self, session_id: str) -> str:
        return csv_url(self._config.cloud.url, session_id)
