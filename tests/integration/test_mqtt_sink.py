"""The MQTT sink against real brokers, and against a scripted one for what real ones do rarely."""

import asyncio
import gc
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs
from structlog.typing import EventDict

from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.errors import (
    BridgeError,
    DeliveryFailed,
    DeliveryRejected,
    SinkError,
    SinkUnavailable,
    StoreError,
)
from bace_bridge.events.types import Announced, Attempt, DeviceState, Event, KnownDevice, LatestPoint, LoggedEvent
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.api import Answer, Ledger, StateSource
from bace_bridge.sinks.kind import SinkContext
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.sink import MqttSink
from tests.integration.brokers import (
    PATIENCE,
    Amqtt,
    Broker,
    Certificates,
    Listener,
    Mosquitto,
    broker_kind,
    eventually,
    listening,
)
from tests.integration.scripted_broker import Script, four_bytes, scripted, two_bytes

NewMosquitto = Callable[..., Mosquitto]
V5 = MQTTProtocolVersion.MQTTv5
V311 = MQTTProtocolVersion.MQTTv311


class MemoryLedger:
    """A `Ledger` of a store that is never closed."""

    def __init__(self, *topics: str) -> None:
        self.held = set(topics)
        self.of_discovery: dict[str, Announced] = {}
        self.writes = 0
        self.broken = False

    async def topics(self) -> set[str]:
        return set(self.held)

    async def note(self, topics: Iterable[str]) -> None:
        self._write()
        self.held.update(topics)

    async def forget(self, topics: Iterable[str]) -> None:
        self._write()
        self.held.difference_update(topics)
        kept = {topic: one for topic, one in self.of_discovery.items() if topic in self.held or one.is_cleared}
        self.of_discovery = kept

    async def announced(self) -> dict[str, Announced]:
        return dict(self.of_discovery)

    async def note_announced(self, announced: Mapping[str, Announced]) -> None:
        self._write()
        self.held.update(topic for topic, one in announced.items() if not one.is_cleared)
        self.held.difference_update(topic for topic, one in announced.items() if one.is_cleared)
        self.of_discovery.update(announced)

    def _write(self) -> None:
        if self.broken:
            raise StoreError("disk on holiday")
        self.writes += 1


class Home:
    """A `StateSource` that a test can furnish."""

    def __init__(self, *devices: DeviceState) -> None:
        self.known = {device.device_id: device for device in devices}
        self.health_payload = b'{"healthy":true}'
        self.reads: list[Collection[str] | None] = []
        self.broken = False
        self.current = True
        self.info_payload = b'{"version":"1","installation":"here"}'

    async def devices(self, ids: Collection[str] | None) -> list[DeviceState]:
        self.reads.append(ids)
        if self.broken:
            raise StoreError("disk on holiday")
        return [state for device, state in self.known.items() if ids is None or device in ids]

    async def known_devices(self, ids: Collection[str] | None) -> list[KnownDevice]:
        found = await self.devices(ids)
        return [KnownDevice(one.device_id, None, one.active_session_id, one.last_session_id, 60.0) for one in found]

    def is_current(self) -> bool:
        return self.current

    def info(self) -> bytes:
        return self.info_payload

    def health(self) -> bytes:
        return self.health_payload


LISTED = (
    b'[{"id":"g1","label":null,"active_session_id":null,"last_seen_at":"1970-01-01T00:01:00Z","last_session_id":null}]'
)


def bed(session: bytes | None = b'{"id":"s1"}', *, available: bool = True, avg: int = 1) -> DeviceState:
    point = LatestPoint("src", 6000, b'{"avg":%d}' % avg)
    return DeviceState("g1", available=available, session=session, latest=(point,))


def event(number: int, kind: str = "session.updated", device: str | None = "g1") -> Attempt:
    session = "s1" if device is not None else None
    data = json.dumps({"session": {"id": session}, "device": {"id": device}, "n": number}).encode()
    return Attempt(LoggedEvent(number, Event(f"evt_{number}", kind, session, device, 1.0, 2.0, data)), 1)


async def nap(_seconds: float) -> None:
    """Stands in for waiting: back-offs take 10 ms."""
    await asyncio.sleep(0.01)


def context_of(
    state: StateSource, ledger: Ledger, requests: Mapping[str, Answer] = MappingProxyType({}), **others: Any
) -> SinkContext:
    usual: dict[str, Any] = {
        "source": "https://cloud.example",
        "version": "1.2.3",
        "installation": "here",
        "running": tuple,
        "datatypes": dict,
        "redaction": Redaction(),
        "clock": time.time,
    }
    return SinkContext(state=state, ledger=lambda _: ledger, requests=requests, **(usual | others))


def new_sink(
    port: int,
    state: Home | None = None,
    requests: Mapping[str, Answer] | None = None,
    client_id: str = "bace-bridge-1",
    ledger: MemoryLedger | None = None,
    installation: str = "here",
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = nap,
    datatypes: Callable[[], Mapping[int, DatatypeConfig]] = dict,
    sinks: Callable[[], Collection[str]] = tuple,
    source: str = "https://cloud.example",
    **settings: Any,
) -> MqttSink:
    # What Home Assistant gets is in test_mqtt_discovery.py; here it would be in the way of what is counted.
    settings = {"name": "home", "url": f"mqtt://127.0.0.1:{port}", "home_assistant": {"enabled": False}} | settings
    context = context_of(
        state or Home(),
        ledger or MemoryLedger(),
        requests or {},
        source=source,
        installation=installation,
        datatypes=datatypes,
        running=lambda: [MqttConfig(name=one, url="mqtt://127.0.0.1") for one in sinks()],
    )
    config = MqttConfig.model_validate({"client_id": client_id, **settings})
    return MqttSink(config, context, clock=clock, sleep=sleep, jitter=lambda: 0.0)


