"""What Home Assistant finds at the broker, over the real process and a real Mosquitto: nothing is left behind."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, running, until
from tests.integration.brokers import Listener, listening
from tests.integration.test_mqtt_sink import NewMosquitto

QUIET = 0.5


class Place:
    """Two devices, each with an active data session of one series; a broker, and the configuration of a bridge."""

    def __init__(self, folder: Path, cloud: SimulatedCloud, url: str, port: int) -> None:
        self.cloud = cloud
        self.one, self.other = cloud.add_device("BaceGo-1"), cloud.add_device("BaceGo-2")
        self.sessions = {one.id_group: cloud.open_session(one.id_group) for one in (self.one, self.other)}
        for device in (self.one, self.other):
            self.measure(device)
        self.port = port
        self._folder = folder
        self._url = url

    def measure(self, device: Device, value: float = 60.0) -> None:
        series = device.series[0].id_container_data_latest
        self.cloud.add_points(self.sessions[device.id_group], series, [(time.time(), value)])

    def configured(
        self, *, watched: Any = (), datatypes: Any = None, hook: str | None = None, other: Any = None, **mqtt: Any
    ) -> Path:
        """`watched` are the groups of the cloud; `mqtt` are keys of the sink, `other` of another one at its broker."""
        extra = {"cloud": {"groups": list(watched)}}
        path = configuration(self._folder, cloud_url=self._url, mqtt_port=self.port, hook_url=hook, extra=extra)
        settings = json.loads(path.read_text())
        settings["mqtt"][0] |= mqtt
        if other is not None:
            settings["mqtt"].append(settings["mqtt"][0] | {"name": "other", "base_topic": "bed"} | other)
        settings["watch"]["recheck_interval"] = "1s"  # a new name of a device shows by it
        path.write_text(json.dumps(settings | ({"datatypes": datatypes} if datatypes else {})))
        return path

    def topic(self, device: Device, prefix: str = "homeassistant") -> str:
        return f"{prefix}/device/bace_{device.id_group}/config"


@pytest.fixture
async def place(new_mosquitto: NewMosquitto, tmp_path: Path) -> Any:
    cloud = SimulatedCloud()
    async with SimulatedServer(cloud) as server:
        yield Place(tmp_path, cloud, server.url, new_mosquitto().port)


Kept = dict[str, bytes]


def kept(listener: Listener) -> Kept:
    """The newest of each topic that is not of the bridge's own topics."""
    newest = {one.topic: one.payload for one in list(listener.heard)}
    return {topic: payload for topic, payload in newest.items() if payload and topic.endswith("/config")}


def of_bridge(found: Kept) -> str:
    (topic,) = (one for one in found if "/bace_bridge_" in one)
    return topic


