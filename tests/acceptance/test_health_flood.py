"""Connections to the health server that want nothing good, with a real process that may open 1,024 files."""

import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from bisect import bisect
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.status.listener import MOST_CONNECTIONS
from tests.acceptance.line import Process, configuration, running, until
from tests.integration.brokers import Broker, free_port, listening

FILES = 1024
IDLE = 1500


class Flooded(NamedTuple):
    cloud: SimulatedCloud
    device: str
    bridge: Process
    port: int

    @property
    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.bridge.process.pid}/fd"))  # noqa: PTH208  # names alone are counted

    def lines(self) -> int:
        return len(self.bridge.log.splitlines())


@asynccontextmanager
async def bridge_with_few_files(broker: Broker, folder: Path, *, level: str = "info") -> AsyncIterator[Flooded]:
    cloud, port = SimulatedCloud(), free_port()
    device = cloud.add_device("BaceGo-1").id_group
    async with SimulatedServer(cloud) as server:
        listen = {"http": {"listen": f"127.0.0.1:{port}"}}
        config = configuration(folder, cloud_url=server.url, mqtt_port=broker.port, extra=listen)
        async with running(config, level=level) as bridge:
            resource.prlimit(bridge.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
            await until(lambda: "mqtt.connected" in bridge.log, within=60, what="the broker is reached")
            await asyncio.to_thread(asked, port)
            yield Flooded(cloud, device, bridge, port)
            assert await bridge.stop() == 0


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """Held by another process: with so many files open, paho's select() in this one would fail."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(port), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as flood:
        assert flood.stdout is not None
        try:
            assert flood.stdout.readline() == b"open\n"
            yield
        finally:
            flood.kill()


FLOOD = """
import resource, socket, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
port, count = map(int, sys.argv[1:])
held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(count)]
print("open", flush=True)
sys.stdin.read()
"""


def asked(
    port: int, request: bytes = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
) -> bytes:
    """All that is answered; b"" where the connection is closed or reset without a word."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request)
            while more := connection.recv(65536):
                answer += more
        except ConnectionError:
            return answer
    return answer


@pytest.mark.slow
async def test_1500_idle_connections_stop_neither_deliveries_nor_health(broker: Broker, tmp_path: Path) -> None:
    async with bridge_with_few_files(broker, tmp_path) as it:
        before = it.lines()
        began = time.monotonic()
        with idle_connections(it.port, IDLE):
            assert b"200 OK" in await asyncio.to_thread(asked, it.port), "who asks at once is answered"
            await until(lambda: it.files < 200, within=60, what="most of them are closed")
            broker.stop()
            await until(lambda: "mqtt.unreachable" in it.bridge.log, within=60, what="the broker is missed")
            broker.start()
            with listening(broker.port, f"bace/{it.device}/event") as listener:
                it.cloud.open_session(it.device)
                await until(lambda: bool(listener.heard), within=60, what="the start is delivered")
        minutes = (time.monotonic() - began) / 60
        assert b"200 OK" in await asyncio.to_thread(asked, it.port)
        assert it.lines() - before < 20 * (1 + minutes), it.bridge.log[-4000:]
        assert "Traceback" not in it.bridge.log


async def test_who_asks_slowly_is_answered_amid_idle_connections(broker: Broker, tmp_path: Path) -> None:
    """Its request comes in two pieces, and more connections than are kept are opened between them."""
    async with bridge_with_few_files(broker, tmp_path) as it:
        with socket.create_connection(("127.0.0.1", it.port), timeout=60) as slow:
            slow.sendall(HEAD[:10])
            with idle_connections(it.port, 2 * MOST_CONNECTIONS):
                dropped = "http.connections_dropped"
                await until(lambda: dropped in it.bridge.log, within=60, what="some of them are closed")
                slow.sendall(HEAD[10:] + b"\r\n")
                assert b"200 OK" in slow.recv(65536)


SOMETIMES_HERE = """
import socket

really = socket.getaddrinfo

def getaddrinfo(host, *given, **named):
    hosts = ["192.0.2.1", "127.0.0.1"] if host == "here.test" else [host]
    return [found for one in hosts for found in really(one, *given, **named)]

socket.getaddrinfo = getaddrinfo
"""


async def test_a_name_with_an_address_that_this_machine_has_not_is_listened_on(tmp_path: Path) -> None:
    """As `localhost` in a container, whose /etc/hosts has ::1 while IPv6 is turned off."""
    (tmp_path / "sitecustomize.py").write_text(SOMETIMES_HERE)
    port = free_port()
    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url, extra={"http": {"listen": f"here.test:{port}"}})
        async with running(config, environment={"PYTHONPATH": str(tmp_path)}) as bridge:
            await until(lambda: "http.listening" in bridge.log, within=60, what="the health server is there")
            assert b"200 OK" in await asyncio.to_thread(asked, port)
            assert await bridge.stop() == 0


@pytest.mark.slow
async def test_a_byte_a_second_does_not_hold_a_connection(broker: Broker, tmp_path: Path) -> None:
    async with bridge_with_few_files(broker, tmp_path) as it:
        before = it.files
        with ExitStack() as stack:
            slow = [stack.enter_context(socket.create_connection(("127.0.0.1", it.port))) for _ in range(30)]
            for byte in b"GET /healthz HTTP/1.1\r\nHost:":
                for connection in slow:
                    try:
                        connection.send(bytes([byte]))
                    except ConnectionError:
                        continue
                await asyncio.sleep(1)  # the slowness is what is tested
                if it.files <= before:
                    break
            assert it.files <= before
            assert b"200 OK" in await asyncio.to_thread(asked, it.port)