@asynccontextmanager
async def running(sink: MqttSink, *, ready: bool = True) -> AsyncIterator[MqttSink]:
    task = asyncio.create_task(sink.run())
    try:
        if ready:
            async with asyncio.timeout(60):
                await sink.ready()
        yield sink
    finally:
        await sink.close()
        await task


@asynccontextmanager
async def connected(port: int, *arguments: Any, **settings: Any) -> AsyncIterator[MqttSink]:
    async with running(new_sink(port, *arguments, **settings)) as sink:
        yield sink


async def deliver(sink: MqttSink, attempt: Attempt) -> SinkError | None:
    finished: asyncio.Future[SinkError | None] = asyncio.get_running_loop().create_future()
    sink.send(attempt, finished.set_result)
    async with asyncio.timeout(60):
        return await finished


async def deliver_all(sink: MqttSink, attempts: list[Attempt]) -> int:
    """As the dispatcher does it: a window at a time, in order, again from the first that came back unsent.

    Returns how many came back.
    """
    waiting, back, in_flight = list(reversed(attempts)), 0, 0
    news = asyncio.Event()
    returned: list[Attempt] = []

    def done(attempt: Attempt, error: SinkError | None) -> None:
        nonlocal back, in_flight
        in_flight -= 1
        if error is not None:
            assert isinstance(error, SinkUnavailable), error
            back += 1
            returned.append(attempt)
        news.set()

    while waiting or in_flight:
        if returned and not in_flight:
            waiting += sorted(returned, key=lambda one: -one.logged.seq)
            returned.clear()
            await sink.ready()
        while waiting and in_flight < sink.window and not returned:
            attempt = waiting.pop()
            in_flight += 1
            sink.send(attempt, lambda error, attempt=attempt: done(attempt, error))  # type: ignore[misc]
        news.clear()
        if in_flight:
            await news.wait()
        if returned and not in_flight and not waiting:
            waiting, returned = sorted(returned, key=lambda one: -one.logged.seq), []
            await sink.ready()
    return back


def numbers(listener: Listener, topic: str = "bace/g1/event") -> list[int]:
    return [json.loads(payload)["n"] for payload in listener.payloads(topic)]


def named(logs: list[EventDict], name: str) -> list[EventDict]:
    return [log for log in logs if log["event"] == name]


@contextmanager
def heard_on(port: int, *, speaks: str = "5") -> Iterator[Listener]:
    with listening(port, protocol=V5 if speaks == "5" else V311) as listener:
        yield listener


# --- topics, flags and properties


async def test_every_topic_of_the_contract_is_published_and_only_state_is_retained(broker: Broker) -> None:
    with heard_on(broker.port, speaks=broker.speaks) as before:
        async with connected(broker.port, Home(bed()), protocol=broker.speaks) as sink:
            assert sink.problem is None
            assert sink.problem is None
            assert await deliver(sink, event(1, "session.started")) is None
            points = Event("evt_2", "session.datapoints", "s1", "g1", 1.0, 2.0, b'{"datapoints":[{"n":2}]}')
            assert await deliver(sink, Attempt(LoggedEvent(2, points), 1)) is None
            assert await deliver(sink, event(3, "cloud.unreachable", device=None)) is None
            await eventually(lambda: bool(before.on("bace/bridge/event") and before.on("bace/bridge/info")))
            with heard_on(broker.port, speaks=broker.speaks) as after:
                await eventually(lambda: len(after.heard) == 7)

    retained = {
        "bace/bridge/state": b"online",
        "bace/bridge/info": b'{"version":"1","installation":"here"}',
        "bace/bridge/health": b'{"healthy":true}',
        "bace/bridge/devices": LISTED,
        "bace/g1/availability": b"online",
        "bace/g1/session": b'{"id":"s1"}',
        "bace/g1/latest/src/6000": b'{"avg":1}',
    }
    assert {heard.topic: heard.payload for heard in after.heard if heard.retained} == retained
    assert json.loads(before.payloads("bace/g1/event")[0]) == {
        "event_type": "session.started",
        "id": "evt_1",
        "time": "1970-01-01T00:00:01Z",
        "session": {"id": "s1"},
        "device": {"id": "g1"},
        "n": 1,
    }
    assert json.loads(before.payloads("bace/g1/datapoints")[0])["datapoints"] == [{"n": 2}]
    assert json.loads(before.payloads("bace/bridge/event")[0])["event_type"] == "cloud.unreachable"
    assert {heard.qos for heard in before.heard} == {1}


