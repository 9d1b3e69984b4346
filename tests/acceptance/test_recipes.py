"""The recipes of the README, taken from its text: what is printed there runs."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, configuration, running, until
from tests.integration.brokers import Broker, free_port

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
MQTT_PAGE = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text(encoding="utf-8")


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


def test_the_node_red_flow_has_no_loose_ends() -> None:
    flow = json.loads(block(README, "json", "mqtt in"))
    ids = {node["id"] for node in flow}
    wired = {target for node in flow for output in node.get("wires", ()) for target in output}
    assert wired <= ids
    assert {node["broker"] for node in flow if node["type"] == "mqtt in"} <= ids
    for node in flow:
        if node["type"] == "switch":
            assert len(node["rules"]) == node["outputs"] == len(node["wires"])


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
