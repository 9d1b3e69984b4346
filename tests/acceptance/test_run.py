"""The real process: its exit codes, signals, messages and memory of where it was."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, configuration, from_mqtt, receiver, running, until
from tests.integration.brokers import Broker, free_port, listening


def run_to_its_end(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bace_bridge", "run", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def events_in(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines()]


def reported_of(log: str, event: str) -> int:
    """How often, but for what only a debugging person wants to see."""
    lines = [json.loads(line) for line in log.splitlines()]
    return sum(line["event"] == event and line["level"] != "debug" for line in lines)


def test_a_wrong_configuration_names_every_mistake(tmp_path: Path) -> None:
    config = configuration(
        tmp_path, cloud_url="ftp://nowhere", extra={"watch": {"session_interval": "soon", "what": 1}}
    )
    ended = run_to_its_end(config)
    assert ended.returncode == 78
    for place in ("cloud.url: ", "watch.session_interval: ", "watch.what: "):
        assert place in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_second_instance_is_refused(tmp_path: Path) -> None:
    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(config) as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            ended = await asyncio.to_thread(run_to_its_end, config)
            assert ended.returncode == 75
            assert "held by another running bace-bridge" in ended.stderr
            assert await bridge.stop() == 0


async def test_nothing_reachable_is_said_once_each(tmp_path: Path) -> None:
    port = free_port()
    config = configuration(tmp_path, cloud_url=f"http://127.0.0.1:{port}", mqtt_port=port)
    async with running(config, level="debug") as bridge:
        await until(lambda: "mqtt.unreachable" in bridge.log, within=60, what="the broker is missed")
        await until(lambda: bridge.log.count('"cloud.unreachable"') >= 3, within=60, what="three attempts")
        assert reported_of(bridge.log, "cloud.unreachable") == 1
        assert reported_of(bridge.log, "mqtt.unreachable") == 1
        assert await bridge.stop() == 0
        assert "Traceback" not in bridge.log


async def test_a_wrong_password_is_said_once_without_it(tmp_path: Path) -> None:
    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url, extra={"cloud": {"password": "canary-4711"}})
        async with running(config, level="debug") as bridge:
            await until(lambda: bridge.log.count('"cloud.auth_failed"') >= 2, within=60, what="a second attempt")
            assert sum(seen.path == "/oauth2/token" for seen in server.requests) == 1
            assert await bridge.stop() == 0
            warned = [line for line in bridge.log.splitlines() if json.loads(line)["level"] == "warning"]
            assert len(warned) == 1
            assert "cloud.username or password" in warned[0]
            assert "canary" not in bridge.log


async def test_a_broker_that_comes_late_gets_everything(broker: Broker, tmp_path: Path) -> None:
    broker.stop()
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server:
        config = configuration(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        async with running(config) as bridge:
            await until(lambda: "mqtt.unreachable" in bridge.log, within=60, what="the broker is missed")
            session = cloud.open_session(device.id_group)
            await until(lambda: "session.started" in bridge.log, within=60, what="the start is seen")
            cloud.end_session(session)
            cloud.finish_ingestion(session)
            await until(lambda: "session.csv_ready" in bridge.log, within=60, what="the CSV is seen")
            bridge.process.send_signal(signal.SIGSTOP)  # until somebody listens
            broker.start()
            with listening(broker.port, "bace/#") as listener:
                bridge.process.send_signal(signal.SIGCONT)
                await until(
                    lambda: len(listener.on(f"bace/{device.id_group}/event")) >= 3, within=60, what="the events"
                )
                reported = [from_mqtt(one.topic, one.payload) for one in listener.on(f"bace/{device.id_group}/event")]
                assert [one.type for one in reported if one] == [
                    "session.started",
                    "session.ended",
                    "session.csv_ready",
                ]
            assert await bridge.stop() == 0


async def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        async with running(config) as bridge:
            await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
            session = cloud.open_session(device.id_group)
            await until(lambda: len(hook.arrivals) >= 1, within=60, what="the start")
            await bridge.stop(signal.SIGKILL)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        async with running(config) as bridge:
            await until(
                lambda: any(one.type == "session.csv_ready" for one in hook.arrivals), within=60, what="the CSV"
            )
            assert await bridge.stop() == 0
    first_of_each = list(dict.fromkeys(one.type for one in hook.arrivals))
    assert first_of_each == ["session.started", "session.ended", "session.csv_ready"]


async def test_a_reload_takes_a_right_configuration_and_keeps_the_old_one_over_a_wrong(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(config) as bridge:
            await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
            config.write_text("cloud: {url: ftp://x}\n")
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: "config.not_reloaded" in bridge.log, within=60, what="the refusal")
            configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
            bridge.process.send_signal(signal.SIGHUP)
            await until(lambda: bridge.log.count("bridge.running") == 2, within=60, what="the reload")
            cloud.open_session(device.id_group)
            await until(lambda: len(hook.arrivals) == 1, within=60, what="the new webhook gets an event")
            assert await bridge.stop() == 0
            assert SECRET not in bridge.log
            assert hook.url not in bridge.log


async def test_health_tells_what_is_not_usable(broker: Broker, tmp_path: Path) -> None:
    port = free_port()
    async with SimulatedServer(SimulatedCloud()) as server, aiohttp.ClientSession() as http:
        config = configuration(
            tmp_path, cloud_url=server.url, mqtt_port=broker.port, extra={"http": {"listen": f"127.0.0.1:{port}"}}
        )
        async with running(config) as bridge:

            async def answer(path: str) -> tuple[int, dict[str, object]]:
                async with http.get(f"http://127.0.0.1:{port}{path}") as response:
                    return response.status, await response.json()

            await until(lambda: "mqtt.connected" in bridge.log, within=60, what="the broker")
            async with asyncio.timeout(60):
                while (await answer("/readyz"))[0] != 200:
                    await asyncio.sleep(0.05)
            assert (await answer("/healthz"))[0] == 200
            broker.stop()
            await until(lambda: "mqtt.unreachable" in bridge.log, within=60, what="the broker is missed")
            status, body = await answer("/readyz")
            assert status == 503
            assert body["checks"]["mqtt:home"]["ok"] is False  # type: ignore[index]  # JSON
            assert (await answer("/healthz"))[0] == 200
            assert await bridge.stop() == 0


async def test_it_tells_the_service_manager(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        heard = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(60)
        server = await stack.enter_async_context(SimulatedServer(SimulatedCloud()))
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(
            config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        ) as bridge:
            messages = [(await asyncio.to_thread(heard.recv, 1000)).decode() for _ in range(3)]
            assert messages[0].startswith("READY=1")
            assert "WATCHDOG=1" in messages[1:]
            bridge.process.send_signal(signal.SIGTERM)
            while not messages[-1].startswith("STOPPING=1"):
                messages.append((await asyncio.to_thread(heard.recv, 1000)).decode())
            assert await bridge.stop() == 0


async def test_signals_while_it_ends_do_not_make_an_orderly_end_a_bad_one(tmp_path: Path) -> None:
    async with (
        SimulatedServer(SimulatedCloud()) as server,
        running(configuration(tmp_path, cloud_url=server.url)) as bridge,
    ):
        await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
        while bridge.process.returncode is None:
            for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                with suppress(ProcessLookupError):
                    os.kill(bridge.process.pid, one)
            await asyncio.sleep(0.001)
        assert bridge.process.returncode == 0, bridge.log


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """The webhook never answers: an orderly end would wait for it."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    called, gate = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        called.set()
        await gate.wait()
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with SimulatedServer(cloud) as server:
        hook = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook)
        async with running(config) as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            cloud.open_session(device.id_group)
            async with asyncio.timeout(60):
                await called.wait()
            bridge.process.send_signal(signal.SIGTERM)
            await until(lambda: "bridge.stopping" in bridge.log, within=60, what="the orderly end")
            assert bridge.process.returncode is None
            assert await bridge.stop() == 0
            assert "bridge.stopping_now" in events_in(bridge.log)
            assert "webhook.cut_off" not in events_in(bridge.log)
            assert "Traceback" not in bridge.log
    gate.set()
    await runner.cleanup()


