"""SIGHUP with a configuration that is wrong in each way: the old one stays, it is said once, and health says so."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Process, configuration, receiver, running, until
from tests.integration.brokers import free_port


def events_in(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines()]


async def readyz(http: aiohttp.ClientSession, port: int) -> tuple[int, dict[str, Any]]:
    async with http.get(f"http://127.0.0.1:{port}/readyz") as response:
        return response.status, await response.json()


def break_file(path: Path, way: str, other_port: int) -> None:
    config = json.loads(path.read_text())
    match way:
        case "syntax":
            path.write_text("cloud: [")
            return
        case "unknown key":
            config["watch"]["sessoin_interval"] = "1s"
        case "unset variable":
            config["cloud"]["password"] = "${NOT_SET_ANYWHERE}"
        case "no file":
            path.unlink()
            return
        case "store in no folder":
            config["store"]["url"] = "sqlite:////proc/nowhere/bridge.db"
        case "store is no database":
            broken = path.parent / "broken.db"
            broken.write_bytes(b"no database at all" * 1000)
            config["store"]["url"] = f"sqlite:///{broken}"
        case "port in use":
            config["http"]["listen"] = f"127.0.0.1:{other_port}"
        case "port at no host":
            config["http"]["listen"] = f"127.0.0..1:{other_port}"
    path.write_text(json.dumps(config))


WAYS = {
    "syntax": "not valid YAML|syntax|cannot be read|expected",
    "unknown key": "watch.sessoin_interval",
    "unset variable": "NOT_SET_ANYWHERE",
    "no file": "bridge.yaml|No such file",
    "store in no folder": "/proc/nowhere",
    "store is no database": "not a usable database",
    "port in use": "cannot listen on",
    "port at no host": "neither an address nor a name",
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_reload_changes_nothing_and_is_shown(tmp_path: Path, way: str) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    port = free_port()
    async with SimulatedServer(cloud) as server, receiver() as hook, aiohttp.ClientSession() as http:
        other = int(server.url.rsplit(":", 1)[1])
        path = configuration(
            tmp_path, cloud_url=server.url, hook_url=hook.url, extra={"http": {"listen": f"127.0.0.1:{port}"}}
        )
        right = path.read_text()
        async with running(path) as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            break_file(path, way, other)
            bridge.process.send_signal(signal.SIGHUP)
            starts = 2 if way.startswith("store") or way == "port in use" else 1
            await until(
                lambda: "config.not_reloaded" in bridge.log and bridge.log.count("bridge.running") >= starts,
                within=60,
                what="the refusal",
            )
            await ready(bridge, http, port)
            status, body = await readyz(http, port)
            assert status == 200
            shown = body["degraded"]["config"]
            assert shown.startswith("the file on disk is not what runs: ")
            assert any(part.lower() in shown.lower() for part in WAYS[way].split("|")), shown
            assert events_in(bridge.log).count("config.not_reloaded") == 1
            cloud.open_session(device.id_group)
            await until(lambda: len(hook.arrivals) == 1, within=60, what="the old configuration works")
            path.write_text(right)
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: bridge.log.count("bridge.running") == starts + 1, within=60, what="the right one")
            await ready(bridge, http, port)
            assert "degraded" not in (await readyz(http, port))[1]
            assert await bridge.stop() == 0
            assert "Traceback" not in bridge.log


async def ready(bridge: Process, http: aiohttp.ClientSession, port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await readyz(http, port))[0] == 200:
                    return
            except aiohttp.ClientError:
                assert bridge.process.returncode is None, bridge.log
            await asyncio.sleep(0.02)


async def test_a_password_that_is_mended_is_used_at_once_after_a_reload(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    port = free_port()
    async with SimulatedServer(cloud) as server, aiohttp.ClientSession() as http:
        given = {"cloud": {"password": "wrong"}, "http": {"listen": f"127.0.0.1:{port}"}}
        path = configuration(tmp_path, cloud_url=server.url, extra=given)
        async with running(path) as bridge:
            await until(lambda: "cloud.auth_failed" in bridge.log, within=60, what="the refusal")
            status, body = await readyz(http, port)
            assert status == 503
            assert "check cloud.username or password" in body["checks"]["cloud"]["reason"]
            configuration(tmp_path, cloud_url=server.url, extra={"http": {"listen": f"127.0.0.1:{port}"}})
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: bridge.log.count("bridge.running") == 2, within=60, what="the reload")
            await ready(bridge, http, port)
            assert sum(one.path == "/oauth2/token" for one in server.requests) == 2
            assert await bridge.stop() == 0


async def test_a_first_poll_that_is_on_its_way_goes_on(tmp_path: Path) -> None:
    cloud = SimulatedCloud(quirks=Quirks.parse(["latency 1s"]))
    port = free_port()
    async with SimulatedServer(cloud) as server, aiohttp.ClientSession() as http:
        path = configuration(tmp_path, cloud_url=server.url, extra={"http": {"listen": f"127.0.0.1:{port}"}})
        async with running(path) as bridge:
            await until(lambda: bool(server.requests), within=60, what="the login")
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: bridge.log.count("bridge.running") == 2, within=60, what="the reload")
            await ready(bridge, http, port)
            assert sum(one.path == "/oauth2/token" for one in server.requests) == 1
            assert await bridge.stop() == 0