@pytest.mark.slow
async def test_without_a_free_file_the_server_waits_and_says_so_once(broker: Broker, tmp_path: Path) -> None:
    """Whatever holds the files: here the limit is set to what is open."""
    async with bridge_with_few_files(broker, tmp_path) as it:
        before, pid = it.lines(), it.bridge.process.pid
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (it.files, FILES))
        with idle_connections(it.port, 20):
            await until(lambda: "http.cannot_accept" in it.bridge.log, within=60, what="it says so")
            used = cpu_seconds(pid)
            await asyncio.sleep(3)  # the rest is what is tested
            assert cpu_seconds(pid) - used < 1.5, "it does not spin"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        assert b"200 OK" in await asyncio.to_thread(asked, it.port)
        assert it.lines() - before < 20
        assert "Traceback" not in it.bridge.log


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
NO_REQUESTS = {
    "9 kB of header": HEAD + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n",
    "many headers": HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(2000)) + b"\r\n",
    "a long address": b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + os.urandom(190),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "binary": os.urandom(4096),
    "zeros": bytes(4096),
    "MQTT": b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a header without a colon": HEAD + b"nonsense\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/3.0": b"GET /healthz HTTP/3.0\r\n\r\n",
    "a bad host": b"GET /healthz HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a bad address": b"GET http://[::1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "half a request": HEAD,
    "bad chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nnonsense\r\n",
    "a bad length": HEAD + b"Content-Length: -1\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "Expect": HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    "an unknown Expect": HEAD + b"Expect: a-miracle\r\n\r\n",
    "a method that nobody knows": b"BREW /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a large body": HEAD + b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000),
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x80nonsense",
    "broken compression": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
    "pipelined": (HEAD + b"\r\n") * 500,
}


async def test_what_is_no_request_costs_a_line_in_the_log_at_most(broker: Broker, tmp_path: Path) -> None:
    """The worst of 20 times each; a reset in the place of an answer is as good."""
    async with bridge_with_few_files(broker, tmp_path, level="debug") as it:

        def about_http() -> list[dict[str, str]]:
            lines = [json.loads(line) for line in it.bridge.log.splitlines()]
            return [one for one in lines if one["event"].startswith("http.") or "logger" in one]

        begun: list[datetime] = []
        for request in NO_REQUESTS.values():
            begun.append(datetime.now(UTC))
            for _ in range(20):
                await asyncio.to_thread(half_closed, it.port, request)
        # A line may be written after the answer has come; its time is that of the request.
        reported: list[list[dict[str, str]]] = [[] for _ in (None, *begun)]
        for line in about_http():
            reported[bisect(begun, datetime.fromisoformat(line["ts"]))].append(line)
        for name, lines in zip(NO_REQUESTS, reported[1:], strict=True):
            assert len(lines) <= 20, (name, lines[:3])
            assert {one["level"] for one in lines} <= {"debug", "info"}, name
        assert "Traceback" not in it.bridge.log
        answer = await asyncio.to_thread(asked, it.port)
        assert b"200 OK" in answer
        assert b"server:" not in answer.lower()


def half_closed(port: int, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:  # closed while much of it was still to be sent
            return


IN_A_NETWORK_OF_ITS_OWN = """
import fcntl, http.client, json, socket, struct, subprocess, sys, time
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
bridge = subprocess.Popen([sys.executable, "-m", "bace_bridge", "run", "-c", sys.argv[1]])
try:
    deadline = time.monotonic() + 60
    while True:
        assert bridge.poll() is None and time.monotonic() < deadline
        try:
            answers = []
            for headers in ({}, {"Authorization": "Bearer right"}):
                connection = http.client.HTTPConnection("127.0.0.1", 8099, timeout=60)
                connection.request("GET", "/readyz", headers=headers)
                answers.append(json.load(connection.getresponse()))
            if "refuse" in str(answers[1]):
                print(json.dumps(answers))
                break
        except ConnectionRefusedError:
            pass
        time.sleep(0.1)
finally:
    bridge.terminate()
    bridge.wait()
"""


def test_beyond_this_machine_kinds_are_shown_and_the_rest_takes_the_token(tmp_path: Path) -> None:
    """In a network namespace, where nobody else reaches the listener."""
    isolated = ["unshare", "--map-root-user", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs unshare, and the right to make a network namespace")
    config = configuration(
        tmp_path,
        cloud_url="http://127.0.0.1:8180",
        mqtt_port=1883,
        extra={"http": {"listen": "0.0.0.0:8099", "token": "right"}},
    )
    command = [*isolated, sys.executable, "-c", IN_A_NETWORK_OF_ITS_OWN, str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    public, full = json.loads(ended.stdout)
    assert public == {
        "status": "not ready",
        "checks": {"cloud": {"ok": False}, "store": {"ok": True}, "mqtt": {"ok": False}},
    }
    assert "127.0.0.1:1883" in full["checks"]["mqtt:home"]["reason"]


async def test_a_name_that_is_not_this_machine_s_sees_kinds(broker: Broker, tmp_path: Path) -> None:
    """As a page in a browser asks whose name has become 127.0.0.1 (DNS rebinding)."""
    async with bridge_with_few_files(broker, tmp_path) as it:
        for host, reported in ((b"localhost", True), (b"127.0.0.1:8099", True), (b"evil.example", False)):
            request = b"GET /readyz HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host
            assert (b"mqtt:home" in await asyncio.to_thread(asked, it.port, request)) is reported
