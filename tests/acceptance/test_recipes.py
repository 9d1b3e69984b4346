"""The recipes of the README and the docs, taken from their text: what is printed there runs."""

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.sinks.mqtt.topics import Topics
from tests.acceptance.line import SECRET, Process, configuration, running, until
from tests.integration.brokers import Broker, Listener, free_port, listening

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENHAB_PAGE = (ROOT / "docs" / "openhab.md").read_text(encoding="utf-8")
MQTT_PAGE = (ROOT / "docs" / "mqtt.md").read_text(encoding="utf-8")


def block(text: str, language: str, containing: str) -> str:
    """The one fenced block of this language that contains this text."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = [one for spelled, one in fenced if spelled == language and containing in one]
    assert len(found) == 1, containing
    return str(found[0])


async def test_the_webhook_receiver(tmp_path: Path) -> None:
    (tmp_path / "receiver.py").write_text(block(README, "python", "BaseHTTPRequestHandler"))
    port, cloud = free_port(), SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    for number in range(20):
        session = cloud.open_session(device.id_group, label=f"Walk {number}")
        cloud.end_session(session)
        cloud.finish_ingestion(session)
    receiver = await asyncio.create_subprocess_exec(
        sys.executable, tmp_path / "receiver.py",
        env={**os.environ, "PORT": str(port), "WEBHOOK_SECRET": SECRET}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed: list[str] = []

    async def read() -> None:
        assert receiver.stdout is not None
        while line := await receiver.stdout.readline():
            printed.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        async with SimulatedServer(cloud) as server:
            url = f"http://127.0.0.1:{port}/"
            config = configuration(tmp_path, cloud_url=server.url, hook_url=url, start_from="all")
            async with running(config):
                await until(lambda: len(printed) >= 60, within=60, what="three events of each data session")
            whole = re.compile(
                r"bace\.session\.(started|ended) [-0-9a-f]{36} \n|bace\.session\.csv_ready [-0-9a-f]{36} http\S+\n"
            )
            assert all(map(whole.fullmatch, printed)), printed
            async with aiohttp.ClientSession() as client, client.post(url, data=b"{}") as unsigned:
                assert unsigned.status == 401
    finally:
        receiver.kill()
        await receiver.wait()
        await reading


async def test_the_terminal(broker: Broker, tmp_path: Path) -> None:
    if shutil.which("mosquitto_sub") is None or shutil.which("jq") is None:
        pytest.skip("needs mosquitto_sub and jq")
    first, second = block(README, "sh", "jq -r").splitlines()
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server:
        config = configuration(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        outputs = [tmp_path / "first", tmp_path / "second"]
        shells = []
        for line, output in zip((first, second), outputs, strict=True):
            output.touch()
            here = line.replace("-h localhost", f"-h 127.0.0.1 -p {broker.port}").replace("jq -r", "jq --unbuffered -r")
            shells.append(await asyncio.create_subprocess_shell(f"{here} > {output}", start_new_session=True))
        try:
            async with running(config) as bridge:
                await until(lambda: "mqtt.connected" in bridge.log, within=60, what="connected")
                with listening(broker.port, "nothing") as other:

                    def is_shown() -> bool:
                        other.publish("bace/other/event", b'{"event_type":"another"}')
                        return "another" in outputs[0].read_text()

                    await until(is_shown, within=60, what="that the terminal listens")
                session = cloud.open_session(device.id_group)
                series = device.series[0].id_container_data_latest
                cloud.add_points(session, series, [(cloud.clock(), 61.0)])
                await until(lambda: "session.started  BaceGo-1" in outputs[0].read_text(), within=60, what="the event")
                await until(lambda: '"avg":61' in outputs[1].read_text(), within=60, what="the newest value")
        finally:
            for shell in shells:
                os.killpg(shell.pid, 9)
                await shell.wait()


FLOW = ROOT / "docs" / "node-red.json"


def test_the_node_red_flow_has_no_loose_ends_and_no_secret() -> None:
    flow = {node["id"]: node for node in json.loads(FLOW.read_text(encoding="utf-8"))}
    wired = {target for node in flow.values() for output in node.get("wires", ()) for target in output}
    assert wired <= flow.keys()
    topics = Topics("bace")
    assert {node["topic"] for node in flow.values() if node["type"] == "mqtt in"} == {
        topics.bridge_state,
        *topics.states_of_devices[:2],
        "bace/+/event",
        "bace/+/datapoints",
    }
    for node in flow.values():
        assert node["type"] in {"tab", "comment", "mqtt-broker", "mqtt in", "function", "switch", "debug"}
        assert "credentials" not in node
        if node["type"] == "switch":
            assert len(node["rules"]) == node["outputs"] == len(node["wires"])
            assert {f"session.{one}" for one in ("started", "ended", "csv_ready")} == {x["v"] for x in node["rules"]}


def node_red() -> str | None:
    """Where `make test-node-red` has installed it, or the system's."""
    own = Path(sys.prefix) / "node-red" / "node_modules" / ".bin" / "node-red"
    return str(own) if own.exists() else shutil.which("node-red")


