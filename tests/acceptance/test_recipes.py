"""The recipes of the README, taken from its text: what is printed there runs."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.sinks.mqtt.topics import Topics
from tests.acceptance.line import SECRET, configuration, running, until
from tests.integration.brokers import Broker, free_port, listening

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MQTT_PAGE = (ROOT / "docs" / "mqtt.md").read_text(encoding="utf-8")


def block(text: str, language: str, containing: str) -> str:
    """The one fenced block of this language that contains this text."""
    found = [
        one for one in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if containing in one
    ]
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
                await until(lambda: "mqtt.connected" in bridge.log, within=30, what="connected")
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
async def running_flow(folder: Path, broker: int) -> AsyncIterator[Path]:
    """Node-RED with the flow of the documentation; yields its log. What the flow shows goes to `seen/<node>`, too."""
    program = node_red()
    if program is None:
        pytest.skip("needs Node-RED: make test-node-red installs it with npm")
    flow = json.loads(FLOW.read_text(encoding="utf-8"))
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


async def test_the_node_red_flow(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "node-red").mkdir()
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    series = device.series[0]
    newest = f"bace/{device.id_group}/latest/{series.source_device}/6000"
    with listening(broker.port, "#") as listener:

        def events() -> list[dict[str, Any]]:
            return [
                json.loads(one.payload)
                for one in list(listener.heard)
                if one.topic.endswith(f"{device.id_group}/event")
            ]

        def seen(node: str) -> list[Any]:
            return [json.loads(one) for one in listener.payloads(f"seen/{node}")]

        def shows(running: bool | None) -> bool:
            return seen("devices")[-1:] == [[{"id": device.id_group, "label": "BaceGo-1", "running": running}]]

        def sessions(node: str) -> list[str]:
            return [one["session"]["id"] for one in seen(node)]

        async def measure(session: str, value: float) -> None:
            cloud.add_points(session, series.id_container_data_latest, [(cloud.clock(), value)])
            text = f'"avg":{value}'.encode()
            await until(lambda: any(text in one for one in listener.payloads(newest)), within=60, what=str(value))

        async def finish(session: str, *, replayed: bool = False) -> None:
            def is_its_csv(event: dict[str, Any]) -> bool:
                over = event["event_type"] == "session.csv_ready" and event["session"]["id"] == session
                return over and event.get("replay", False) is replayed

            if replayed:
                listener.publish("bace/bridge/request/replay", json.dumps({"session": session}).encode())
            else:
                cloud.end_session(session)
                cloud.finish_ingestion(session)
            await until(lambda: any(map(is_its_csv, events())), within=60, what="the CSV")

        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(SimulatedServer(cloud))
            config = configuration(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
            bridge = await stack.enter_async_context(running(config))
            await until(lambda: "mqtt.connected" in bridge.log, within=60, what="the bridge is connected")
            earlier = cloud.open_session(device.id_group)
            await measure(earlier, 150.0)
            await finish(earlier)
            log = await stack.enter_async_context(running_flow(tmp_path / "node-red", broker.port))
            await until(lambda: shows(False), within=60, what="Node-RED has what is retained")
            await finish(earlier, replayed=True)
            first = cloud.open_session(device.id_group)
            await until(lambda: shows(True), within=60, what="it runs")
            for value in (61.5, 131.4, 140.5, 115.5, 130.5, 90.5, 125.5):
                await measure(first, value)
            await finish(first)
            await finish(first, replayed=True)
            following = cloud.open_session(device.id_group)
            await until(lambda: sessions("started")[-1:] == [following], within=60, what="the next one")
            assert sessions("started") == [first, following], "a replay went through"
            assert sessions("ended") == sessions("csv") == [first]
            alerts = [one["text"] for one in seen("alert")]
            assert alerts == [f"BaceGo-1: heart rate {bpm} bpm" for bpm in (131, 126)]
            await bridge.stop(signal.SIGKILL)
            await until(lambda: shows(None), within=60, what="without the bridge it is unknown")
            assert "[error]" not in log.read_text()


SENSOR = {
    "name", "unique_id", "state_topic", "value_template", "json_attributes_topic", "availability_mode", "availability",
    "device_class",
}  # fmt: skip
KEYS = {
    "binary_sensor": SENSOR | {"payload_on", "payload_off"},
    "sensor": SENSOR | {"unit_of_measurement", "state_class"},
}
"""Keys of Home Assistant's MQTT documentation; it refuses all others."""


@pytest.mark.parametrize("text", [README, MQTT_PAGE], ids=["README.md", "docs/mqtt.md"])
def test_the_yaml_for_home_assistant(text: str) -> None:
    document: dict[str, Any] = yaml.safe_load(block(text, "yaml", "binary_sensor"))
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
