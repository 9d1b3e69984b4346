"""What others write where the bridge says who and how it is, over the real process and a real Mosquitto."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Process, configuration, running, until
from tests.integration.brokers import Listener, Mosquitto, listening

NewMosquitto = Callable[..., Mosquitto]

STATE, INFO, GUESTS = "bace/bridge/state", "bace/bridge/info", "bace/bridge/guest/"
OTHER = b'{"version":"1","installation":"0badcafe"}'

both_protocols = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@asynccontextmanager
async def watched(
    folder: Path, port: int, protocol: str, *more: dict[str, Any]
) -> AsyncIterator[tuple[Process, Listener]]:
    """A bridge that has published all there is; `more` are further sinks."""
    cloud = SimulatedCloud()
    cloud.open_session(cloud.add_device("BaceGo-1").id_group)
    async with SimulatedServer(cloud) as server:
        path = configuration(folder, cloud_url=server.url, mqtt_port=port)
        settings = json.loads(path.read_text())
        settings["mqtt"] = [settings["mqtt"][0] | one for one in ({"protocol": protocol}, *more)]
        path.write_text(json.dumps(settings))
        with listening(port, protocol=MQTTProtocolVersion.MQTTv5) as listener:
            async with running(path) as bridge:
                await until(lambda: bool(listener.on(INFO)), within=60, what="its info")
                yield bridge, listener
                assert await bridge.stop() == 0
    assert "Traceback" not in bridge.log


def write(listener: Listener, topic: str, payload: bytes, *, retain: bool = True) -> Callable[[], bool]:
    """True of what it returns when somebody has written there since."""
    listener.caught_up()  # with what was written before
    before = len(listener.on(topic)) + 1
    listener.publish(topic, payload, retain=retain)
    return lambda: len(listener.on(topic)) > before


def guests(listener: Listener) -> set[str]:
    return {one.topic for one in list(listener.heard) if one.topic.startswith(GUESTS) and one.payload}


@both_protocols
async def test_what_the_broker_does_not_keep_makes_nobody_a_guest(
    new_mosquitto: NewMosquitto, tmp_path: Path, protocol: str
) -> None:
    async with watched(tmp_path, new_mosquitto().port, protocol) as (bridge, listener):
        own = listener.payloads(INFO)[-1]
        await asyncio.to_thread(write, listener, INFO, OTHER, retain=False)
        await asyncio.to_thread(write, listener, GUESTS + "0badcafe", b"{}", retain=False)
        # It is known to have read that when it has set right what comes after it.
        is_right = await asyncio.to_thread(write, listener, INFO, b"")
        await until(is_right, within=60, what="its info again")
        assert listener.newest(INFO) == own
        assert guests(listener) == {GUESTS + "0badcafe"}
        assert "mqtt.base_topic_shared" not in bridge.log


@both_protocols
async def test_what_the_broker_keeps_does(new_mosquitto: NewMosquitto, tmp_path: Path, protocol: str) -> None:
    async with watched(tmp_path, new_mosquitto().port, protocol) as (bridge, listener):
        own = listener.payloads(INFO)[-1]
        await asyncio.to_thread(write, listener, INFO, OTHER)
        await until(lambda: bool(guests(listener)), within=60, what="the guest's name")
        assert listener.newest(INFO) == OTHER
        await until(lambda: "mqtt.base_topic_shared" in bridge.log, within=60, what="it says so")
        is_owner = await asyncio.to_thread(write, listener, INFO, b"")
        await until(is_owner, within=60, what="its info again")
        assert listener.newest(INFO) == own


@both_protocols
@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (STATE, b""),
        (STATE, b"offline"),
        (STATE, b"\xff"),
        (INFO, b""),
        (INFO, b"null"),
        (INFO, b'{"installation":7}'),
        (INFO, b"\xff"),
        (INFO, b"own"),
    ],
)
async def test_it_is_set_right_and_the_broker_keeps_that(
    new_mosquitto: NewMosquitto, tmp_path: Path, protocol: str, topic: str, payload: bytes
) -> None:
    port = new_mosquitto().port
    async with watched(tmp_path, port, protocol) as (bridge, listener):
        own = listener.payloads(topic)[-1]
        if payload == b"own":  # by the name of this bridge, and not its words
            payload = json.dumps(json.loads(own) | {"version": "9"}).encode()
        is_right = await asyncio.to_thread(write, listener, topic, payload)
        await until(is_right, within=60, what="it is written again")
        with listening(port, topic) as late:
            await until(lambda: late.payloads(topic) == [own], within=60, what="what is kept")
        await until(lambda: '"mqtt.foreign_message"' in bridge.log, within=60, what="it says so")
        assert bridge.log.count('"mqtt.foreign_message"') == 1
        assert bridge.log.count('"mqtt.connected"') == 1


@both_protocols
async def test_two_that_contradict_each_other_do_so_now_and_then(
    new_mosquitto: NewMosquitto, tmp_path: Path, protocol: str
) -> None:
    async with watched(tmp_path, new_mosquitto().port, protocol) as (_, listener):
        for _ in range(2):
            for _ in range(30):
                is_right = await asyncio.to_thread(write, listener, INFO, b"")
            await until(is_right, within=60, what="its info again")
        assert sum(map(bool, listener.payloads(INFO))) <= 4


async def test_no_answer_goes_to_topics_of_another_sink(new_mosquitto: NewMosquitto, tmp_path: Path) -> None:
    port = new_mosquitto().port
    other, below = {"name": "other", "base_topic": "hall"}, {"name": "below", "base_topic": "bace/bridge/response/x"}
    async with watched(tmp_path, port, "5", other, below) as (_, listener):
        for topic, status in [
            ("hall/bridge/state", "error"),
            ("hall/bridge/response/info", "error"),
            ("hall", "error"),
            ("bace/bridge/response/x/bridge/state", "error"),
            ("bace/bridge/response/y", "ok"),
            ("halls/x", "ok"),
        ]:
            asked: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            asked.ResponseTopic = topic
            answers = len(listener.on("bace/bridge/response/info"))
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b"{}", properties=asked)
            await until(
                lambda: len(listener.on("bace/bridge/response/info")) > answers,  # noqa: B023  # awaited at once
                within=60,
                what=f"an answer for {topic}",
            )
            assert json.loads(listener.payloads("bace/bridge/response/info")[-1])["status"] == status, topic
            if status == "ok":
                await until(lambda: bool(listener.on(topic)), within=60, what=topic)  # noqa: B023  # awaited at once
            else:
                assert not any(b'"status"' in one for one in listener.payloads(topic)), topic