@asynccontextmanager
async def running_flow(folder: Path, broker: int, flow: list[dict[str, Any]]) -> AsyncIterator[Path]:
    """Node-RED with a flow of the documentation; yields its log. What the flow shows goes to `seen/<node>`, too."""
    program = node_red()
    if program is None:
        pytest.skip("needs Node-RED: make test-node-red installs it with npm")
    for node in flow:
        if node["type"] == "mqtt-broker":
            node["port"] = str(broker)
        if node["type"] == "debug":
            topic = f"seen/{node['id'].removeprefix('bace-')}"
            node |= {"type": "mqtt out", "broker": "bace-broker", "topic": topic, "qos": "1", "retain": "false"}
    (folder / "flow.json").write_text(json.dumps(flow))
    settings = {"uiHost": "127.0.0.1", "uiPort": free_port(), "telemetry": {"enabled": False}, "flowFile": "flow.json"}
    (folder / "settings.js").write_text(f"module.exports = {json.dumps(settings)};")
    log = folder / "node-red.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            program, "--userDir", folder, "--settings", folder / "settings.js",
            stdout=out, stderr=out, start_new_session=True, env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip
    try:
        yield log
    finally:
        os.killpg(process.pid, 9)
        await process.wait()


class Home:
    """A device of the simulated cloud, a running bridge, and what its broker delivers."""

    def __init__(self, cloud: SimulatedCloud, listener: Listener, bridge: Process, store: Path) -> None:
        self.cloud = cloud
        self.device = cloud.add_device("BaceGo-1")
        self.source = self.device.series[0].source_device
        self.listener = listener
        self.bridge = bridge
        self._store = store

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.listener.payloads(f"bace/{self.device.id_group}/event")]

    async def measure(self, session: str, value: float) -> None:
        """Adds a heart rate, and waits until it is the newest."""
        self.cloud.add_points(session, self.device.series[0].id_container_data_latest, [(self.cloud.clock(), value)])
        topic, text = f"bace/{self.device.id_group}/latest/{self.source}/6000", f'"avg":{value}'.encode()
        await until(lambda: any(text in one for one in self.listener.payloads(topic)), within=60, what=str(value))

    async def finish(self, session: str) -> None:
        """Returns when all is delivered and recorded as such: until then a replay would not be marked as one."""
        self.cloud.end_session(session)
        self.cloud.finish_ingestion(session)
        await self._csv_of(session)

        def is_recorded() -> bool:
            with closing(sqlite3.connect(f"file:{self._store}?mode=ro", uri=True)) as connection:
                return not connection.execute("select 1 from lanes").fetchall()

        await until(is_recorded, within=60, what="its deliveries are recorded")

    async def replay(self, session: str) -> None:
        self.listener.publish("bace/bridge/request/replay", json.dumps({"session": session}).encode())
        await self._csv_of(session, replayed=True)

    async def _csv_of(self, session: str, *, replayed: bool = False) -> None:
        """Waits for the last event of a data session."""
        wanted = ("session.csv_ready", session, replayed)
        await until(
            lambda: wanted in [(one["event_type"], one["session"]["id"], "replay" in one) for one in self.events()],
            within=60,
            what="the CSV",
        )