async def test_events_carry_cloudevents_attributes(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with heard_on(port) as listener:
        async with connected(port) as sink:
            assert protocol_of(sink) == "5"
            await deliver(sink, event(7))
            await eventually(lambda: bool(listener.on("bace/g1/event")))
    properties = listener.on("bace/g1/event")[0].properties

    assert properties.ContentType == "application/json"
    assert dict(properties.UserProperty) == {
        "specversion": "1.0",
        "id": "evt_7",
        "source": "https://cloud.example",
        "type": "bace.session.updated",
        "subject": "s1",
        "time": "1970-01-01T00:00:01Z",
        "sequence": "00000000000000000007",
    }


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_each_quality_of_service_is_acknowledged(new_mosquitto: NewMosquitto, qos: int, protocol: str) -> None:
    port = new_mosquitto().port
    async with connected(port, qos=qos, protocol=protocol) as sink:
        assert protocol_of(sink) == protocol
        assert await deliver_all(sink, [event(number) for number in range(300)]) == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_events_have_the_configured_quality_and_requests_are_not_lost_at_any(qos: int, protocol: str) -> None:
    async with scripted(Script()) as broker, connected(broker.port, Home(bed()), qos=qos, protocol=protocol) as sink:
        assert await deliver(sink, event(1)) is None
        await eventually(lambda: any(one.topic == "bace/g1/event" for one in broker.published))

    assert [one.qos for one in broker.published if one.topic == "bace/g1/event"] == [qos]
    assert broker.subscribed[0] == ["bace/bridge/request/+"]
    assert broker.subscribed_qos[0] == 1


# --- order and loss


@pytest.mark.parametrize("in_flight", ["20", "1000"])
async def test_order_holds_over_many_events(new_mosquitto: NewMosquitto, in_flight: str) -> None:
    mosquitto = new_mosquitto(f"max_inflight_messages {in_flight}", "max_queued_messages 0")
    with heard_on(mosquitto.port) as listener:
        async with connected(mosquitto.port, Home(bed()), max_in_flight=200) as sink:
            assert await deliver_all(sink, [event(number) for number in range(2000)]) == 0
            await eventually(lambda: len(listener.on("bace/g1/event")) == 2000)

    assert numbers(listener) == list(range(2000))


async def test_a_broker_that_dies_amid_events_gives_them_back(new_mosquitto: NewMosquitto) -> None:
    mosquitto = new_mosquitto("max_queued_messages 0")
    with capture_logs() as logs, heard_on(mosquitto.port) as listener:
        async with connected(mosquitto.port) as sink:
            assert await deliver_all(sink, [event(number) for number in range(500)]) == 0
            await eventually(lambda: len(listener.heard) >= 500)
            mosquitto.pause()  # however fast the machine: what follows is in flight when the broker dies
            delivering = asyncio.create_task(deliver_all(sink, [event(number) for number in range(500, 3000)]))
            await asyncio.sleep(0)
            mosquitto.kill()
            await eventually(lambda: sink.problem is not None)
            assert sink.problem is not None
            assert f"127.0.0.1:{mosquitto.port}" in sink.problem
            mosquitto.start()
            assert await asyncio.wait_for(delivering, 60) > 0

    assert len(named(logs, "mqtt.unreachable")) == 1
    assert len(named(logs, "mqtt.connected")) == 2


async def test_nothing_is_lost_or_out_of_order_when_the_connection_breaks_again_and_again() -> None:
    async with scripted(Script()) as broker, connected(broker.port) as sink:
        delivering = asyncio.create_task(deliver_all(sink, [event(number) for number in range(3000)]))
        for heard in (500, 1000, 1700):
            await eventually(lambda heard=heard: len(broker.published) > heard)  # type: ignore[misc]
            broker.connections[-1].transport.abort()
            await eventually(lambda: sink.problem is not None)
        assert await asyncio.wait_for(delivering, 60) > 0

    told = [json.loads(one.payload)["n"] for one in broker.published if one.topic == "bace/g1/event"]
    assert list(dict.fromkeys(told)) == list(range(3000))
    assert len(told) <= 3000 + 3 * 200, "only what was in flight is told twice"


async def test_what_the_broker_acknowledged_it_has(new_mosquitto: NewMosquitto, tmp_path: Path) -> None:
    """With a persistent subscriber and a broker that is stopped in good order, all of it arrives."""
    mosquitto = new_mosquitto("persistence true", f"persistence_location {tmp_path}/", "max_queued_messages 0")
    with archiving(mosquitto.port):
        pass
    async with connected(mosquitto.port) as sink:
        delivering = asyncio.create_task(deliver_all(sink, [event(number) for number in range(5000)]))
        await asyncio.sleep(0)
        await asyncio.to_thread(mosquitto.stop)
        await asyncio.to_thread(mosquitto.start)
        assert await asyncio.wait_for(delivering, 60) > 0
    with archiving(mosquitto.port) as heard:
        await eventually(lambda: len(set(heard)) == 5000)

    assert list(dict.fromkeys(heard)) == list(range(5000))


@contextmanager
def archiving(port: int) -> Iterator[list[int]]:
    """A subscriber for whom the broker keeps what it misses."""
    heard: list[int] = []
    subscribed = threading.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, "archive", clean_session=False, protocol=V311)
    client.on_message = lambda _client, _userdata, message: heard.append(json.loads(message.payload)["n"])
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_connect = lambda *_: subscribe(client)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert subscribed.wait(PATIENCE)
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def subscribe(client: paho.Client) -> None:
    client.subscribe("bace/+/event", 1)


async def test_events_sent_without_a_connection_come_back_at_once(broker: Broker) -> None:
    sink = new_sink(broker.port, protocol=broker.speaks)

    assert isinstance(await deliver(sink, event(1)), SinkUnavailable)


async def test_a_silent_broker_is_noticed_by_keep_alive(new_mosquitto: NewMosquitto) -> None:
    mosquitto = new_mosquitto()
    async with connected(mosquitto.port, keepalive="1s") as sink:
        mosquitto.pause()
        assert isinstance(await deliver(sink, event(1)), SinkUnavailable)
        mosquitto.resume()
        async with asyncio.timeout(60):
            await sink.ready()


# --- retained state


async def test_after_a_change_only_what_changed_is_published(broker: Broker) -> None:
    state = Home(bed())
    with heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, state, protocol=broker.speaks) as sink:
            await eventually(lambda: len(listener.heard) == 7)
            state.known["g1"] = bed(avg=2)
            state.health_payload = b'{"healthy":false}'
            await deliver(sink, event(1))
            await eventually(lambda: len(listener.heard) == 10)
            changed = {heard.topic for heard in listener.heard[7:]}
            assert changed == {"bace/g1/event", "bace/g1/latest/src/6000", "bace/bridge/health"}

            state.known["g1"] = bed(session=None, avg=2)
            sink.refresh(["g1"])
            await eventually(lambda: len(listener.heard) == 11)
            assert listener.newest("bace/g1/session") == b""

            state.health_payload = b'{"healthy":true}'
            sink.refresh()
            await eventually(lambda: len(listener.payloads("bace/bridge/health")) == 3)

            del state.known["g1"]
            sink.refresh(None)
            await eventually(lambda: listener.newest("bace/g1/latest/src/6000") == b"")


