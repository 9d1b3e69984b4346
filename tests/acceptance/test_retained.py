"""What the broker keeps of a bridge, over the real process and a real Mosquitto: true, also when nobody watched."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Process, configuration, running, until
from tests.faults.proxy import Fault, proxy_to
from tests.integration.brokers import Listener, Mosquitto, listening

NewMosquitto = Callable[..., Mosquitto]
Retained = dict[str, bytes]
BRIDGE = {f"bace/bridge/{topic}" for topic in ("state", "info", "health", "devices")}
QUIET = 0.3


def configured(folder: Path, server: SimulatedServer, port: int, *, watched: Any = (), **mqtt: Any) -> Path:
    """A configuration with these keys of its MQTT sink; `watched` are the groups of the cloud."""
    path = configuration(folder, cloud_url=server.url, mqtt_port=port, extra={"cloud": {"groups": list(watched)}})
    settings = json.loads(path.read_text())
    settings["mqtt"][0] |= mqtt
    path.write_text(json.dumps(settings))
    return path


async def retained(port: int) -> Retained:
    """What the broker keeps now."""
    with listening(port) as listener:

        def found() -> Retained:
            kept = [one for one in list(listener.heard) if one.retained and one.payload and of_state(one.topic)]
            return {one.topic: one.payload for one in kept}

        listener.caught_up()
        return found()


async def keeps(port: int, condition: Callable[[Retained], bool], what: str) -> Retained:
    """Waits until the broker's retained messages are as they should be."""
    with listening(port) as listener:
        listener.caught_up()  # or a part of what is kept would be taken for all of it

        def shown() -> Retained:
            newest = {one.topic: one.payload for one in list(listener.heard)}
            return {topic: payload for topic, payload in newest.items() if payload and of_state(topic)}

        try:
            await until(lambda: condition(shown()), within=60, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}; kept are {sorted(shown())[:50]}") from None
    return await retained(port)


def is_online(found: Retained) -> bool:
    return found.get("bace/bridge/state") == b"online"


def is_offline(found: Retained) -> bool:
    return found.get("bace/bridge/state") == b"offline"


async def says(bridge: Process, event: str, *, times: int = 1) -> None:
    """The log is one file for all that ran in a folder."""
    await until(lambda: bridge.log.count(event) >= times, within=60, what=event)


def of_state(topic: str) -> bool:
    """What announces devices is in test_discovery.py."""
    return not topic.endswith(("/event", "/datapoints")) and not topic.startswith("homeassistant/")


WITHOUT_DISCOVERY = {"enabled": False}
"""Where the broker does not allow it anyway."""


def topics_of(device: Device, found: Mapping[str, bytes], base: str = "bace") -> set[str]:
    return {topic for topic in found if topic.startswith(f"{base}/{device.id_group}/")}


def ids_in(devices: bytes) -> set[str]:
    return {one["id"] for one in json.loads(devices)}


def full(device: Device, base: str = "bace") -> set[str]:
    """Of a device with one series."""
    (source,) = device.sources
    ends = ("availability", "session", f"latest/{source}/6000")
    return {f"{base}/{device.id_group}/{end}" for end in ends}


class Home:
    """A cloud with two devices, each with an active data session of one series."""

    def __init__(self) -> None:
        self.cloud = SimulatedCloud()
        self.one, self.other = self.cloud.add_device("BaceGo-1"), self.cloud.add_device("BaceGo-2")
        self.sessions = {device.id_group: self.cloud.open_session(device.id_group) for device in (self.one, self.other)}
        for device in (self.one, self.other):
            series = device.series[0].id_container_data_latest
            self.cloud.add_points(self.sessions[device.id_group], series, [(time.time(), 60.0)])

    @property
    def everything(self) -> set[str]:
        return BRIDGE | full(self.one) | full(self.other)


@pytest.fixture
async def home() -> AsyncIterator[tuple[Home, SimulatedServer]]:
    one = Home()
    async with SimulatedServer(one.cloud) as server:
        yield one, server