def keys(payload: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(payload)["cmps"]
    return found


async def becomes(place: Place, condition: Callable[[Kept], bool], what: str) -> Kept:
    with listening(place.port) as listener:
        listener.caught_up()  # or a part of what is kept would be taken for all of it
        try:
            await until(lambda: condition(kept(listener)), within=60, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}; kept are {sorted(kept(listener))}") from None
        listener.caught_up()
        return kept(listener)


def has(place: Place, *devices: Device, prefix: str = "homeassistant") -> Callable[[Kept], bool]:
    """The bridge, and these devices with their series."""
    wanted = {place.topic(one, prefix): f"{one.sources[0]}_6000" for one in devices}

    def condition(found: Kept) -> bool:
        if not all(topic in found and series in keys(found[topic]) for topic, series in wanted.items()):
            return False
        others = found.keys() - wanted.keys()
        return len(others) == 1 and next(iter(others)).startswith(f"{prefix}/device/bace_b")

    return condition


async def test_a_device_that_is_switched_on_is_announced_before_its_first_event(place: Place) -> None:
    with listening(place.port) as listener:
        async with running(place.configured()) as bridge:
            await becomes(place, has(place, place.one, place.other), "both devices, and the bridge")
            third = place.cloud.add_device("BaceGo-3")
            place.sessions[third.id_group] = place.cloud.open_session(third.id_group)
            events = f"bace/{third.id_group}/event"
            await until(lambda: bool(listener.on(events)), within=60, what="its first event")
            topics = [one.topic for one in list(listener.heard)]
            found = [place.topic(third), *(f"bace/{third.id_group}/{end}" for end in ("availability", "session"))]
            assert [topics.index(one) for one in (*found, events)] == sorted(
                topics.index(one) for one in (*found, events)
            )
            place.measure(third)
            await until(lambda: len(listener.on(place.topic(third))) == 2, within=60, what="its series")
            assert f"{third.sources[0]}_6000" in keys(listener.payloads(place.topic(third))[-1])
            assert await bridge.stop() == 0
    assert "Traceback" not in bridge.log


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    "change", ["groups", "cloud.groups", "enabled", "prefix", "base_topic", "mode", "name", "label"]
)
async def test_what_changed_while_the_bridge_was_down_leaves_nothing_behind(
    place: Place, end: signal.Signals, change: str
) -> None:
    async with running(place.configured()) as bridge:
        before = await becomes(place, has(place, place.one, place.other), "both devices, and the bridge")
        await bridge.stop(end)
    changed: dict[str, dict[str, Any]] = {
        "groups": {"groups": [place.one.id_group]},
        "cloud.groups": {"watched": [place.one.id_group]},
        "enabled": {"home_assistant": {"enabled": False}},
        "prefix": {"home_assistant": {"prefix": "ha"}},
        "base_topic": {"base_topic": "bed"},
        "mode": {"home_assistant": {"mode": "component"}},
        "name": {"name": "house"},
        "label": {},
    }
    wanted: dict[str, Callable[[Kept], bool]] = {
        "groups": has(place, place.one),
        "cloud.groups": has(place, place.one),
        "enabled": lambda found: not found,
        "prefix": has(place, place.one, place.other, prefix="ha"),
        "base_topic": has(place, place.one, place.other),
        "mode": lambda found: len(found) > 10 and not any("/device/" in one for one in found),
        "name": has(place, place.one, place.other),
        "label": lambda found: b'"name":"In the hall"' in found.get(place.topic(place.one), b""),
    }
    if change == "label":
        place.cloud.rename_device(place.one.id_group, "In the hall")
    base = "bed" if change == "base_topic" else "bace"
    with listening(place.port) as listener:
        async with running(place.configured(**changed[change])) as bridge:
            await until(
                lambda: any(not one.retained for one in listener.on(f"{base}/bridge/info")), within=60, what="its info"
            )
            after = await becomes(place, wanted[change], change)
            if change == "base_topic":
                assert not any(b'"bace/' in one for one in after.values())
            if change == "name":
                assert after[place.topic(place.one)] == before[place.topic(place.one)]
            assert await bridge.stop() == 0
    assert await becomes(place, wanted[change], f"{change} stays") == after
    assert "Traceback" not in bridge.log


async def test_a_name_of_a_datatype_changes_with_a_reload_and_no_connection_ends(place: Place) -> None:
    entity = f"{place.one.sources[0]}_6000"
    with listening(place.port) as listener:
        async with running(place.configured()) as bridge:
            topic = place.topic(place.one)
            found = await becomes(
                place, lambda found: topic in found and entity in keys(found[topic]), "the device with its series"
            )
            assert keys(found[topic])[entity]["name"] == "Heart rate"
            place.configured(datatypes={"6000": {"name": "Pulse", "unit": "1/min"}})
            bridge.process.send_signal(signal.SIGHUP)
            found = await becomes(place, lambda found: b'"Pulse"' in found.get(topic, b""), "its new name")
            assert keys(found[topic])[entity]["unit_of_meas"] == "1/min"
            assert not [one for one in listener.heard if one.payload == b"offline"]
            assert bridge.log.count("mqtt.connected") == 1
            assert await bridge.stop() == 0
        place.configured(datatypes={"6000": {"name": "Heartbeat"}})
        async with running(place.configured(datatypes={"6000": {"name": "Heartbeat"}})) as bridge:
            await becomes(place, lambda found: b'"Heartbeat"' in found.get(topic, b""), "a name that changed meanwhile")
            assert await bridge.stop() == 0