async def test_all_state_is_published_again_on_every_connect(new_mosquitto: NewMosquitto) -> None:
    mosquitto = new_mosquitto()
    async with connected(mosquitto.port, Home(bed())) as sink:
        mosquitto.kill()
        await eventually(lambda: sink.problem is not None)
        mosquitto.start()  # without persistence it has forgotten what it had retained
        async with asyncio.timeout(60):
            await sink.ready()
        with heard_on(mosquitto.port) as listener:
            await eventually(lambda: len(listener.heard) == 7)

    assert {heard.topic for heard in listener.heard if not heard.retained} <= {
        "bace/bridge/info",
        "bace/bridge/devices",
    }


async def test_much_state_keeps_to_the_window(new_mosquitto: NewMosquitto) -> None:
    points = tuple(LatestPoint("src", number, b"{}") for number in range(2000))
    state = Home(DeviceState("g1", available=True, session=b"{}", latest=points))
    mosquitto = new_mosquitto("max_queued_messages 0")
    with heard_on(mosquitto.port) as listener:
        async with connected(mosquitto.port, state, max_in_flight=10) as sink:
            assert await deliver(sink, event(1)) is None
            await eventually(lambda: bool(listener.on("bace/g1/event")))

    topics = [heard.topic for heard in listener.heard]
    assert sum("/latest/" in topic for topic in topics[: topics.index("bace/g1/event")]) == 2000


async def test_many_events_cost_few_reads_of_the_state(broker: Broker) -> None:
    """However fast they are, between two reads lies a pause, which lasts here until all are delivered."""
    state, is_over = Home(bed()), asyncio.Event()

    async def pause(seconds: float) -> None:
        await (is_over.wait() if seconds == 0.25 else nap(seconds))

    async with connected(broker.port, state, protocol=broker.speaks, sleep=pause) as sink:
        await deliver_all(sink, [event(number) for number in range(1000)])
        assert state.reads == [None, {"g1"}], "all of them, and for the list of devices"
        is_over.set()
        await eventually(lambda: state.reads[2:] == [{"g1"}])


async def test_only_the_devices_that_were_asked_for_have_state(broker: Broker) -> None:
    state = Home(bed(), DeviceState("g2", available=True, session=b"{}"))
    with heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, state, groups=["g2"], protocol=broker.speaks):
            await eventually(lambda: bool(listener.on("bace/g2/session")))

    assert not listener.on("bace/g1/session")


async def test_a_change_of_another_device_than_those_asked_for_is_not_published(broker: Broker) -> None:
    ours, foreign = DeviceState("g2", available=True, session=b"{}"), bed()
    state = Home(foreign, ours)
    with heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, state, groups=["g2"], protocol=broker.speaks) as sink:
            state.known["g2"] = DeviceState("g2", available=True, session=b'{"id":"s2"}')
            sink.refresh(["g1", "g2"])
            await eventually(lambda: len(listener.on("bace/g2/session")) == 2)

    assert not [heard for heard in listener.heard if heard.topic.startswith("bace/g1/")]


async def test_state_that_cannot_be_read_is_read_again(broker: Broker) -> None:
    state = Home(bed())
    state.broken = True
    with capture_logs() as logs, heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, state, protocol=broker.speaks):
            state.broken = False
            await eventually(lambda: bool(listener.on("bace/g1/session")))

    assert named(logs, "mqtt.state_unreadable")


# --- comings and goings


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_graceful_stop_tells_that_everything_is_offline(broker: Broker, cancelled: bool) -> None:
    with heard_on(broker.port, speaks=broker.speaks) as listener:
        sink = new_sink(broker.port, Home(bed()), protocol=broker.speaks)
        task = asyncio.create_task(sink.run())
        await sink.ready()
        waiting: list[SinkError | None] = []
        for number in range(150):
            sink.send(event(number), waiting.append)
        if cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await sink.close()
            await task
        await eventually(lambda: listener.newest("bace/g1/availability") == b"offline")

    assert waiting == [None] * 150, "what was in flight was acknowledged first"
    assert listener.payloads("bace/g1/availability") == [b"online", b"offline"]
    assert listener.payloads("bace/bridge/state") == [b"online", b"offline"], "the last will is not used"
    assert isinstance(await deliver(sink, event(1)), SinkUnavailable)


async def test_a_stop_is_not_held_up_by_a_broker_that_acknowledges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's clock is put forward; service managers kill after some 10 s what has not ended."""
    loop, script, ahead = asyncio.get_running_loop(), Script(), 0.0
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + ahead)
    async with scripted(script) as broker, connected(broker.port, Home(bed())) as sink:
        script.holds_acknowledgements = True
        delivering = asyncio.create_task(deliver(sink, event(1)))
        await eventually(lambda: broker.unacknowledged == 1)
        closing = asyncio.create_task(sink.close())
        while not closing.done() and ahead < 10:
            ahead += 0.1
            await asyncio.sleep(0)
        assert closing.done()
        assert isinstance(await delivering, SinkUnavailable)


