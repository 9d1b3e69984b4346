"""Each way in which a webhook or a broker can fail: what is said, what is shown, and what becomes of events."""

import asyncio
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace
from structlog.testing import capture_logs

from bace_bridge.app.bridge import Bridge
from bace_bridge.config.load import load
from bace_bridge.events.types import Filter
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.sink import MqttSink
from tests.acceptance.line import SECRET, configuration, until
from tests.integration.brokers import free_port
from tests.integration.polling_line import Clock
from tests.integration.scripted_broker import Script, scripted
from tests.integration.test_dispatcher import event, running
from tests.integration.test_mqtt_sink import MemoryLedger, context_of

CANARY = "canary-4711"
Sleep = Callable[[float], Awaitable[None]]


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


class Endpoints:
    """Every way of failing, each on a path of its own."""

    def __init__(self) -> None:
        self.mended = False
        self.asked: dict[str, int] = {}

    async def take(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] = self.asked.get(name, 0) + 1
        if self.mended or name == "good":
            await request.read()
            return web.Response(status=204)
        assert request.transport is not None
        if name == "hangs":
            while not _gone(request):
                await asyncio.sleep(0.01)
            return web.Response()
        if name == "reset":
            linger = struct.pack("ii", 1, 0)
            request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.transport.abort()
        if name == "endless":
            response = web.StreamResponse(status=200)
            await response.prepare(request)
            while not _gone(request):
                await response.write(b"x" * 1000)
                await asyncio.sleep(0.001)
            return response
        if name == "redirects":
            return web.Response(status=302, headers={"Location": "/good"})
        return web.Response(status=int(name) if name.isdigit() else 500, text=f"no {CANARY}-path")


