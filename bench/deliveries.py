"""Events a second to a broker and to a webhook, from a durable log, beside the bare libraries in the same run."""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bace_bridge.config.models import MqttConfig, WebhookConfig
from bace_bridge.delivery.dispatcher import Dispatcher, Sink
from bace_bridge.domain.routing import Filter
from bace_bridge.domain.state import DeviceState
from bace_bridge.sinks.mqtt.sink import MqttSink
from bace_bridge.sinks.webhook.sink import WebhookSink
from bace_bridge.store.eventlog import EventLog
from bench import machinery, peers
from bench.report import Row

EVENTS = 20_000
POSTS = 10_000


class NoState:
    """Nothing to retain: the figure is that of event messages alone."""

    async def devices(self, ids: object) -> list[DeviceState]:
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


async def drained(sink: Sink, log: EventLog, count: int) -> float:
    """Seconds until the sink has acknowledged the whole log and that is durable."""

    async def nothing(*_: object) -> None: ...

    dispatcher = Dispatcher(
        sink,
        log,
        Filter(),
        clock=time.time,
        jitter=random.random,
        sleep=asyncio.sleep,
        on_disabled=nothing,
    )
    started = time.perf_counter()
    running = asyncio.create_task(dispatcher.run())
    while not dispatcher.idle:
        await asyncio.sleep(0.005)
    running.cancel()
    await dispatcher.settle()
    backlog = (await log.backlogs())[sink.name]
    assert backlog == 0, f"{backlog} of {count} events are not acknowledged"
    return time.perf_counter() - started


async def mqtt_events(runs: int) -> list[Row]:
    ours, bare = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as name, machinery.mosquitto(Path(name)) as port:
            events = machinery.session_events(EVENTS, sessions=200)
            payloads = [(f"bace/{event.device_id}/event", event.data) for event in events]
            bare.append(EVENTS / await peers.paho_on_the_loop(port, payloads))
            async with machinery.filled_log(Path(name), events, sink="home") as (log, _):
                config = MqttConfig(name="home", url=f"mqtt://127.0.0.1:{port}")
                sink = MqttSink(
                    config,
                    client_id="bench",
                    source="x",
                    state=NoState(),
                    ledger=NoLedger(),
                    installation="bench",
                    requests={},
                    version="0",
                )
                connection = asyncio.create_task(sink.run())
                await sink.ready()
                ours.append(EVENTS / await drained(sink, log, EVENTS))
                await sink.close()
                connection.cancel()
    return [
        Row(
            "session events/s, durable, MQTT QoS 1",
            ours,
            bare,
            "bare paho on the loop, window 100",
            ">= 0.6 x",
        )
    ]


async def webhooks(runs: int) -> list[Row]:
    ours, bare = [], []
    for _ in range(runs):
        port = machinery.free_port()
        with tempfile.TemporaryDirectory() as name, machinery.child("bench.receiver", str(port)) as receiver:
            assert receiver.stdout is not None
            await asyncio.to_thread(receiver.stdout.readline)
            events = machinery.session_events(POSTS, sessions=500)
            url = f"http://127.0.0.1:{port}/hook"
            bare.append(POSTS / await peers.aiohttp_client(url, [event.data for event in events]))
            async with machinery.filled_log(Path(name), events, sink="hook") as (log, _):
                config = msgspec.convert({"name": "hook", "url": url}, dict)
                sink = WebhookSink(
                    WebhookConfig(**config, secret=("whsec_" + "A" * 32,)),  # type: ignore[arg-type]  # pydantic reads it
                    source="x",
                    version="0",
                )
                posting = asyncio.create_task(sink.run())
                await sink.ready()
                ours.append(POSTS / await drained(sink, log, POSTS))
                await sink.close()
                posting.cancel()
    return [
        Row(
            "webhooks/s, durable, signed, 10 at once",
            ours,
            bare,
            "bare aiohttp client, 10 at once",
            ">= 0.6 x",
        )
    ]
