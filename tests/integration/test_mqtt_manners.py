"""Brokers of every manner: what they refuse by closing the connection, how slow they are, what they send."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.sink import MqttSink
from tests.integration.brokers import Certificates, Mosquitto, eventually
from tests.integration.peers import speaking
from tests.integration.polling_line import Clock
from tests.integration.scripted_broker import Script, scripted
from tests.integration.test_mqtt_sink import (
    REQUESTS,
    Home,
    MemoryLedger,
    bed,
    connected,
    context_of,
    deliver,
    deliver_all,
    event,
    heard_on,
    named,
    new_sink,
    numbers,
    protocol_of,
    running,
    tls_lines,
)

NewMosquitto = Callable[..., Mosquitto]


# --- 3.1.1 has no words


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_3_1_1_at_a_mosquitto_without_retained_messages(new_mosquitto: NewMosquitto, qos: int) -> None:
    port = new_mosquitto("retain_available false").port
    with capture_logs() as logs, heard_on(port) as listener:
        async with connected(port, Home(bed()), protocol="3.1.1", qos=qos) as sink:
            assert await deliver_all(sink, [event(number) for number in range(50)]) == 0
            await eventually(lambda: len(numbers(listener)) == 50)

    assert sorted(one["event"] for one in logs) == ["mqtt.connected", "mqtt.no_retained_messages"]


@pytest.mark.parametrize(("highest", "qos"), [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)])
async def test_3_1_1_at_a_mosquitto_with_a_maximum_quality_of_service(
    new_mosquitto: NewMosquitto, highest: int, qos: int
) -> None:
    mosquitto = new_mosquitto(extra_listener=(f"max_qos {highest}",))
    with capture_logs() as logs, heard_on(mosquitto.port) as listener:
        async with connected(mosquitto.extra_port, Home(bed()), REQUESTS, protocol="3.1.1", qos=qos) as sink:
            assert await deliver_all(sink, [event(number) for number in range(50)]) == 0
            await eventually(lambda: len(numbers(listener)) == 50)
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b"{}")
            await eventually(lambda: bool(listener.on("bace/bridge/response/info")))
            assert listener.newest("bace/g1/availability") == b"online"

    assert [one["qos"] for one in named(logs, "mqtt.qos_lowered")] == [highest] * (max(qos, 1) > highest)
    assert not named(logs, "mqtt.unreachable")


async def test_a_broker_that_closes_the_connection_on_a_retained_message_is_sent_none() -> None:
    script = Script(closes_on_retained=True)
    with capture_logs() as logs:
        async with (
            scripted(script) as broker,
            connected(broker.port, Home(bed()), protocol="3.1.1") as sink,
        ):
            assert await deliver(sink, event(1)) is None

    assert broker.versions == [4, 4, 4, 4], "each of the two once more, as a proof"
    assert {one.retained for one in broker.published} == {False}
    assert len(named(logs, "mqtt.no_retained_messages")) == 1


async def test_with_3_1_1_and_qos_2_mosquitto_loses_nothing(new_mosquitto: NewMosquitto) -> None:
    """It acknowledges more than its `max_inflight_messages`, 20, and hands on no more than these."""
    port = new_mosquitto().port
    with heard_on(port) as listener:
        async with connected(port, Home(bed()), protocol="3.1.1", qos=2, max_in_flight=200) as sink:
            assert await deliver_all(sink, [event(number) for number in range(200)]) == 0
            await eventually(lambda: len(numbers(listener)) == 200)

    assert numbers(listener) == list(range(200))


# --- the version


async def test_a_frozen_mosquitto_is_an_outage_and_no_reason_to_speak_3_1_1(new_mosquitto: NewMosquitto) -> None:
    mosquitto = new_mosquitto()
    async with connected(mosquitto.port, keepalive="1s") as sink:
        mosquitto.pause()
        await eventually(lambda: sink.problem is not None and "does not answer" in sink.problem)
        mosquitto.resume()
        async with asyncio.timeout(60):
            await sink.ready()
        assert protocol_of(sink) == "5"


async def test_a_mosquitto_that_is_frozen_at_the_first_start_is_spoken_to_in_5_later(
    new_mosquitto: NewMosquitto,
) -> None:
    mosquitto = new_mosquitto()
    mosquitto.pause()
    async with running(new_sink(mosquitto.port), ready=False) as sink:
        await eventually(lambda: sink.problem is not None and "does not answer" in sink.problem)
        mosquitto.resume()
        async with asyncio.timeout(60):
            await sink.ready()
        assert protocol_of(sink) == "5"


async def test_a_broker_that_takes_seven_seconds_to_accept_is_waited_for() -> None:
    async with scripted(Script(connack_after=7)) as broker, connected(broker.port) as sink:
        assert protocol_of(sink) == "5"

    assert broker.versions == [5]


async def test_5_is_tried_again_after_an_hour() -> None:
    clock, script = Clock(), Script(refuses_5=True)
    async with scripted(script) as broker, connected(broker.port, Home(bed()), clock=clock) as sink:
        assert protocol_of(sink) == "3.1.1"
        clock.now += 3600
        await eventually(lambda: broker.versions == [5, 4, 5, 4])
        async with asyncio.timeout(60):
            await sink.ready()
        script.refuses_5 = False
        clock.now += 7200
        await eventually(lambda: protocol_of(sink) == "5")
        assert await deliver(sink, event(1)) is None


# --- the subscription


@pytest.mark.parametrize("code", [0x80, 0x87, 0x8F, 0x97, 0x98, 0xA1, 0xA2])
async def test_a_subscription_that_the_broker_refuses_with_disconnect_is_done_without(code: int) -> None:
    script = Script(closes_on_subscribing="bace/bridge/request/+", goodbye=code)
    async with scripted(script) as broker, connected(broker.port, Home(bed()), REQUESTS) as sink:
        assert await deliver(sink, event(1)) is None


async def test_a_subscription_that_is_refused_is_made_when_the_broker_allows_it() -> None:
    script, requests = Script(suback=0x87), ["bace/bridge/request/+"]
    with capture_logs() as logs:
        async with scripted(script) as broker, connected(broker.port, Home(bed()), REQUESTS) as sink:
            await eventually(lambda: broker.subscribed.count(requests) == 3)
            script.suback = 1
            await eventually(lambda: broker.subscribed_qos.count(1) > 3 and broker.subscribed.count(requests) > 3)
            so_far = broker.subscribed.count(requests)
            for number in range(100):
                assert await deliver(sink, event(number)) is None
            assert broker.subscribed.count(requests) <= so_far + 1
    assert len(named(logs, "mqtt.requests_refused")) == 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_subscription_on_which_the_broker_closes_the_connection_is_done_without(protocol: str) -> None:
    clock, script = Clock(), Script(closes_on_subscribing="bace/bridge/request/+")
    with capture_logs() as logs:
        async with (
            scripted(script) as broker,
            connected(broker.port, Home(bed()), REQUESTS, clock=clock, protocol=protocol) as sink,
        ):
            assert await deliver(sink, event(1)) is None
            broker.connections[-1].transport.abort()
            await eventually(lambda: sink.problem is not None)
            async with asyncio.timeout(60):
                await sink.ready()
            assert len(named(logs, "mqtt.requests_refused")) == 1
            assert len(named(logs, "mqtt.unreachable")) == 2, "the subscription, and the cut"

            script.closes_on_subscribing = ""
            before = len(broker.subscribed)
            clock.now += 3600
            await eventually(lambda: ["bace/bridge/request/+"] in broker.subscribed[before:])
            async with asyncio.timeout(60):
                await sink.ready()


async def test_requests_that_are_switched_off_are_not_subscribed_to() -> None:
    async with scripted(Script()) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        config = MqttConfig.model_validate({"name": "home", "url": url, "requests": False})
        sink = MqttSink(config, context_of(Home(bed()), MemoryLedger(), REQUESTS))
        async with running(sink):
            assert await deliver(sink, event(1)) is None

    assert not any("request" in one for filters in broker.subscribed for one in filters)


# --- TLS


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
async def test_a_client_certificate_that_the_broker_wants_is_named(
    new_mosquitto: NewMosquitto, certificates: Certificates, version: str
) -> None:
    lines = tls_lines(certificates, "require_certificate true", f"tls_version {version}")
    url = f"mqtts://localhost:{new_mosquitto(extra_listener=lines).extra_port}"
    with capture_logs() as logs:
        async with running(new_sink(0, url=url, tls={"ca_file": certificates.ca}), ready=False) as sink:
            await eventually(lambda: bool(named(logs, "mqtt.unreachable")))
            assert "wants a client certificate (tls.cert_file" in str(sink.problem)

    assert "wants a client certificate" in named(logs, "mqtt.unreachable")[0]["problem"]


async def test_a_port_without_tls_is_named(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto(extra_listener=("protocol websockets",)).extra_port
    async with running(new_sink(0, url=f"wss://localhost:{port}"), ready=False) as sink:
        await eventually(lambda: "does not speak TLS" in str(sink.problem))


async def test_files_of_tls_that_went_bad_later_are_named_and_read_again(
    new_mosquitto: NewMosquitto, certificates: Certificates
) -> None:
    mosquitto = new_mosquitto(extra_listener=tls_lines(certificates))
    ca = certificates.ca.with_name("renewed.pem")
    ca.write_text("")
    url = f"mqtts://localhost:{mosquitto.extra_port}"
    async with running(new_sink(0, url=url, tls={"ca_file": ca}), ready=False) as sink:
        await eventually(lambda: "renewed.pem holds no certificate" in str(sink.problem))
        ca.write_text(certificates.ca.read_text())
        async with asyncio.timeout(60):
            await sink.ready()


# --- WebSocket


@pytest.mark.parametrize("zone", ["", "%1"])
async def test_websockets_over_ipv6(zone: str) -> None:
    heads: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with (
        speaking(relay, host="::1") as port,
        running(new_sink(0, url=f"ws://[::1{zone}]:{port}/mqtt"), ready=False) as sink,
    ):
        await eventually(lambda: "HTTP 400" in str(sink.problem))
        assert f"the broker at [::1{zone}]:{port} " in str(sink.problem)

    assert f"Host: [::1]:{port}\r\n".encode() in heads[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "answers the WebSocket upgrade with HTTP 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "answers the WebSocket upgrade with HTTP 200"),
        (b"HTTP/1.1 101 OK\r\nSec-WebSocket-Accept: x\r\n\r\n", "does not belong to the request"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP server"),
        (b"", "closes the connection on the WebSocket upgrade"),
        (b"HTTP/1.1 101 OK\r\n" + b"x" * 20_000, "does not end"),
    ],
)
async def test_why_there_is_no_websocket(answer: bytes, said: str) -> None:
    async with answering(answer) as port, running(new_sink(0, url=f"ws://localhost:{port}"), ready=False) as sink:
        await eventually(lambda: said in str(sink.problem))


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with speaking(serve) as port:
        yield port


# --- packets without bounds


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_of_a_large_message_only_the_beginning_is_kept_and_the_request_is_refused(protocol: str) -> None:
    topic, size = b"bace/bridge/request/info", 40 * 2**20
    properties = b"\x00" if protocol == "5" else b""
    head = len(topic).to_bytes(2, "big") + topic + b"\x00\x07" + properties
    async with scripted(Script()) as broker, connected(broker.port, Home(), REQUESTS, protocol=protocol) as sink:
        connection, answers = sink._connection, "bace/bridge/response/info"
        assert connection is not None
        kept = [0]

        def answered() -> bool:
            kept.append(len(connection._client._in_packet["packet"]))
            return any(one.topic == answers for one in broker.published)

        # In one go: the broker writes its acknowledgements to the same connection.
        broker.send(bytes([0x32]) + length_of(len(head) + size) + head + bytes(size))
        await eventually(answered)
        assert await deliver(sink, event(1)) is None

    (answer,) = (one for one in broker.published if one.topic == answers)
    assert json.loads(answer.payload) == {"status": "error", "error": "the request is larger than 65536 bytes"}
    assert max(kept) < 256 * 2**10


def length_of(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (bytes([0x20]) + length_of(2**28 - 1), "sent a packet of 268435455 bytes"),
        (bytes([0x34, 7]) + b"\x00\x01a\x00\x01\x00x", "a quality of service that was not asked for"),
    ],
)
async def test_a_packet_that_no_broker_sends_ends_the_connection(sent: bytes, said: str) -> None:
    async with scripted(Script()) as broker, connected(broker.port) as sink:
        broker.send(sent)
        await eventually(lambda: said in str(sink.problem))
        async with asyncio.timeout(60):
            await sink.ready()