@asynccontextmanager
async def at_home(folder: Path, port: int, **mqtt: Any) -> AsyncIterator[Home]:
    """`mqtt` are further keys of the broker."""
    cloud = SimulatedCloud()

    def at(server: SimulatedServer) -> Path:
        path = configuration(folder, cloud_url=server.url, mqtt_port=port)
        settings = json.loads(path.read_text())
        settings["mqtt"][0] |= mqtt
        path.write_text(json.dumps(settings))
        return path

    with listening(port, "#") as listener:
        async with SimulatedServer(cloud) as server, running(at(server)) as bridge:
            await until(lambda: "mqtt.connected" in bridge.log, within=60, what="the bridge is connected")
            yield Home(cloud, listener, bridge, folder / "bridge.db")


async def test_the_node_red_flow(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "node-red").mkdir()
    async with at_home(tmp_path, broker.port) as home:
        device = home.device.id_group

        def seen(node: str) -> list[Any]:
            return [json.loads(one) for one in home.listener.payloads(f"seen/{node}")]

        def shows(running: bool | None) -> bool:
            return seen("devices")[-1:] == [[{"id": device, "label": "BaceGo-1", "running": running}]]

        def sessions(node: str) -> list[str]:
            return [one["session"]["id"] for one in seen(node)]

        earlier = home.cloud.open_session(device)
        await home.measure(earlier, 150.0)
        await home.finish(earlier)
        async with running_flow(tmp_path / "node-red", broker.port, json.loads(FLOW.read_text())) as log:
            await until(lambda: shows(False), within=60, what="Node-RED has what is retained")
            await home.replay(earlier)
            first = home.cloud.open_session(device)
            await until(lambda: shows(True), within=60, what="it runs")
            for value in (61.5, 131.4, 140.5, 115.5, 130.5, 90.5, 125.5):
                await home.measure(first, value)
            await home.finish(first)
            await home.replay(first)
            following = home.cloud.open_session(device)
            await until(lambda: sessions("started")[-1:] == [following], within=60, what="the next one")
            assert sessions("started") == [first, following], "a replay went through"
            assert sessions("ended") == sessions("csv") == [first]
            alerts = [one["text"] for one in seen("alert")]
            assert alerts == [f"BaceGo-1: heart rate {bpm} bpm" for bpm in (131, 126)]
            await home.bridge.stop(signal.SIGKILL)
            await until(lambda: shows(None), within=60, what="without the bridge it is unknown")
            assert "[error]" not in log.read_text()


THING = re.compile(r'^ *(?:Bridge|Thing) (?P<type>\S+) (?:(?P<id>\S+) )?"[^"]+"(?P<options>[^\n]*) \{$')
CHANNEL = re.compile(r'^ *Type (?P<type>\w+) +: (?P<id>\w+) +"[^"]+" +\[ (?P<options>.+) \]$')
OPTION = re.compile(r'(\w+)=("[^"]*"|\d+|true|false)(?:, | \]|$)')
ITEM = re.compile(r'^(?P<type>\w+) +(?P<name>\w+) +"[^"]+"(?: +\{ channel="(?P<channel>[\w:]+)" \})?$')
ITEM_TYPES = {"switch": "Switch", "string": "String", "number": "Number", "datetime": "DateTime"}


class Channel(NamedTuple):
    """A channel of a things file, with the topics of its options and of its thing."""

    type: str
    options: dict[str, str]
    availability: str | None

    def state(self, payload: bytes, mapping: Mapping[str, str]) -> object:
        """What openHAB makes of a message: raises where it would log an error."""
        value: Any = payload.decode()
        for step in filter(None, self.options.get("transformationPattern", "").split("\N{INTERSECTION}")):
            service, _, argument = step.partition(":")
            if service == "JSONPATH":
                value = json.loads(value)
                for key in argument.removeprefix("$.").split("."):
                    value = value[key]
            else:
                assert (service, argument) == ("MAP", "bace.map")
                value = mapping.get(value, mapping[""])
        if self.type == "switch":
            return {self.options.get("on", "ON"): True, self.options.get("off", "OFF"): False}[value]
        if "allowedStates" in self.options:
            assert value in self.options["allowedStates"].split(",")
        if self.type == "number":
            return float(value)
        return datetime.fromisoformat(value) if self.type == "datetime" else str(value)