async def test_the_last_will_tells_when_the_bridge_vanishes(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with heard_on(port) as listener:
        async with connected(port) as sink:
            connection = sink._connection
            assert connection is not None
            cut(connection._driver._fd)
            await eventually(lambda: b"offline" in listener.payloads("bace/bridge/state"))
            async with asyncio.timeout(60):
                await sink.ready()
            await eventually(lambda: listener.newest("bace/bridge/state") == b"online")


def cut(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.shutdown(socket.SHUT_RDWR)


async def test_a_broker_that_is_away_is_told_once_and_found_again(new_mosquitto: NewMosquitto) -> None:
    mosquitto = new_mosquitto()
    mosquitto.stop()
    with capture_logs() as logs:
        async with running(new_sink(mosquitto.port), ready=False) as sink:
            await eventually(lambda: sink.problem is not None and "refused" in sink.problem)
            await asyncio.sleep(0.1)
            mosquitto.start()
            async with asyncio.timeout(60):
                await sink.ready()

    assert [log["event"] for log in logs] == ["mqtt.unreachable", "mqtt.connected"]
    assert all(log["sink"] == "home" for log in logs)


async def test_another_client_with_the_same_id_is_told_clearly() -> None:
    with capture_logs() as logs:
        async with scripted(Script()) as broker, connected(broker.port) as sink:
            broker.send(b"\xe0\x02\x8e\x00")  # DISCONNECT: session taken over
            await eventually(lambda: sink.problem is not None)
            assert sink.problem is not None
            assert "another client uses the same client id" in sink.problem

    assert "client_id" in named(logs, "mqtt.taken_over")[0]["hint"]


async def test_two_bridges_with_one_id_are_noticed_where_the_broker_does_not_say_it(
    new_mosquitto: NewMosquitto,
) -> None:
    port = new_mosquitto().port
    with capture_logs() as logs:
        async with running(new_sink(port)), running(new_sink(port), ready=False):
            await eventually(lambda: bool(named(logs, "mqtt.connection_keeps_breaking")))


async def test_a_wrong_password_is_told_once_and_without_the_password(
    new_mosquitto: NewMosquitto, tmp_path: Path
) -> None:
    passwords = password_file(tmp_path, bridge="right")
    mosquitto = new_mosquitto("allow_anonymous false", f"password_file {passwords}")
    with capture_logs() as logs:
        sink = new_sink(mosquitto.port, username="bridge", password="wrong-secret")
        async with running(sink, ready=False):
            await eventually(lambda: mosquitto.log().count("not authorised") >= 3)
            assert sink.problem is not None
            assert "refuses the login" in sink.problem
        async with connected(mosquitto.port, username="bridge", password="right") as welcome:
            assert await deliver(welcome, event(1)) is None

    assert len(named(logs, "mqtt.login_refused")) == 1
    assert "wrong-secret" not in repr(logs)


def password_file(directory: Path, **passwords: str) -> Path:
    path = directory / "passwords"
    path.write_text("".join(f"{name}:{password}\n" for name, password in passwords.items()))
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True)
    return path


# --- TLS and websockets


def tls_lines(certificates: Certificates, *more: str) -> tuple[str, ...]:
    return (
        f"cafile {certificates.ca}",
        f"certfile {certificates.server}",
        f"keyfile {certificates.server_key}",
        *more,
    )


async def test_tls_with_an_authority_of_ones_own(new_mosquitto: NewMosquitto, certificates: Certificates) -> None:
    mosquitto = new_mosquitto(extra_listener=tls_lines(certificates))
    url = f"mqtts://localhost:{mosquitto.extra_port}"
    async with connected(0, Home(bed()), url=url, tls={"ca_file": certificates.ca}) as sink:
        assert await deliver_all(sink, [event(number) for number in range(2000)]) == 0


async def test_an_untrusted_certificate_is_refused_unless_it_may_be_anything(
    new_mosquitto: NewMosquitto, certificates: Certificates
) -> None:
    mosquitto = new_mosquitto(extra_listener=tls_lines(certificates))
    url = f"mqtts://127.0.0.1:{mosquitto.extra_port}"
    async with running(new_sink(0, url=url), ready=False) as sink:
        await eventually(lambda: sink.problem is not None and "not trusted" in sink.problem)
    async with connected(0, url=url, tls={"insecure": True}) as trusting:
        assert await deliver(trusting, event(1)) is None
    gc.collect()  # a socket that was left open would be told now


async def test_a_client_certificate_is_shown(new_mosquitto: NewMosquitto, certificates: Certificates) -> None:
    lines = tls_lines(certificates, "require_certificate true", "use_identity_as_username true")
    mosquitto = new_mosquitto(extra_listener=lines)
    url = f"mqtts://127.0.0.1:{mosquitto.extra_port}"
    tls = {"ca_file": certificates.ca, "cert_file": certificates.client, "key_file": certificates.client_key}
    async with connected(0, url=url, tls=tls) as sink:
        assert await deliver(sink, event(1)) is None

    assert "u'bridge'" in mosquitto.log()


@pytest.mark.parametrize("secure", [False, True])
async def test_websockets_even_with_more_than_the_socket_holds(
    new_mosquitto: NewMosquitto, certificates: Certificates, secure: bool
) -> None:
    tls = tls_lines(certificates) if secure else ()
    no_limits = ("max_inflight_messages 1000", "max_queued_messages 0")
    mosquitto = new_mosquitto(*no_limits, extra_listener=("protocol websockets", *tls))
    url = f"{'wss' if secure else 'ws'}://localhost:{mosquitto.extra_port}/mqtt"
    settings = {"tls": {"ca_file": certificates.ca}} if secure else {}
    with heard_on(mosquitto.port) as listener:
        async with connected(0, url=url, max_in_flight=200, **settings) as sink:
            large = [Attempt(LoggedEvent(n, large_event(n)), 1) for n in range(200)]
            mosquitto.pause()
            delivering = asyncio.create_task(deliver_all(sink, large))
            await eventually(lambda: sent_in_part(sink))
            mosquitto.resume()
            assert await asyncio.wait_for(delivering, 60) == 0
            await eventually(lambda: len(listener.on("bace/g1/event")) == 200)

    assert numbers(listener) == list(range(200))


def protocol_of(sink: MqttSink) -> str | None:
    return sink._connection.manner.protocol if sink._connection is not None else None


def sent_in_part(sink: MqttSink) -> bool:
    """Whether a WebSocket frame has begun that the socket does not take for now."""
    connection = sink._connection
    sock: Any = connection._client.socket() if connection is not None else None
    return sock is not None and bool(sock._out)


async def test_tls_that_carries_several_packets_at_once_is_read_to_its_end(
    certificates: Certificates,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server, certificates.server_key)
    topic = b"bace/bridge/request/poll"
    request = bytes([0x30, 3 + len(topic), 0, len(topic)]) + topic + b"\x00"
    async with scripted(Script(), context) as broker:
        url = f"mqtts://localhost:{broker.port}"
        async with connected(0, Home(), REQUESTS, url=url, tls={"ca_file": certificates.ca}):
            broker.send(request * 5)
            answers = "bace/bridge/response/poll"
            await eventually(lambda: [one.topic for one in broker.published].count(answers) == 5)


def large_event(number: int) -> Event:
    data = json.dumps({"n": number, "filling": "x" * 100_000}).encode()
    return Event(f"evt_{number}", "session.updated", "s1", "g1", 1.0, 2.0, data)


# --- refusals of events


@pytest.mark.parametrize("qos", [1, 2])
async def test_an_error_in_the_acknowledgement_rejects_the_event(
    new_mosquitto: NewMosquitto, tmp_path: Path, qos: int
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite bace/#\ntopic deny bace/secret/#\n")
    with capture_logs() as logs:
        async with connected(new_mosquitto(f"acl_file {acl}").port, qos=qos) as sink:
            refused = await deliver(sink, event(1, device="secret"))
            assert await deliver(sink, event(2)) is None

    assert isinstance(refused, DeliveryRejected)
    assert str(refused) == "the broker refused a message on bace/secret/event: not authorized (0x87)"
    assert not named(logs, "mqtt.unreachable")


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("properties", [b"\x00", b""])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(0x00, None), (0x10, None), (0x97, DeliveryFailed), (0x80, DeliveryFailed), (0x90, DeliveryRejected)],
)
async def test_reason_codes_of_acknowledgements(
    code: int, expected: type[SinkError] | None, properties: bytes, qos: int
) -> None:
    script = Script(answers={"bace/g1/event": code}, properties=properties)
    async with scripted(script) as broker, connected(broker.port, qos=qos) as sink:
        error = await deliver(sink, event(1))

    assert error is None if expected is None else type(error) is expected