@asynccontextmanager
async def shown(config: Path, port: int, topics: set[str]) -> AsyncIterator[Process]:
    """Runs until the end of the context, in which the broker keeps these topics and no other."""
    async with running(config) as bridge:
        await keeps(port, lambda found: found.keys() == topics, f"the topics {sorted(topics)}")
        yield bridge
        if bridge.process.returncode is None:
            assert await bridge.stop() == 0
    assert "Traceback" not in bridge.log


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("whose", ["sink", "cloud"])
async def test_a_device_that_is_not_wanted_any_more_leaves_nothing_behind(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer], end: signal.Signals, whose: str
) -> None:
    one, server = home
    port = new_mosquitto().port
    async with shown(configured(tmp_path, server, port), port, one.everything) as bridge:
        await bridge.stop(end)
    of_cloud = [one.one.id_group] if whose == "cloud" else []
    of_sink = [one.one.id_group] if whose == "sink" else []
    config = configured(tmp_path, server, port, watched=of_cloud, groups=of_sink)
    async with shown(config, port, BRIDGE | full(one.one)):
        pass


@pytest.mark.parametrize("whose", ["sink", "cloud", "base topic"])
async def test_a_reload_clears_what_is_not_wanted_any_more(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer], whose: str
) -> None:
    one, server = home
    port = new_mosquitto().port
    groups = [one.one.id_group]
    async with shown(configured(tmp_path, server, port), port, one.everything) as bridge:
        wanted = BRIDGE | full(one.one)
        match whose:
            case "sink":
                configured(tmp_path, server, port, groups=groups)
            case "cloud":
                configured(tmp_path, server, port, watched=groups)
            case _:
                configured(tmp_path, server, port, base_topic="bed")
                wanted = {topic.replace("bace/", "bed/") for topic in one.everything}
        bridge.process.send_signal(signal.SIGHUP)
        await keeps(port, lambda found: found.keys() == wanted, f"the topics {sorted(wanted)}")