def channels(text: str) -> dict[str, Channel]:
    """The channels of a things file by their UIDs. Each line must be one that openHAB reads."""
    found: dict[str, Channel] = {}
    broker, thing, availability = "", "", None
    for line in text.splitlines():
        if opened := THING.match(line):
            options = {key: value.strip('"') for key, value in OPTION.findall(opened["options"])}
            if opened["id"] is None:
                broker = opened["type"].removeprefix("mqtt:broker:")
                assert options.keys() == {"host", "port", "secure"}
            else:
                thing, availability = f"mqtt:{opened['type']}:{broker}:{opened['id']}", options.get("availabilityTopic")
                assert options.keys() <= {"availabilityTopic", "payloadAvailable", "payloadNotAvailable"}
        elif channel := CHANNEL.match(line):
            options = {key: value.strip('"') for key, value in OPTION.findall(channel["options"])}
            assert len(options) == channel["options"].count("="), line
            assert options.keys() <= {"stateTopic", "transformationPattern", "allowedStates", "on", "off", "trigger"}
            found[f"{thing}:{channel['id']}"] = Channel(channel["type"], options, availability)
        else:
            assert line.strip() in {"Channels:", "}"}, line
    assert text.count("{") == text.count("}")
    return found


RUN_RULES = """
const all = [], said = [], states = {};
globalThis.rules = { JSRule: (rule) => all.push(rule) };
globalThis.triggers = { ChannelEventTrigger: (id) => "channel " + id, ItemStateChangeTrigger: (id) => "item " + id };
const item = (name) => ({ state: states[name], postUpdate: (text) => said.push([name, text]) });
globalThis.items = { getItem: item };
require(process.argv[2]);
for (const [trigger, event] of JSON.parse(require("fs").readFileSync(0))) {
  if (event.newState !== undefined) states[trigger.slice(5)] = event.newState;
  for (const rule of all.filter((one) => one.triggers.includes(trigger))) rule.execute(event);
}
console.log(JSON.stringify({ triggers: all.flatMap((one) => one.triggers), said }));
"""


async def test_the_files_for_openhab(broker: Broker, tmp_path: Path) -> None:
    async with at_home(tmp_path, broker.port) as home:
        device, listener = home.device.id_group, home.listener
        page = OPENHAB_PAGE.replace("DEVICE", device).replace("SOURCE", home.source)
        mapping = dict(line.split("=") for line in block(page, "", "active=ON").splitlines())
        found = channels(block(page, "", "Bridge mqtt:broker"))
        changes: list[tuple[str, dict[str, str]]] = []

        def state(name: str) -> object:
            channel = found[f"mqtt:topic:home:{name}"]
            return channel.state(listener.payloads(channel.options["stateTopic"])[-1], mapping)

        def change(item: str, new: object, old: object = "NULL") -> None:
            changes.append((f"item {item}", {"oldState": str(old), "newState": str(new)}))

        session = home.cloud.open_session(device, label="Walk")
        for value in (61.5, 131.4):
            await home.measure(session, value)
        await until(lambda: state("bace:state") == "active", within=60, what="its state")
        for name, channel in found.items():
            payloads = listener.payloads(channel.options["stateTopic"])
            assert payloads, f"{name} has a topic that the bridge does not publish"
            assert channel.availability in {None, f"bace/{device}/availability"}
            assert "trigger" in channel.options or [channel.state(one, mapping) for one in payloads]
        assert (state("bridge:online"), state("bace:running"), state("bace:label")) == (True, True, "Walk")
        assert (state("bace:heart"), listener.payloads(f"bace/{device}/availability")[-1]) == (131.4, b"online")
        await home.finish(session)
        await until(lambda: state("bace:running") is False, within=60, what="it has ended")
        await home.replay(session)

        items = [match for line in block(page, "", "BACE_Online").splitlines() if (match := ITEM.match(line))]
        assert len(items) == len(block(page, "", "BACE_Online").splitlines())
        assert {one["channel"] for one in items} - {None} == {
            uid for uid, channel in found.items() if "trigger" not in channel.options
        }
        assert all(one["channel"] is None or ITEM_TYPES[found[one["channel"]].type] == one["type"] for one in items)

        events = listener.payloads(f"bace/{device}/event")
        heart: list[tuple[object, object]]
        heart = [("NULL", 61.5), (61.5, 131.4), (131.4, 140.0), (140.0, "UNDEF"), ("UNDEF", 125.0)]
        for running in ("NULL", "ON"):  # without effect until it runs
            change("BACE_Running", running)
            for old, new in heart:
                change("BACE_HeartRate", new, old)
        event_channel = "channel mqtt:topic:home:bace:event"
        arrived = [(event_channel, {"receivedEvent": one.decode()}) for one in events]
        script = block(page, "js", "JSRule")
        replays = [one for one in arrived if '"replay":true' in one[1]["receivedEvent"]]
        assert replays
        assert rules_with(tmp_path, script, replays)["said"] == []
        result = rules_with(tmp_path, script, [*arrived, *arrived, *changes])
        known = {f"item {one['name']}" for one in items} | {f"channel {uid}" for uid in found}
        assert set(result["triggers"]) <= known
        csv = f"{home.events()[-1]['csv']['url']}"
        said = ["Walk has ended", f"CSV of Walk: {csv}", "Heart rate 131 bpm", "Heart rate 125 bpm"]
        assert result["said"] == [["BACE_Message", one] for one in said]