async def test_an_event_that_cannot_be_told_is_rejected() -> None:
    broken = Event("evt_1", "session.datapoints", "s1", "g1", 1.0, 2.0, b"{}")
    async with scripted(Script()) as broker, connected(broker.port) as sink:
        error = await deliver(sink, Attempt(LoggedEvent(1, broken), 1))

    assert isinstance(error, DeliveryRejected)
    assert "evt_1" in str(error)


async def test_a_broker_that_acknowledges_nothing_for_long_is_left() -> None:
    script = Script()
    async with scripted(script) as broker, connected(broker.port) as sink:
        script.holds_acknowledgements = True
        delivering = asyncio.create_task(deliver(sink, event(1)))
        await eventually(lambda: broker.unacknowledged == 1)
        connection, now = sink._connection, asyncio.get_running_loop().time()
        assert connection is not None
        for later in (0, 59, 61):
            assert not connection.end.done()
            connection._check_acknowledgements(now + later)
        error = await delivering
        script.holds_acknowledgements = False

    assert isinstance(error, SinkUnavailable)
    assert "does not acknowledge" in str(error)


async def test_refused_state_is_told_once_a_topic() -> None:
    answers = {"bace/g1/session": 0x87, "bace/g1/availability": 0x87}
    with capture_logs() as logs:
        async with scripted(Script(answers=answers)) as broker, connected(broker.port, Home(bed())) as sink:
            assert await deliver(sink, event(1)) is None

    told = [one["topic"] for one in named(logs, "mqtt.state_refused") if one["log_level"] == "warning"]
    assert sorted(told) == ["bace/g1/availability", "bace/g1/session"]


async def test_what_the_broker_never_allows_is_said_on_the_first_connection_only() -> None:
    answers = {"bace/g1/session": 0x87}
    with capture_logs() as logs:
        script = Script(answers=answers, connack_properties=bytes([37, 0]))
        async with scripted(script) as broker, connected(broker.port, Home(bed())) as sink:
            for number in range(1, 4):
                await eventually(lambda number=number: len(named(logs, "mqtt.state_refused")) >= number)  # type: ignore[misc]
                assert await deliver(sink, event(number)) is None
                broker.connections[-1].transport.abort()
                await eventually(lambda: sink.problem is not None)
                async with asyncio.timeout(60):
                    await sink.ready()

    for name in ("mqtt.state_refused", "mqtt.no_retained_messages"):
        levels = [one["log_level"] for one in named(logs, name)]
        assert (levels[0], levels.count("warning"), len(levels) > 2) == ("warning", 1, True)


# --- limits that MQTT 5 brokers announce


async def test_no_more_in_flight_than_the_broker_takes() -> None:
    async with (
        scripted(Script(connack_properties=two_bytes(33, 7))) as broker,
        connected(broker.port, Home(bed()), max_in_flight=200) as sink,
    ):
        assert await deliver_all(sink, [event(number) for number in range(500)]) == 0

    assert broker.most_unacknowledged == 7


async def test_too_large_a_message_is_rejected_without_sending_it() -> None:
    async with (
        scripted(Script(connack_properties=four_bytes(39, 1000))) as broker,
        connected(broker.port) as sink,
    ):
        error = await deliver(sink, Attempt(LoggedEvent(1, large_event(1)), 1))
        assert await deliver(sink, event(2)) is None

    assert isinstance(error, DeliveryRejected)
    assert "larger than the broker accepts" in str(error)
    assert [one.topic for one in broker.published].count("bace/g1/event") == 1