@asynccontextmanager
async def endpoints(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Endpoints, int]]:
    ends = Endpoints()
    app = web.Application()
    app.router.add_post(f"/{CANARY}-path/{{name}}", ends.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    yield ends, runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=me"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls


FAILING = {
    "hangs": "no answer within 3 s",
    "401": "HTTP 401",
    "404": "HTTP 404",
    "500": "HTTP 500",
    "redirects": "HTTP 302: redirects are not followed",
    "reset": "closed without an answer|the connection broke",
    "tls": "certificate|tls failed",
    "dns": "name cannot be resolved",
    "refused": "cannot connect: Connection refused",
}


async def test_every_failing_webhook_is_said_once_and_shown_and_the_bridge_stays_ready(
    tmp_path: Path, self_signed: ssl.SSLContext
) -> None:
    cloud = SimulatedCloud()
    devices = [cloud.add_device(f"BaceGo-{one}") for one in range(3)]
    port = free_port()
    async with (
        SimulatedServer(cloud) as server,
        endpoints() as (ends, plain),
        endpoints(self_signed) as (_, tls),
        aiohttp.ClientSession() as http,
    ):
        base = f"http://127.0.0.1:{plain}/{CANARY}-path"
        urls = {name: f"{base}/{name}" for name in (*FAILING, "good", "endless", "410")}
        urls |= {"tls": f"https://127.0.0.1:{tls}/{CANARY}-path/x", "dns": f"http://nowhere.invalid/{CANARY}-path"}
        urls["refused"] = f"http://127.0.0.1:{free_port()}/{CANARY}-path"
        hooks = [{"name": f"w-{name}", "url": url, "secret": SECRET, "timeout": "3s"} for name, url in urls.items()]
        path = configuration(tmp_path, cloud_url=server.url, extra={"http": {"listen": f"127.0.0.1:{port}"}})
        text = path.read_text().replace('"webhooks": []', '"webhooks": ' + str(hooks).replace("'", '"'))
        path.write_text(text)

        async def ready() -> tuple[int, dict[str, Any]]:
            async with http.get(f"http://127.0.0.1:{port}/readyz") as response:
                return response.status, await response.json()

        stop = asyncio.Event()
        with capture_logs() as logs:
            run = asyncio.create_task(
                Bridge(load(path, {}), version="t").run(stop, notify=lambda _: None, watchdog=None)
            )

            def said(name: str) -> list[str]:
                return [one["sink"] for one in logs if one["event"] == name]

            await until(lambda: len(server.requests) > 3, within=60, what="the first poll")
            for device in devices:
                cloud.open_session(device.id_group)
            await until(lambda: len(said("webhook.failing")) >= len(FAILING), within=60, what="each is said")
            await until(
                lambda: min(ends.asked.get(one, 0) for one in ("good", "endless")) >= 3, within=60, what="the good ones"
            )
            await until(lambda: said("sink.disabled") == ["w-410"], within=60, what="the end of one is said")
            status, body = await ready()
            assert status == 200, body
            assert set(body["degraded"]) == {f"webhook:w-{name}" for name in (*FAILING, "410")}
            assert body["degraded"]["webhook:w-410"] == "disabled: HTTP 410: the endpoint is gone"
            for name, reason in FAILING.items():
                shown = body["degraded"][f"webhook:w-{name}"]
                assert any(part in shown.lower() for part in reason.lower().split("|")), shown
            assert sorted(said("webhook.failing")) == sorted(f"w-{name}" for name in FAILING)
            ends.mended = True
            reached = {name for name in FAILING if name not in {"tls", "dns", "refused"}}
            await until(lambda: len(said("webhook.recovered")) >= len(reached), within=60, what="they recover")
            _, body = await ready()
            assert set(body["degraded"]) == {f"webhook:w-{name}" for name in (*FAILING, "410") if name not in reached}
            stop.set()
            await run
        assert CANARY not in str(logs)
        assert CANARY not in str(body)


def broker_sink(port: int, *, sleep: Sleep = asyncio.sleep, **more: object) -> MqttSink:
    class NoState:
        async def devices(self, _: object) -> list[object]:
            return []

        known_devices = devices

        def is_current(self) -> bool:
            return True

        def info(self) -> bytes:
            return b"{}"

        health = info

    # Discovery has pauses of its own, which would be counted with those between attempts.
    home = {"home_assistant": {"enabled": False}}
    config = MqttConfig.model_validate({"name": "home", "url": f"mqtt://127.0.0.1:{port}", **home, **more})
    state: Any = NoState()
    return MqttSink(config, context_of(state, MemoryLedger()), sleep=sleep)


async def test_a_broker_over_its_quota_gets_the_event_later_and_one_that_forbids_it_never(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(answers={"bace/full/event": 0x97, "bace/forbidden/event": 0x87})
    with capture_logs() as logs:
        async with (
            scripted(script) as broker,
            running(tmp_path / "b.db", clock, broker_sink(broker.port)) as line,
        ):
            await line.tell(of_device("full", 1), of_device("forbidden", 2), of_device("fine", 3))
            await line.done()
            assert [(one.key, one.attempts) for one in await line.lanes()] == [("full", 1)]
            ((seq, _, attempts, reason),) = await line.dead_letters()
            assert (seq, attempts) == (2, 1)
            assert "not authorized (0x87)" in reason
            script.answers.clear()
            line.forward(5)
            await until(lambda: published(broker.published, "full") == 2, within=60, what="it comes again")
    said = {one["event"]: one for one in logs}
    assert "quota exceeded (0x97)" in said["delivery.retry_scheduled"]["reason"]
    assert said["delivery.dead_letter"]["sink"] == "home"


async def test_a_broker_that_refuses_everything_is_said_once_and_shown(tmp_path: Path) -> None:
    clock = Clock()
    script = Script(answers={f"bace/d{one}/event": 0x97 for one in range(20)})
    with capture_logs() as logs:
        async with (
            scripted(script) as broker,
            running(tmp_path / "b.db", clock, broker_sink(broker.port), wish=Filter()) as line,
        ):
            await line.tell(*(of_device(f"d{one}", one) for one in range(20)))
            await line.done()
            assert "20 failed attempts in a row: the broker refused a message" in (line.watch.problem or "")
            script.answers.clear()
            line.forward(6)
            await until(lambda: line.watch.problem is None, within=60, what="it recovers")
            assert line.watch.state()["failures_in_a_row"] == 0
    kinds = [one["event"] for one in logs if one["event"].endswith((".failing", ".recovered"))]
    assert kinds == ["webhook.failing", "webhook.recovered"]


def of_device(name: str, number: int) -> Any:
    return replace(event(number, session=name), device_id=name)


def published(messages: list[Any], device: str) -> int:
    return sum(one.topic == f"bace/{device}/event" for one in messages)


@pytest.mark.parametrize(
    ("protocol", "code", "said", "reason"),
    [
        ("5", 0x86, "mqtt.login_refused", "bad user name or password (0x86)"),
        ("5", 0x87, "mqtt.login_refused", "not authorized (0x87)"),
        ("5", 0x85, "mqtt.login_refused", "client identifier not valid (0x85)"),
        ("5", 0x8A, "mqtt.login_refused", "banned (0x8a)"),
        ("5", 0x88, "mqtt.unreachable", "server unavailable (0x88)"),
        ("5", 0x97, "mqtt.unreachable", "quota exceeded (0x97)"),
        ("3.1.1", 2, "mqtt.login_refused", "client identifier not valid"),
        ("3.1.1", 3, "mqtt.unreachable", "server unavailable"),
        ("3.1.1", 4, "mqtt.login_refused", "bad user name or password"),
        ("3.1.1", 5, "mqtt.login_refused", "not authorized"),
    ],
)
async def test_a_broker_that_refuses_the_connection(protocol: str, code: int, said: str, reason: str) -> None:
    waits: list[float] = []

    turns = asyncio.Semaphore(3)

    async def soon(seconds: float) -> None:
        waits.append(seconds)
        await turns.acquire()

    with capture_logs() as logs:
        async with scripted(Script(connect_codes=[code] * 5)) as broker:
            sink = broker_sink(broker.port, sleep=soon, protocol=protocol)
            run = asyncio.create_task(sink.run())
            await until(lambda: len(waits) >= 4, within=60, what="several attempts")
            assert reason in (sink.problem or "")
            for _ in range(3):  # two more attempts, and the pause after discovery for Home Assistant
                turns.release()
            async with asyncio.timeout(60):
                await sink.ready()
            assert sink.problem is None
            await sink.close()
            await run
    assert [one["event"] for one in logs] == [said, "mqtt.connected"]
    assert waits[0] >= (30 if said == "mqtt.login_refused" else 1)