async def test_openhab_finds_a_topic_for_each_component(broker: Broker, tmp_path: Path) -> None:
    given = yaml.safe_load(block(OPENHAB_PAGE, "yaml", "mode: component"))["mqtt"][0]
    async with at_home(tmp_path, broker.port, home_assistant=given["home_assistant"]) as home:
        session = home.cloud.open_session(home.device.id_group)
        await home.measure(session, 61.5)

        def found() -> set[str]:
            topics = {one.topic for one in list(home.listener.heard) if one.payload}
            return {topic for topic in topics if topic.startswith("homeassistant/")}

        heart = f"homeassistant/sensor/bace_{home.device.id_group}/{home.source}_6000/config"
        await until(lambda: heart in found(), within=60, what="the heart rate is announced")
        # As openHAB up to 5.1 reads them: <prefix>/<component>/<node>/<object>/config.
        assert all(re.fullmatch(r"homeassistant/(?!device/)\w+/[\w-]+/[\w-]+/config", one) for one in found())
        for topic in found():
            payload = json.loads(home.listener.payloads(topic)[-1])
            assert {"dev", "o"} <= payload.keys(), topic
            assert "uniq_id" in payload or "/device_automation/" in topic


def rules_with(folder: Path, script: str, given: object) -> dict[str, Any]:
    """What the rules say when this happens; openHAB's objects are replaced by a few lines."""
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.skip("the rules need node; things and items are right")
    (folder / "bace.js").write_text(script)
    (folder / "run.js").write_text(RUN_RULES)
    done = subprocess.run(
        [node, folder / "run.js", folder / "bace.js"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


SENSOR = {
    "name", "unique_id", "state_topic", "value_template", "json_attributes_topic", "availability_mode", "availability",
    "device_class",
}  # fmt: skip
KEYS = {
    "binary_sensor": SENSOR | {"payload_on", "payload_off"},
    "sensor": SENSOR | {"unit_of_measurement", "state_class"},
}
"""Keys of Home Assistant's MQTT documentation; it refuses all others."""


def test_the_yaml_for_home_assistant() -> None:
    document: dict[str, Any] = yaml.safe_load(block(MQTT_PAGE, "yaml", "binary_sensor"))
    assert set(document) == {"mqtt", "automation bace"}  # a bare "automation:" would replace the stock include
    for platform, entities in document["mqtt"].items():
        for entity in entities:
            assert {"name", "unique_id", "state_topic"} <= set(entity) <= KEYS[platform]
    for automation in document["automation bace"]:
        assert set(automation) == {"alias", "triggers", "conditions", "actions"}
        assert "trigger.payload_json.replay" in automation["conditions"]
        for trigger in automation["triggers"]:
            assert set(trigger) <= {"trigger", "topic", "value_template", "payload"}
            assert "+" not in trigger["topic"]
        assert [action["action"] for action in automation["actions"]] == ["persistent_notification.create"]