async def test_a_message_as_large_as_the_broker_takes_is_sent_and_no_larger_one() -> None:
    def filled(size: int) -> Attempt:
        return Attempt(
            LoggedEvent(1, Event("evt_1", "session.updated", "s1", "g1", 1.0, 2.0, b'{"x":"%b"}' % (b"x" * size))), 1
        )

    async with (
        scripted(Script(connack_properties=four_bytes(39, 1000))) as broker,
        connected(broker.port) as sink,
    ):
        results = [await deliver(sink, filled(size)) for size in range(400, 1000)]

    assert 990 < broker.largest_packet <= 1000
    assert [type(error) for error in results if error is not None] == [DeliveryRejected] * (
        len(results) - sum(one.topic == "bace/g1/event" for one in broker.published)
    )


async def test_a_lower_quality_of_service_and_no_retained_messages_are_accepted() -> None:
    with capture_logs() as logs:
        async with (
            scripted(Script(connack_properties=bytes([36, 0, 37, 0]))) as broker,
            connected(broker.port, Home(bed()), qos=2) as sink,
        ):
            assert await deliver(sink, event(1)) is None
            await eventually(lambda: any(one.topic == "bace/g1/event" for one in broker.published))

    assert {(one.qos, one.retained) for one in broker.published} == {(0, False)}
    assert named(logs, "mqtt.no_retained_messages")


async def test_a_will_that_the_broker_does_not_take_is_made_gentler() -> None:
    with capture_logs() as logs:
        async with scripted(Script(connect_codes=[0x9A, 0x9B])) as broker, connected(broker.port):
            pass

    assert broker.versions == [5, 5, 5]
    assert not named(logs, "mqtt.unreachable")


# --- protocol versions


@pytest.mark.parametrize(
    ("script", "versions"),
    [
        (Script(refuses_5=True), [5, 4]),
        (Script(silent_on_5=True), [5, 4, 5, 4]),
        (Script(connect_codes=[0x84]), [5, 4]),
    ],
)
async def test_the_older_version_where_the_broker_refuses_the_newer(script: Script, versions: list[int]) -> None:
    with capture_logs() as logs:
        async with scripted(script) as broker, connected(broker.port, Home(bed())) as sink:
            assert protocol_of(sink) == "3.1.1"
            assert await deliver(sink, event(1)) is None
            broker.connections[-1].close()
            await eventually(lambda: len(broker.versions) > len(versions))
            await sink.ready()

    assert broker.versions == [*versions, 4], "it is remembered"
    assert len(named(logs, "mqtt.protocol_fallback")) == 1


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("garbage", [b"\x40\x01\x00", b"\x40\x03\x00\x01\x05"])
async def test_a_broker_that_talks_nonsense_is_left_and_tried_again(garbage: bytes, version: str) -> None:
    script = Script(garbage=garbage, refuses_5=version != "5")
    async with scripted(script) as broker, running(new_sink(broker.port), ready=False) as sink:
        await eventually(lambda: len(broker.versions) >= 3)
        script.garbage = b""
        async with asyncio.timeout(60):
            await sink.ready()


async def test_half_an_acknowledgement_is_none() -> None:
    script = Script(cuts_acknowledgements=True)
    async with scripted(script) as broker, running(new_sink(broker.port), ready=False) as sink:
        await eventually(lambda: len(broker.versions) >= 3)  # each one ends a connection
        script.cuts_acknowledgements = False
        async with asyncio.timeout(60):
            await sink.ready()


async def test_a_mistake_in_a_callback_of_ours_ends_the_sink() -> None:
    def mistaken(_error: SinkError | None) -> None:
        raise ZeroDivisionError

    async with scripted(Script()) as broker:
        sink = new_sink(broker.port)
        task = asyncio.create_task(sink.run())
        await sink.ready()
        sink.send(event(1), mistaken)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(task, 60)


# --- requests


async def told(request: dict[str, Any]) -> dict[str, Any]:
    match request.get("wish"):
        case "refuse":
            raise BridgeError("not today")
        case "break":
            raise ZeroDivisionError
    return {"told": request}


REQUESTS: dict[str, Answer] = {"info": told, "poll": told}


@pytest.mark.parametrize(
    ("name", "payload", "expected"),
    [
        ("info", b"", {"status": "ok", "data": {"told": {}}}),
        (
            "info",
            b'{"transaction":7}',
            {"status": "ok", "data": {"told": {"transaction": 7}}, "transaction": 7},
        ),
        ("info", b"[1]", {"status": "error", "error": "the request is not a JSON object"}),
        ("info", b"\xff", {"status": "error", "error": "the request is not a JSON object"}),
        ("nap", b"", {"status": "error", "error": "unknown request 'nap'; known: info, poll"}),
        (
            "poll",
            b'{"wish":"refuse","transaction":"a"}',
            {"status": "error", "error": "not today", "transaction": "a"},
        ),
        (
            "poll",
            b'{"wish":"break"}',
            {"status": "error", "error": "an internal error; the log has its details"},
        ),
    ],
)
async def test_requests_are_answered(broker: Broker, name: str, payload: bytes, expected: dict[str, Any]) -> None:
    with heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, Home(), REQUESTS, protocol=broker.speaks):
            await asyncio.to_thread(listener.publish, f"bace/bridge/request/{name}", payload)
            topic = f"bace/bridge/response/{name}"
            await eventually(lambda: bool(listener.on(topic)))

    assert json.loads(listener.payloads(topic)[0]) == expected
    assert (listener.on(topic)[0].retained, listener.on(topic)[0].qos) == (False, 1)


