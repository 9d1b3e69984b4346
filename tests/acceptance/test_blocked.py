"""What may take for ever, and whom it does not hold up: look-ups of names, a log that nobody reads, a dead terminal."""

import asyncio
import fcntl
import json
import os
import pty
import signal
import sys
import termios
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, Receiver, configuration, receiver, running, until
from tests.integration.brokers import Broker, free_port

SOON = 60.0
"""Seconds after which what a test waits for will not come any more."""

_RESOLVER = """
import socket, threading

really = socket.getaddrinfo

def getaddrinfo(host, *given, **named):
    if isinstance(host, str) and host.endswith(".hangs.test"):
        with open({asked!r}, "a") as asked:
            asked.write(host + "\\n")
        threading.Event().wait()
    return really(host, *given, **named)

socket.getaddrinfo = getaddrinfo
"""

_HANGING_STORE = """
import pathlib, sqlite3, threading

def connect(*given, **named):
    pathlib.Path({called!r}).touch()
    threading.Event().wait()

sqlite3.connect = connect
"""


class Resolver:
    """The system's resolver, as where no DNS server answers for names below hangs.test: each look-up takes for ever."""

    def __init__(self, folder: Path) -> None:
        self._asked = folder / "asked"
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_RESOLVER.format(asked=str(self._asked)))
        self.environment = {"PYTHONPATH": str(site)}

    @property
    def asked(self) -> Counter[str]:
        """How many look-ups of each name were begun; none of them ends."""
        return Counter(self._asked.read_text().split()) if self._asked.exists() else Counter()


def hanging_hooks(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "url": f"http://{name}.hangs.test/hook", "secret": SECRET, "timeout": "1s"} for name in names
    ]


def with_hooks(config: Path, hooks: list[dict[str, Any]], **sections: Any) -> None:
    settings = json.loads(config.read_text())
    settings["webhooks"] += hooks
    config.write_text(json.dumps({**settings, **sections}))


async def test_names_that_hang_hold_up_neither_other_endpoints_nor_the_end(broker: Broker, tmp_path: Path) -> None:
    """More than any machine's shared pool has threads. The healthy ones have names, too, which must be looked up."""
    cloud, resolver = SimulatedCloud(), Resolver(tmp_path)
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        cloud_url, hook_url = (url.replace("127.0.0.1", "localhost") for url in (server.url, hook.url))
        config = configuration(tmp_path, cloud_url=cloud_url, hook_url=hook_url)
        names = [f"hook-{number}" for number in range(40)]
        brokers = [
            {"name": "home", "url": f"mqtt://localhost:{broker.port}"},
            *({"name": name, "url": f"{name}://{name}.hangs.test"} for name in ("mqtt", "mqtts", "ws", "wss")),
        ]
        with_hooks(config, hanging_hooks(names), mqtt=brokers)
        async with running(config, level="debug", environment=resolver.environment) as bridge:
            everyone = {f"{name}.hangs.test" for name in [*names, "mqtt", "mqtts", "ws", "wss"]}
            await until(lambda: "mqtt.connected" in bridge.log, within=SOON, what="the broker is reached by its name")
            cloud.open_session(device.id_group)
            await until(lambda: resolver.asked.keys() == everyone, within=SOON, what="every name is asked for")
            other = cloud.open_session(device.id_group)
            await until(
                lambda: any(one.session == other for one in hook.arrivals),
                within=SOON,
                what="the webhook that is well gets its event",
            )
            await until(
                lambda: bridge.log.count("no answer within 1 s") > len(names), within=SOON, what="further attempts"
            )
            assert set(resolver.asked.values()) == {1}, "one look-up of a name at a time"
            assert await bridge.stop() == 0
            assert "webhook.cut_off" not in bridge.log, "the end has waited for a look-up"
            assert "Traceback" not in bridge.log


async def test_a_second_signal_ends_it_at_once_while_names_are_looked_up(tmp_path: Path) -> None:
    cloud, resolver = SimulatedCloud(), Resolver(tmp_path)
    async with SimulatedServer(cloud) as server:
        config = configuration(tmp_path, cloud_url=server.url.replace("127.0.0.1", "cloud.hangs.test"))
        async with running(config, environment=resolver.environment) as bridge:
            await until(lambda: bool(resolver.asked), within=SOON, what="the cloud's name is asked for")
            bridge.process.send_signal(signal.SIGTERM)
            assert await bridge.stop() == 0


async def test_a_listener_whose_name_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    resolver = Resolver(tmp_path)
    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url, extra={"http": {"listen": "me.hangs.test:80"}})
        async with running(config, environment=resolver.environment) as bridge:
            await until(lambda: bool(resolver.asked), within=SOON, what="the listener's name is asked for")
            assert await bridge.stop() == 0
            assert "Traceback" not in bridge.log


async def test_a_second_signal_ends_it_whatever_it_waits_for(tmp_path: Path) -> None:
    """A store on a network's disk that does not answer: its thread waits in the system, and Python for its thread."""
    called = tmp_path / "called"
    (tmp_path / "sitecustomize.py").write_text(_HANGING_STORE.format(called=str(called)))
    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(config, environment={"PYTHONPATH": str(tmp_path)}) as bridge:
            await until(called.exists, within=SOON, what="the store is opened")
            bridge.process.send_signal(signal.SIGTERM)
            assert await bridge.stop(signal.SIGINT) == -signal.SIGALRM


