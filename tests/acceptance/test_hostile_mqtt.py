"""The real process beside a client and a broker that send too much: memory, log lines, and that it goes on."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Process, configuration, running, until
from tests.integration.brokers import Listener, Mosquitto, listening
from tests.integration.scripted_broker import Published, Script, ScriptedBroker, scripted

SOON = 60.0
MOST = 30 * 1024
"""KiB above what the idle process takes."""

REQUEST, RESPONSE = "bace/bridge/request/info", "bace/bridge/response/info"


def memory(bridge: Process, field: str) -> int:
    """KiB: VmRSS is what it takes now, VmHWM the most that it ever took."""
    status = Path(f"/proc/{bridge.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


@asynccontextmanager
async def bridge_at(
    folder: Path, port: int, *, cloud: SimulatedCloud | None = None, **mqtt: Any
) -> AsyncIterator[Process]:
    async with SimulatedServer(cloud or SimulatedCloud()) as server:
        path = configuration(folder, cloud_url=server.url, mqtt_port=port)
        settings = json.loads(path.read_text())
        settings["mqtt"][0] |= mqtt
        path.write_text(json.dumps(settings))
        async with running(path) as bridge:
            yield bridge
            assert await bridge.stop() == 0


async def ask(listener: Listener, payload: bytes) -> list[Any]:
    """What came after this request, up to its answer."""
    before = len(listener.on(RESPONSE))
    await asyncio.to_thread(listener.publish, REQUEST, payload)
    await until(lambda: len(listener.on(RESPONSE)) > before, within=SOON, what="an answer")
    return [json.loads(one) for one in listener.payloads(RESPONSE)[before:]]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_request_of_100_mb_takes_no_memory(
    tmp_path: Path, new_mosquitto: Callable[..., Mosquitto], protocol: str
) -> None:
    mosquitto = new_mosquitto()
    with listening(mosquitto.port, "bace/bridge/state", RESPONSE) as listener:
        async with bridge_at(tmp_path, mosquitto.port, protocol=protocol) as bridge:
            await until(lambda: bool(listener.on("bace/bridge/state")), within=SOON, what="the bridge is online")
            idle = memory(bridge, "VmRSS")
            await asyncio.to_thread(listener.publish, REQUEST, b'{"transaction":"%b"}' % bytes(100_000_000))
            answers = await ask(listener, b'{"transaction":1}')
            if protocol == "3.1.1" and len(answers) == 1:
                await until(lambda: len(listener.on(RESPONSE)) == 2, within=SOON, what="the other answer")
            assert memory(bridge, "VmHWM") - idle < MOST

    said = [json.loads(one) for one in listener.payloads(RESPONSE)]
    too_large = {"status": "error", "error": "the request is larger than 65536 bytes"}
    assert (too_large in said) is (protocol == "3.1.1"), "with 5 the broker keeps it to itself"
    assert said[-1]["transaction"] == 1
    assert bridge.log.count("mqtt.connected") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0x30, 0x40])
async def test_a_packet_of_256_mb_takes_no_memory(tmp_path: Path, kind: int) -> None:
    size = 2**28 - 1
    async with scripted(Script()) as broker, bridge_at(tmp_path, broker.port) as bridge:
        await until(lambda: "mqtt.connected" in bridge.log, within=SOON, what="the bridge is connected")
        await until(lambda: len(broker.published) > 3, within=SOON, what="the state")
        idle = memory(bridge, "VmRSS")
        broker.send(bytes([kind, 0xFF, 0xFF, 0xFF, 0x7F]) + b"\x00\x01a\x00")
        try:
            for _ in range(size // 2**20):
                broker.send(bytes(2**20))
                await broker.connections[0].drain()
        except ConnectionError:
            assert kind != 0x30
        if kind != 0x30:
            await until(lambda: "sent a packet of 268435455 bytes" in bridge.log, within=SOON, what="it is named")
        assert memory(bridge, "VmHWM") - idle < MOST


async def test_20000_requests_are_few_log_lines(tmp_path: Path, new_mosquitto: Callable[..., Mosquitto]) -> None:
    mosquitto = new_mosquitto("max_queued_messages 0")
    with listening(mosquitto.port, "bace/bridge/state", RESPONSE) as listener:
        async with bridge_at(tmp_path, mosquitto.port) as bridge:
            await until(lambda: bool(listener.on("bace/bridge/state")), within=SOON, what="the bridge is online")
            idle = memory(bridge, "VmRSS")
            await asyncio.to_thread(publish_many, listener, 20_000)
            marker = "mqtt.retained_request_ignored"
            await asyncio.to_thread(listener.publish, REQUEST, b"{}", retain=True)
            await until(lambda: marker in bridge.log, within=SOON, what="all of them were seen")
            lines = [line for line in bridge.log.splitlines() if '"mqtt.request' in line or marker in line]
            assert len(lines) <= 4
            assert memory(bridge, "VmHWM") - idle < MOST


def publish_many(listener: Listener, count: int) -> None:
    sent = [listener._client.publish(REQUEST, b"{}", 1) for _ in range(count)]
    sent[-1].wait_for_publish(SOON)


KINDS = ["bridge/state", "bridge/info", "bridge/health", "/availability", "/session", "/latest/"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_broker_that_closes_the_connection_on_a_topic_gets_all_others(tmp_path: Path, kind: str) -> None:
    """As Mosquitto does on some characters, RabbitMQ without a permission, and aedes where a hook says no."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    session = cloud.open_session(device.id_group)
    cloud.add_points(session, device.series[0].id_container_data_latest, [(time.time(), 60.0)])
    async with (
        scripted(Script(closes_on_topic=kind)) as broker,
        bridge_at(tmp_path, broker.port, cloud=cloud) as bridge,
    ):
        await until(lambda: any(kind in line for line in refusals(bridge)), within=SOON, what="it is named")
        await until(lambda: shown(broker) == {*KINDS} - {kind}, within=SOON, what="all others")
        cloud.end_session(session)
        await until(
            lambda: any("session.ended" in text(one) for one in broker.published), within=SOON, what="the event"
        )
        assert len(broker.versions) <= 6
    assert len(refusals(bridge)) == 1


def refusals(bridge: Process) -> list[str]:
    return [line for line in bridge.log.splitlines() if '"mqtt.state_refused"' in line]


def shown(broker: ScriptedBroker) -> set[str]:
    return {kind for kind in KINDS for one in broker.published if kind in one.topic and one.retained}


def text(one: Published) -> str:
    return one.payload.decode() if one.topic.endswith("/event") else ""