async def test_a_sink_that_a_reload_adds_or_takes_away_is_on_the_bridges_device(place: Place) -> None:
    async with running(place.configured()) as bridge:
        found = await becomes(place, has(place, place.one, place.other), "both devices, and the bridge")
        topic = of_bridge(found)
        place.configured(hook="http://127.0.0.1:9/hook")
        bridge.process.send_signal(signal.SIGHUP)
        await becomes(place, lambda found: b"backlog_hook" in found.get(topic, b""), "the other sink")
        with listening(place.port) as listener:
            place.configured()
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: len(listener.on(topic)) >= 4, within=60, what="it is removed, step by step")
            steps = [keys(one).get("backlog_hook") for one in listener.payloads(topic)]
        assert [one and len(one) > 1 for one in steps] == [True, True, False, None]
        assert bridge.log.count("mqtt.connected") == 1
        assert await bridge.stop() == 0


@pytest.mark.parametrize("mode", ["device", "component"])
async def test_one_of_two_sinks_at_a_broker_that_announces_no_more_leaves_what_the_other_announces(
    place: Place, mode: str
) -> None:
    with listening(place.port) as listener:
        async with running(place.configured(other={"home_assistant": {"mode": mode}})) as bridge:
            topic = place.topic(place.one)
            await becomes(place, lambda found: topic in found, "both sinks have announced")
            await until(lambda: bool(listener.on("bed/bridge/info")), within=60, what="the other one is complete")
            before = len(listener.on("bed/bridge/info"))
            place.configured(other={"home_assistant": {"enabled": False, "mode": mode}})
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: len(listener.on("bed/bridge/info")) > before, within=60, what="it is complete again")
            await becomes(
                place, lambda found: not any("/device/" not in one for one in found), "nothing of its own is left"
            )
            assert b"" not in listener.payloads(topic)
            await becomes(
                place,
                lambda found: b'"bed/' not in found.get(topic, b'"bed/'),
                "what was overwritten is announced again",
            )
            assert await bridge.stop() == 0


async def test_a_value_of_the_last_session_does_not_come_to_life_with_the_next_one(place: Place) -> None:
    """The retained newest point goes when the next session starts, and its entity stays."""
    device = place.one
    latest, entity = f"bace/{device.id_group}/latest/{device.sources[0]}/6000", f"{device.sources[0]}_6000"
    with listening(place.port) as listener:
        async with running(place.configured()) as bridge:
            await until(lambda: bool(listener.on(latest)), within=60, what="its first point")
            place.cloud.end_session(place.sessions[device.id_group])
            place.cloud.finish_ingestion(place.sessions[device.id_group])
            session = f"bace/{device.id_group}/session"
            await until(lambda: b'"ingested"' in (listener.newest(session) or b""), within=60, what="its end")
            assert listener.newest(latest) != b"", "it stays until then"
            place.sessions[device.id_group] = place.cloud.open_session(device.id_group)
            await until(lambda: listener.newest(latest) == b"", within=60, what="it is cleared")
            assert entity in keys(listener.payloads(place.topic(device))[-1])
            place.measure(device, 71.0)
            await until(lambda: b"71" in (listener.newest(latest) or b""), within=60, what="the new session's point")
            assert await bridge.stop() == 0
    assert b'"b_' not in listener.payloads(place.topic(device))[-1]


async def test_home_assistant_that_starts_anew_is_answered(place: Place) -> None:
    with listening(place.port) as listener:
        async with running(place.configured()) as bridge:
            await until(lambda: bool(listener.on("bace/bridge/info")), within=60, what="everything")
            await becomes(place, has(place, place.one, place.other), "both devices, and the bridge")
            listener.caught_up()
            topic, session = place.topic(place.one), f"bace/{place.one.id_group}/session"
            announced, shown = len(listener.on(topic)), len(listener.on(session))
            listener.publish("homeassistant/status", b"online")
            await until(lambda: len(listener.on(topic)) > announced, within=60, what="its answer")
            await until(lambda: len(listener.on(session)) > shown, within=60, what="its state")
            await asyncio.sleep(QUIET)
            listener.caught_up()
            assert len(listener.on(topic)) == announced + 1
            assert await bridge.stop() == 0