@asynccontextmanager
async def run_with(config: Path, *options: str, **how: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bace_bridge", "run", "-c", str(config), *options,
        stdout=asyncio.subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": ""},
        **{"stdin": asyncio.subprocess.DEVNULL, "start_new_session": True, **how},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(SOON):
        return await process.wait()


def fill(pipe: int) -> None:
    """Until it takes no more. Then a write waits, as one to any pipe does that nobody reads."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        while True:
            os.write(pipe, b"-")
    os.set_blocking(pipe, True)


async def everything_goes_on(cloud: SimulatedCloud, device: str, server: SimulatedServer, hook: Receiver) -> None:
    """Polls, and a delivery of something that begins now."""
    requests = len(server.requests)
    session = cloud.open_session(device)
    await until(lambda: any(one.session == session for one in hook.arrivals), within=SOON, what="a delivery")
    await until(lambda: len(server.requests) > requests + 20, within=SOON, what="polls")


@pytest.mark.parametrize("fmt", ["json", "console"])
@pytest.mark.parametrize("blocking", [True, False])
async def test_a_log_that_nobody_reads_holds_up_nothing(fmt: str, blocking: bool, tmp_path: Path) -> None:
    cloud, port = SimulatedCloud(), free_port()
    device = cloud.add_device("BaceGo-1").id_group
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    fill(writing)
    os.set_blocking(writing, blocking)
    async with SimulatedServer(cloud) as server, receiver() as hook, aiohttp.ClientSession() as http:
        http_too = {"http": {"listen": f"127.0.0.1:{port}"}}
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, interval="10ms", extra=http_too)
        async with run_with(config, "--log-level", "debug", "--log-format", fmt, stderr=writing) as process:
            await until(lambda: bool(server.requests), within=SOON, what="the first poll")
            for _ in range(3):
                await everything_goes_on(cloud, device, server, hook)
            async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            assert await ended(process) == 0
    os.close(reading)
    os.close(writing)


async def test_an_end_with_a_mistake_does_not_wait_for_the_reader_of_the_log(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fill(writing)
    async with run_with(configuration(tmp_path, cloud_url="ftp://nowhere"), stderr=writing) as process:
        assert await ended(process) == 78
    os.close(reading)
    os.close(writing)


async def test_what_was_lost_of_a_log_is_counted_and_said_once_it_is_read_again(tmp_path: Path) -> None:
    """A FIFO whose reader leaves, and another comes."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1").id_group
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        async with run_with(config, "--log-level", "debug", stderr=writing) as process:
            os.close(writing)
            await until(lambda: bool(server.requests), within=SOON, what="the first poll")
            os.close(reading)
            await everything_goes_on(cloud, device, server, hook)
            with os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb") as again:
                await everything_goes_on(cloud, device, server, hook)
                process.send_signal(signal.SIGTERM)
                assert await ended(process) == 0
                lines = [json.loads(line) for line in again.read().splitlines()]
    (said,) = (one for one in lines if one["event"] == "log.lines_lost")
    assert said["lines"] >= 1
    assert "session.started" not in {one["event"] for one in lines[: lines.index(said)]}
    assert lines[-1]["event"] == "bridge.stopped"


@pytest.mark.parametrize("gone", ["reader", "space"])
async def test_a_log_that_takes_nothing_ends_nothing(gone: str, tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1").id_group
    reading, writing = os.pipe()
    os.close(reading)
    if gone == "space":
        os.dup2(full := os.open("/dev/full", os.O_WRONLY), writing)
        os.close(full)
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        async with run_with(config, stderr=writing) as process:
            os.close(writing)
            await everything_goes_on(cloud, device, server, hook)
            process.send_signal(signal.SIGTERM)
            assert await ended(process) == 0


@pytest.mark.parametrize("descriptor", ["all", "stdin", "stderr", "controlling"])
async def test_a_terminal_that_closes_ends_it(descriptor: str, tmp_path: Path) -> None:
    """Whichever of its descriptors is the terminal; what it writes then finds nobody."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1").id_group
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        outside, inside = pty.openpty()
        given = {
            "all": (inside, inside),
            "stdin": (inside, None),
            "stderr": (None, inside),
            "controlling": (None, None),
        }
        stdin, stderr = (asyncio.subprocess.DEVNULL if one is None else one for one in given[descriptor])
        async with run_with(
            config, stdin=stdin, stderr=stderr, preexec_fn=lambda: fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
        ) as process:
            os.close(inside)
            await everything_goes_on(cloud, device, server, hook)
            os.close(outside)
            assert await ended(process) == 0


@pytest.mark.parametrize("how", ["no terminal", "nohup"])
async def test_without_a_terminal_or_under_nohup_sighup_reloads(how: str, tmp_path: Path) -> None:
    outside, inside = pty.openpty()

    def under_nohup() -> None:
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        with (path := tmp_path / "log").open("w") as log:
            async with run_with(config, stderr=log, preexec_fn=under_nohup if how == "nohup" else None) as process:
                await until(lambda: "bridge.running" in path.read_text(), within=SOON, what="the bridge runs")
                process.send_signal(signal.SIGHUP)
                await until(lambda: "config.reloading" in path.read_text(), within=SOON, what="the reload")
                process.send_signal(signal.SIGTERM)
                assert await ended(process) == 0
    os.close(inside)
    os.close(outside)
