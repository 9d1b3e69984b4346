"""Events a second to a broker and to a webhook, from a durable log, beside the bare libraries in the same run."""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from bace_bridge.delivery.dispatcher import Dispatcher
from bace_bridge.events.types import Announced, DeviceState, Event, Filter, KnownDevice
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.api import Sink
from bace_bridge.sinks.kind import SinkContext
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.sink import MqttSink
from bace_bridge.sinks.webhook.config import WebhookConfig
from bace_bridge.sinks.webhook.sink import WebhookSink
from bace_bridge.store.eventlog import EventLog
from bench import machinery, peers
from bench.report import Row

EVENTS = 20_000
POSTS = 10_000
LANES = (200, 5_000)


class NoState:
    """Nothing to retain: the figure is that of event messages alone."""

    async def devices(self, ids: object) -> list[DeviceState]:
        del ids
        return []

    async def known_devices(self, ids: object) -> list[KnownDevice]:
        del ids
        return []

    def is_current(self) -> bool:
        return True

    def info(self) -> bytes:
        return b"{}"

    def health(self) -> bytes:
        return b"{}"


class NoLedger:
    async def topics(self) -> set[str]:
        return set()

    async def note(self, topics: Iterable[str]) -> None: ...

    async def forget(self, topics: Iterable[str]) -> None: ...

    async def announced(self) -> dict[str, Announced]:
        return {}

    async def note_announced(self, announced: Mapping[str, Announced]) -> None: ...


class Delivered:
    """Counts deliveries, and is complete at so many."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._complete = asyncio.Event()

    def attempted(self, error: Exception | None, _then: str) -> None:
        assert error is None, error
        self._left -= 1
        if self._left == 0:
            self._complete.set()

    async def complete(self) -> None:
        async with asyncio.timeout(300):
            await self._complete.wait()


async def nothing(*_: object) -> None: ...


def dispatcher_of(sink: Sink, log: EventLog, delivered: Delivered) -> Dispatcher:
    return Dispatcher(
        sink,
        log,
        Filter(),
        clock=time.time,
        jitter=random.random,
        sleep=asyncio.sleep,
        on_disabled=nothing,
        on_attempt=delivered.attempted,
    )


async def drained(sink: Sink, log: EventLog, count: int) -> float:
    """Seconds until the sink has acknowledged the whole log and that is durable."""
    delivered = Delivered(count)
    dispatcher = dispatcher_of(sink, log, delivered)
    started = time.perf_counter()
    running = asyncio.create_task(dispatcher.run())
    await delivered.complete()
    running.cancel()
    await dispatcher.settle()
    seconds = time.perf_counter() - started
    backlog = await log.backlog(sink.name)
    assert backlog == 0, f"{backlog} of {count} deliveries are not recorded"
    return seconds


async def mqtt_events(runs: int) -> list[Row]:
    rows = [
        Row(f"events/s over MQTT QoS 1, {lanes:,} lanes", [], [], "bare paho on the loop, window 100", goal)
        for lanes, goal in zip(LANES, (">= 0.6 x", ">= 0.3 x"), strict=True)
    ]
    for _ in range(runs):
        for lanes, row in zip(LANES, rows, strict=True):
            with tempfile.TemporaryDirectory() as name, machinery.mosquitto(Path(name)) as port:
                events = machinery.session_events(EVENTS, sessions=lanes)
                payloads = [(f"bace/{event.device_id}/event", event.data) for event in events]
                row.peers.append(EVENTS / await peers.paho_on_the_loop(port, payloads))
                row.ours.append(EVENTS / await over_mqtt(Path(name), port, events))
    return rows


async def over_mqtt(folder: Path, port: int, events: list[Event]) -> float:
    async with machinery.filled_log(folder, events, sinks=["home"]) as (log, _):
        config = MqttConfig(name="home", url=f"mqtt://127.0.0.1:{port}")
        context = SinkContext(
            source="x",
            version="0",
            installation="bench",
            running=tuple,
            state=NoState(),
            ledger=lambda _: NoLedger(),
            requests={},
            datatypes=dict,
            redaction=Redaction(),
            clock=time.time,
        )
        sink = MqttSink(config, context)
        connection = asyncio.create_task(sink.run())
        await sink.ready()
        seconds = await drained(sink, log, len(events))
        await sink.close()
        connection.cancel()
    return seconds


async def webhooks(runs: int) -> list[Row]:
    many = Row("webhooks/s, signed, 500 lanes, 10 at once", [], [], "bare aiohttp client, 10 at once", ">= 0.6 x")
    one = Row("webhooks/s, signed, one lane", [], [], "bare aiohttp client, one at a time", ">= 0.5 x")
    for _ in range(runs):
        for row, sessions, at_once in ((many, 500, 10), (one, 1, 1)):
            port = machinery.free_port()
            with tempfile.TemporaryDirectory() as name, machinery.child("bench.receiver", str(port)) as receiver:
                assert receiver.stdout is not None
                await asyncio.to_thread(receiver.stdout.readline)
                events = machinery.session_events(POSTS, sessions=sessions)
                url = f"http://127.0.0.1:{port}/hook"
                bodies = [event.data for event in events]
                row.peers.append(POSTS / await peers.aiohttp_client(url, bodies, at_once=at_once))
                async with machinery.filled_log(Path(name), events, sinks=["hook"]) as (log, _):
                    sink = webhook_sink("hook", url)
                    posting = asyncio.create_task(sink.run())
                    await sink.ready()
                    row.ours.append(POSTS / await drained(sink, log, POSTS))
                    await sink.close()
                    posting.cancel()
    return [many, one]


def webhook_sink(name: str, url: str) -> WebhookSink:
    config = WebhookConfig.model_validate({"name": name, "url": url, "secret": "whsec_" + "A" * 32})
    return WebhookSink(config, source="x", version="0")