async def test_a_topic_that_was_published_just_before_the_kill_is_known(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    """Without the right to read: then there is nothing but the ledger."""
    one, server = home
    acl = tmp_path / "acl"
    acl.write_text("topic write bace/#\ntopic read bace/bridge/request/+\nuser reader\ntopic readwrite #\n")
    mosquitto = new_mosquitto(f"acl_file {acl}")
    config = configured(tmp_path, server, mosquitto.port, home_assistant=WITHOUT_DISCOVERY)
    async with running(config) as bridge:
        with listening(mosquitto.port, username="reader") as listener:
            await until(lambda: bool(listener.on(f"bace/{one.other.id_group}/session")), within=60, what="the session")
            await bridge.stop(signal.SIGKILL)
    config = configured(tmp_path, server, mosquitto.port, watched=[one.one.id_group], home_assistant=WITHOUT_DISCOVERY)
    async with running(config) as bridge:
        with listening(mosquitto.port, username="reader") as listener:
            listener.caught_up()
            wanted = BRIDGE | full(one.one)
            await until(lambda: newest(listener).keys() == wanted, within=60, what="nothing of the other device")
            await until(lambda: "read" in degraded(listener), within=60, what="it says that it may not read")
        assert await bridge.stop() == 0


def newest(listener: Listener) -> Retained:
    found = {one.topic: one.payload for one in list(listener.heard) if of_state(one.topic)}
    return {topic: payload for topic, payload in found.items() if payload}


def degraded(listener: Listener) -> str:
    payloads = listener.payloads("bace/bridge/health")
    return str(json.loads(payloads[-1])["degraded"].get("retained:home", "")) if payloads else ""


async def test_another_base_topic_leaves_nothing_below_the_old_one(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    port = new_mosquitto().port
    async with shown(configured(tmp_path, server, port), port, one.everything):
        pass
    there = {topic.replace("bace/", "hall/bed/") for topic in one.everything}
    async with shown(configured(tmp_path, server, port, base_topic="hall/bed"), port, there):
        pass
    async with shown(configured(tmp_path, server, port, name="house"), port, one.everything):
        pass


async def test_a_lost_store_leaves_no_ghosts(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    port = new_mosquitto().port
    config = configured(tmp_path, server, port)
    async with shown(config, port, one.everything):
        pass
    one.cloud.end_session(one.sessions[one.other.id_group])
    one.cloud.finish_ingestion(one.sessions[one.other.id_group])
    for file in tmp_path.glob("bridge.db*"):
        file.unlink()
    with listening(port) as listener:
        listener.publish("bace/g_1/session", b"{}", retain=True)  # an id with a slash, of an earlier version
        listener.publish("bace/kitchen/light", b"on", retain=True)
    foreign = {"bace/kitchen/light"}
    async with shown(config, port, BRIDGE | foreign | full(one.one)):
        pass


@pytest.mark.parametrize("named", ["another", "nobody", "no info"])
async def test_topics_that_are_not_known_go_only_where_the_base_topic_is_not_another_bridge_s(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer], named: str
) -> None:
    one, server = home
    port = new_mosquitto().port
    payload = {"another": b'{"version":"1","installation":"0badcafe"}', "nobody": b'{"version":"1"}', "no info": b""}
    with listening(port) as listener:
        listener.publish("bace/bridge/info", payload[named], retain=True)
        listener.publish("bace/ghost/session", b"{}", retain=True)
        listener.publish("bace/ghost/latest/src/6000", b"{}", retain=True)
    config = configured(tmp_path, server, port)
    if named != "another":
        async with shown(config, port, one.everything):
            pass
        return
    for number in (1, 2):
        async with running(config) as bridge:
            found = await keeps(port, lambda found: any("/guest/" in topic for topic in found), "it is a guest")
            assert found["bace/bridge/info"] == payload["another"]
            assert {"bace/ghost/session", "bace/ghost/latest/src/6000"} <= found.keys()
            await says(bridge, "mqtt.base_topic_shared", times=number)
            assert "0badcafe" in bridge.log
            assert await bridge.stop() == 0


async def test_two_bridges_on_one_base_topic_leave_each_other_s_topics_alone(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    port = new_mosquitto().port
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    devices = (one.one, one.other)
    configs = [
        configured(folder, server, port, watched=[device.id_group])
        for folder, device in zip(folders, devices, strict=True)
    ]
    async with running(configs[0]) as first:
        before = await keeps(port, lambda found: found.keys() == BRIDGE | full(one.one), "the first one's topics")
        for number in (1, 2):
            async with running(configs[1]) as second:
                await keeps(port, lambda found: found.keys() > one.everything, "both one's topics")
                await says(second, "mqtt.base_topic_shared", times=number)
                await keeps(port, lambda found: any("/bridge/guest/" in one for one in found), "the guest's name")
                assert await second.stop() == 0
            found = await keeps(
                port, lambda found: found.get("bace/bridge/state") == b"online", "the first one goes on"
            )
            assert found["bace/bridge/info"] == before["bace/bridge/info"]
            assert ids_in(found["bace/bridge/devices"]) == {one.one.id_group}
            assert full(one.one) <= found.keys()
        await says(first, "mqtt.foreign_message")
        assert await first.stop() == 0
    async with running(configs[0]) as first:
        await says(first, "mqtt.base_topic_shared")
        await asyncio.sleep(QUIET)  # in which it would clear them
        assert await first.stop() == 0
    assert one.everything <= (await retained(port)).keys()


async def test_where_another_bridge_leaves_the_devices_of_this_one_are_online_again(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    port = new_mosquitto().port
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    configs = [configured(folder, server, port) for folder in folders]
    availability = {f"bace/{device.id_group}/availability" for device in (one.one, one.other)}
    async with running(configs[0]) as first:
        await keeps(port, lambda found: found.keys() == one.everything, "the first one's topics")
        with listening(port) as listener:
            async with running(configs[1]) as second:
                await says(second, "mqtt.base_topic_shared")
                assert await second.stop() == 0
            listener.caught_up()
            offline = {one.topic for one in listener.heard if one.payload == b"offline"}
            assert availability <= offline, "so it has said goodbye"
        await keeps(port, lambda found: all(found.get(topic) == b"online" for topic in availability), "they are online")
        assert await first.stop() == 0


async def test_state_that_was_refused_is_published_when_the_access_rules_allow_it(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite bace/#\ntopic deny bace/+/session\nuser reader\ntopic readwrite #\n")
    mosquitto = new_mosquitto(f"acl_file {acl}")
    topic = f"bace/{one.one.id_group}/session"
    with listening(mosquitto.port, username="reader") as listener:
        listener.publish(topic, b'{"state":"active"}', retain=True)
        config = configured(tmp_path, server, mosquitto.port, home_assistant=WITHOUT_DISCOVERY)
        async with running(config) as bridge:
            await until(lambda: topic in degraded(listener), within=60, what="it is in `degraded`")
            assert listener.payloads(topic) == [b'{"state":"active"}']
            assert len(listener.on(f"bace/{one.one.id_group}/availability")) > 0
            one.cloud.end_session(one.sessions[one.one.id_group])
            acl.write_text("topic readwrite bace/#\nuser reader\ntopic readwrite #\n")
            mosquitto.reload()
            await until(lambda: b'"ended"' in (listener.newest(topic) or b""), within=120, what="the true state")
            await until(lambda: degraded(listener) == "", within=60, what="nothing is degraded any more")
            assert await bridge.stop() == 0
        assert bridge.log.count('"mqtt.state_refused"') == 2


async def test_a_source_device_that_is_no_topic_stops_nothing(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    for name, series in list(one.cloud.series.items()):
        if series.id_group == one.one.id_group:
            one.cloud.series[name] = replace(series, source_device="dev\uffff")
    port = new_mosquitto().port
    odd = f"bace/{one.one.id_group}/latest/dev%EF%BF%BF/6000"
    expected = {topic for topic in one.everything if not topic.startswith(f"bace/{one.one.id_group}/latest")} | {odd}
    async with shown(configured(tmp_path, server, port), port, expected) as bridge:
        found = await retained(port)
        assert json.loads(found[odd])["source_device"] == "dev\uffff"
    assert bridge.log.count("mqtt.connected") == 1


async def test_a_foreign_offline_is_answered_and_not_too_often(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    port = new_mosquitto().port
    async with shown(configured(tmp_path, server, port), port, one.everything) as bridge:
        with listening(port) as listener:
            for _ in range(5):
                listener.publish("bace/bridge/state", b"offline", retain=True)
            await until(lambda: listener.newest("bace/bridge/state") == b"online", within=60, what="the answer")
            for _ in range(50):
                listener.publish("bace/bridge/state", b"offline", retain=True)
            online = listener.payloads("bace/bridge/state").count(b"online")
            await until(
                lambda: listener.payloads("bace/bridge/state").count(b"online") > online, within=60, what="another one"
            )
            assert listener.payloads("bace/bridge/state").count(b"online") <= 4
        assert bridge.log.count('"mqtt.foreign_message"') == 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_bridge_far_from_its_broker_is_offline_after_an_orderly_stop(
    new_mosquitto: NewMosquitto, tmp_path: Path, protocol: str
) -> None:
    """110 devices, ten messages in flight, and each piece takes half a second."""
    cloud = SimulatedCloud()
    for number in range(110):
        cloud.open_session(cloud.add_device(f"BaceGo-{number}").id_group)
    port = new_mosquitto().port
    async with SimulatedServer(cloud) as server, proxy_to(port) as proxy:
        config = configured(tmp_path, server, proxy.port, protocol=protocol, max_in_flight=10)
        async with running(config) as bridge:
            await keeps(port, lambda found: sum("session" in one for one in found) == 110, "all devices")
            proxy.switch(Fault.DELAY, delay=0.5)
            assert await bridge.stop() == 0
            assert "Traceback" not in bridge.log
        await keeps(port, is_offline, "it is offline")