@pytest.mark.parametrize("opening", [b'{"transaction":', b"", b'{"a":'])
async def test_a_request_that_is_nested_without_end_is_answered_as_any_other_nonsense(
    broker: Broker, opening: bytes
) -> None:
    closing = b"}" if opening else b""
    with heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, Home(), REQUESTS, protocol=broker.speaks) as sink:
            for depth in (30_000, *range(900, 1000, 5)):  # the latter: more or less as deep as the decoder goes
                payload = opening + b"[" * depth + b"]" * depth + closing
                await asyncio.to_thread(listener.publish, "bace/bridge/request/info", payload)
            await eventually(lambda: len(listener.on("bace/bridge/response/info")) == 21)
            assert await deliver(sink, event(1)) is None

    first = json.loads(listener.payloads("bace/bridge/response/info")[0])
    assert first == {"status": "error", "error": "the request is not a JSON object"}


async def test_a_message_whose_topic_is_not_utf_8_is_ignored() -> None:
    topic = b"bace/bridge/request/\xff"
    with capture_logs() as logs:
        async with scripted(Script()) as broker, connected(broker.port) as sink:
            broker.send(bytes([0x30, 3 + len(topic), 0, len(topic)]) + topic + b"\x00")
            await eventually(lambda: bool(named(logs, "mqtt.unreadable_topic_ignored")))
            assert await deliver(sink, event(1)) is None


async def test_a_response_also_goes_where_mqtt_5_asks_for_it(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = "my/own/place"
    properties.CorrelationData = b"\x01\x02"
    with heard_on(port) as listener:
        async with connected(port, Home(), REQUESTS):
            send = listener.publish
            await asyncio.to_thread(send, "bace/bridge/request/info", b"{}", properties=properties)
            await eventually(lambda: bool(listener.on("my/own/place")))
            await eventually(lambda: bool(listener.on("bace/bridge/response/info")))

    assert listener.on("my/own/place")[0].properties.CorrelationData == b"\x01\x02"
    assert listener.payloads("my/own/place") == listener.payloads("bace/bridge/response/info")


async def test_a_response_that_is_asked_for_where_it_goes_anyway_goes_there_once(new_mosquitto: NewMosquitto) -> None:
    port, usual = new_mosquitto().port, "bace/bridge/response/info"
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = usual
    with heard_on(port) as listener:
        async with connected(port, Home(), REQUESTS) as sink:
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b"{}", properties=properties)
            await eventually(lambda: bool(listener.on(usual)))
            assert await deliver(sink, event(1)) is None
            await eventually(lambda: bool(listener.on("bace/g1/event")))

    assert len(listener.on(usual)) == 1


async def test_more_requests_than_can_wait_are_dropped_and_logged(new_mosquitto: NewMosquitto) -> None:
    broker, gate = new_mosquitto(), asyncio.Event()

    async def slowly(request: dict[str, Any]) -> dict[str, Any]:
        await gate.wait()
        return request

    topic = "bace/bridge/response/info"
    with capture_logs() as logs, heard_on(broker.port, speaks=broker.speaks) as listener:
        async with connected(broker.port, Home(), {"info": slowly}, protocol=broker.speaks):
            for number in range(1 + 16 + 3):
                payload = b'{"number":%d}' % number
                await asyncio.to_thread(listener.publish, "bace/bridge/request/info", payload)
            retained = "mqtt.retained_request_ignored"
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b"{}", retain=True)
            await eventually(lambda: bool(named(logs, retained)))  # which was sent after them
            assert len(named(logs, "mqtt.request_dropped")) == 1
            gate.set()
            await eventually(lambda: len(listener.on(topic)) >= 17)
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b'{"number":"last"}')
            await eventually(lambda: b"last" in (listener.newest(topic) or b""))

    answered = [json.loads(payload)["data"]["number"] for payload in listener.payloads(topic)]
    assert answered == [*range(17), "last"]


async def test_a_retained_request_is_not_answered(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with capture_logs() as logs, heard_on(port) as listener:
        await asyncio.to_thread(listener.publish, "bace/bridge/request/poll", b"", retain=False)
        await asyncio.to_thread(listener.publish, "bace/bridge/request/poll", b"{}", retain=True)
        async with connected(port, Home(), REQUESTS):
            await eventually(lambda: bool(named(logs, "mqtt.retained_request_ignored")))
            await asyncio.to_thread(listener.publish, "bace/bridge/request/poll", b"{}", retain=True)
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b"")
            await eventually(lambda: bool(listener.on("bace/bridge/response/info")))

    assert not listener.on("bace/bridge/response/poll")


@pytest.mark.parametrize(("protocol", "code"), [("5", 0x87), ("3.1.1", 0x80)])
async def test_a_broker_that_refuses_the_subscription_still_gets_events(protocol: str, code: int) -> None:
    with capture_logs() as logs:
        async with scripted(Script(suback=code)) as broker, connected(broker.port, protocol=protocol) as sink:
            assert await deliver(sink, event(1)) is None

    assert [one["topic"] for one in named(logs, "mqtt.requests_refused")] == ["bace/bridge/request/+"]


def test_the_broker_under_test_has_a_name() -> None:
    assert broker_kind().startswith(("mosquitto ", "amqtt "))


@pytest.mark.slow
async def test_amqtt_which_leaves_version_5_unanswered_is_spoken_to_in_the_older_one(tmp_path: Path) -> None:
    broker = Amqtt(tmp_path)
    await asyncio.to_thread(broker.start)
    try:
        with capture_logs() as logs:
            async with connected(broker.port, Home(bed())) as sink:
                assert protocol_of(sink) == "3.1.1"
                assert await deliver(sink, event(1)) is None
    finally:
        await asyncio.to_thread(broker.stop)

    assert [log["event"] for log in logs] == ["mqtt.protocol_fallback", "mqtt.connected"]