async def test_the_service_manager_hears_of_a_reload_with_its_time_and_new_secrets_are_masked(tmp_path: Path) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "notify"))
    heard.settimeout(60)

    async def reported(beginning: str) -> str:
        while not (message := (await asyncio.to_thread(heard.recv, 1000)).decode()).startswith(beginning):
            assert not message.startswith("STOPPING=1"), "systemd would take the reload for the end"
        return message

    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as bridge:
            await reported("READY=1")
            settings = json.loads(config.read_text())
            # The log names the store: where a new secret is part of that name, its masking can be seen.
            settings["cloud"]["password"] = "canary-4711"
            settings["store"] = {**settings.get("store", {}), "url": f"sqlite:///{tmp_path}/canary-4711.db"}
            config.write_text(json.dumps(settings))
            before = time.monotonic_ns() // 1000
            bridge.process.send_signal(signal.SIGHUP)
            reloading = await reported("RELOADING=1")
            assert before <= int(reloading.split("MONOTONIC_USEC=")[1]) <= time.monotonic_ns() // 1000
            await reported("READY=1")
            await bridge.stop()
        starting = [line for line in bridge.log.splitlines() if json.loads(line)["event"] == "bridge.starting"]
        assert len(starting) == 2
        assert "***.db" in starting[1]
        assert "canary" not in bridge.log
    heard.close()


@pytest.mark.parametrize("arguments", [["run", "--nonsense"], ["nonsense"], ["run", "--log-level", "loud"]])
def test_a_wrong_command_line_is_exit_2(arguments: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bace_bridge", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
