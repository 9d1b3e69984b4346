"""A new kind of sink is a folder and one line in the registry: the real process with one that it does not have."""

import json
import os
import shutil
import subprocess
import sys
from difflib import unified_diff
from filecmp import dircmp
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import bace_bridge
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, running, until
from tests.integration.brokers import free_port

PACKAGE = Path(bace_bridge.__file__).parent
FOLDER = Path(__file__).parent / "file_sink"
SEAL = "canary-4711"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package, with the folder in it, and its name in the registry."""
    house = tmp_path / "house"
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, house / "bace_bridge", ignore=leave_out)
    shutil.copytree(FOLDER, house / "bace_bridge" / "sinks" / "file", ignore=leave_out)
    registry = house / "bace_bridge" / "sinks" / "registry.py"
    registry.write_text(registry.read_text().replace('    "webhook",\n', '    "webhook",\n    "file",\n'))
    return house


def environment(house: Path) -> dict[str, str]:
    """`PYTHONSAFEPATH`: or else `-m` would find the package in the working directory first."""
    return {"PYTHONPATH": str(house), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def command(house: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bace_bridge", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment(house)},
    )


def with_files(folder: Path, *files: dict[str, Any], cloud_url: str = "http://127.0.0.1:1") -> Path:
    path = configuration(folder, cloud_url=cloud_url)
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": list(files)}))
    return path


def differing(found: dircmp[str], at: str = "") -> list[str]:
    only = [f"{at}{name}" for name in (*found.left_only, *found.right_only, *found.diff_files)]
    return only + [one for name, inner in found.subdirs.items() for one in differing(inner, f"{at}{name}/")]


def test_it_touches_one_line_outside_its_folder(house: Path) -> None:
    there = house / "bace_bridge"
    assert sorted(differing(dircmp(PACKAGE, there, ignore=["__pycache__"]))) == ["sinks/file", "sinks/registry.py"]
    before, after = (one / "sinks" / "registry.py" for one in (PACKAGE, there))
    changes = [*unified_diff(before.read_text().splitlines(), after.read_text().splitlines(), n=0, lineterm="")][3:]
    assert changes == ['+    "file",']


def test_the_configuration_knows_it(house: Path, tmp_path: Path) -> None:
    (tmp_path / "seal").write_text(SEAL)
    sealed, plain = {"name": "sealed", "path": "a", "seal_file": "seal"}, {"name": "plain", "path": "b"}

    checked = command(house, "check", "-c", str(with_files(tmp_path, sealed, plain)))
    assert checked.returncode == 0, checked.stderr
    assert "  file     sealed: lines of JSON in a, all events, all devices\n" in checked.stdout
    assert "warning: files[1].seal: is left out: anybody may have written the lines\n" in checked.stdout
    assert "no sinks" not in checked.stdout

    schema = json.loads(command(house, "schema", "config").stdout)["properties"]["files"]
    assert schema["description"] == "Files that events are appended to"
    assert set(schema["items"]["properties"]) == {"name", "events", "groups", "path", "seal", "seal_file"}

    wrong = command(house, "check", "-c", str(with_files(tmp_path, sealed, {"name": "sealed", "pth": 1, "path": "a"})))
    assert wrong.returncode == 78
    for mistake in (
        "files[1].pth: is not a key that bace-bridge knows (did you mean path?)",
        "files[1].name: 'sealed' is the name of files[0] as well",
        "files[1].path: files[0] has the same path (choose another)",
    ):
        assert mistake in wrong.stderr
    assert SEAL not in checked.stdout + wrong.stderr


async def test_events_arrive_and_health_names_what_fails(house: Path, tmp_path: Path) -> None:
    (tmp_path / "seal").write_text(SEAL)
    good = {"name": "good", "path": "events.jsonl", "events": ["session.*"], "seal_file": "seal"}
    bad = {"name": "bad", "path": "nowhere/events.jsonl"}
    cloud, port, file = SimulatedCloud(), free_port(), tmp_path / "events.jsonl"
    device = cloud.add_device("Bed 12")
    async with SimulatedServer(cloud) as server, aiohttp.ClientSession() as http:
        config = with_files(tmp_path, good, bad, cloud_url=server.url)
        given = json.loads(config.read_text()) | {"http": {"listen": f"127.0.0.1:{port}"}}
        config.write_text(json.dumps(given))
        async with running(config, environment=environment(house)) as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            session = cloud.open_session(device.id_group, label="Night")
            await until(lambda: file.exists() and "session.started" in file.read_text(), within=60, what="an event")
            cloud.end_session(session)
            await until(lambda: "session.ended" in file.read_text(), within=60, what="the end")
            await until(lambda: "file.failing" in bridge.log, within=60, what="the other one fails")
            async with http.get(f"http://127.0.0.1:{port}/readyz") as response:
                assert "cannot write" in (await response.json())["degraded"]["file:bad"]
            assert await bridge.stop() == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["seal"] for line in lines} == {SEAL}
    assert len({line["id"] for line in lines}) == len(lines)

    listed = command(house, "dead-letters", "list", "-c", str(config))
    assert listed.returncode == 0, listed.stderr
    again = command(house, "replay", "-c", str(config), "--sink", "good", "--session", session)
    assert again.returncode == 0, again.stderr
    assert SEAL not in bridge.log
