"""Real MQTT brokers for tests: Mosquitto where it is installed, else amqtt for what it can do.

The fixtures are at hand in this directory by its conftest.py; elsewhere import them in a conftest.py
likewise. All listeners are on 127.0.0.1, on free ports.
`BACE_TEST_BROKER=amqtt` pretends that there is no Mosquitto.
"""

import asyncio
import contextlib
import importlib.metadata
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

PATIENCE = 60.0
LEAVING = 10.0


class Broker(Protocol):
    port: int
    speaks: Literal["5", "3.1.1"]

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


def _ports() -> Iterator[int]:
    """Ports below those that the system hands out: nobody who asks it for one gets a port between two uses of it here.

    Each worker of xdist has its own, and begins somewhere among them, since another run may go on beside this one.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(10_000 + worker % MOST_WORKERS, 32_768, MOST_WORKERS)
    first = random.SystemRandom().randrange(len(ports))
    yield from itertools.cycle([*ports[first:], *ports[:first]])


MOST_WORKERS = 16
_PORTS = _ports()


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is always another port")


def mosquitto_path() -> str | None:
    if os.environ.get("BACE_TEST_BROKER") == "amqtt":
        return None
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def broker_kind() -> str:
    """The broker that these tests run against, for people."""
    path = mosquitto_path()
    if path is None:
        return f"amqtt {importlib.metadata.version('amqtt')}"
    reported = subprocess.run([path, "-h"], capture_output=True, text=True, check=False).stdout.split()
    return f"mosquitto {reported[2]}" if len(reported) > 2 else "mosquitto"


def wait_until(condition: Callable[[], bool], *, within: float = PATIENCE) -> None:
    """For threads; in a coroutine use `eventually`."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true in time")
        time.sleep(0.005)


async def eventually(condition: Callable[[], bool], *, within: float = PATIENCE) -> None:
    async with asyncio.timeout(within):
        while not condition():  # what is waited for happens in other threads and processes
            await asyncio.sleep(0.005)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class BrokerProcess:
    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self._command = command
        self._port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(lambda: accepts(self._port) or self._ended())
        assert not self._ended(), self.log()

    def end(self, how: int) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(LEAVING)
            except subprocess.TimeoutExpired:  # its own way out is not what is tested
                self._process.kill()
                self._process.wait(PATIENCE)
            self._process = None

    def send_signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


class Mosquitto:
    """A Mosquitto of its own; `settings` are lines of mosquitto.conf, `listener` those below its listener.

    `extra_listener` are the lines below one more listener, which gets `extra_port`.
    """

    def __init__(
        self,
        directory: Path,
        *settings: str,
        listener: tuple[str, ...] = (),
        extra_listener: tuple[str, ...] = (),
    ) -> None:
        path = mosquitto_path()
        assert path is not None
        self.port, self.extra_port = free_port(), free_port()
        self.speaks: Literal["5", "3.1.1"] = "5"
        anonymous = [] if any(line.startswith("allow_anonymous") for line in settings) else ["allow_anonymous true"]
        lines = ["user root", *anonymous, *settings, f"listener {self.port} 127.0.0.1", *listener]
        if extra_listener:
            lines += [f"listener {self.extra_port} 127.0.0.1", *extra_listener]
        configuration = directory / "mosquitto.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._process = BrokerProcess([path, "-c", str(configuration)], self.port, directory / "mosquitto.log")

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self._process.end(signal.SIGTERM)

    def kill(self) -> None:
        self._process.end(signal.SIGKILL)

    def pause(self) -> None:
        """The broker answers nothing until `resume`, `stop` or `kill`; its sockets stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """Returns when its files, such as that of the ACL, are read again."""
        before = self.log().count("Reloading config")
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log().count("Reloading config") > before)

    def log(self) -> str:
        return self._process.log()


class Amqtt:
    """An amqtt in a process of its own, since it leaves sockets to the garbage collector. 3.1.1 only."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.speaks: Literal["5", "3.1.1"] = "3.1.1"
        command = [sys.executable, __file__, str(self.port)]
        self._process = BrokerProcess(command, self.port, directory / "amqtt.log")

    def start(self) -> None:
        self._process.start()

    def stop(self) -> None:
        self.kill()  # amqtt's own way out takes seconds

    def kill(self) -> None:
        self._process.end(signal.SIGKILL)


async def serve_amqtt(port: int) -> None:
    from amqtt.broker import Broker as AmqttBroker  # noqa: PLC0415  # slow, and not needed with Mosquitto

    broker = AmqttBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    await asyncio.Event().wait()


class Heard(NamedTuple):
    topic: str
    payload: bytes
    retained: bool
    qos: int
    properties: Any


class Listener:
    """A client of another make of mind: paho in a thread of its own, which writes down all that it hears."""

    def __init__(
        self, port: int, *filters: str, protocol: int = MQTTProtocolVersion.MQTTv5, username: str | None = None
    ) -> None:
        self.heard: list[Heard] = []
        self._subscribed = threading.Event()
        self._filters = filters or ("#",)
        # amqtt takes clients without an id for one and the same.
        self._mark = f"listener-{uuid.uuid4().hex[:12]}"
        self._marked = b""
        self._client = paho.Client(CallbackAPIVersion.VERSION2, self._mark, protocol=MQTTProtocolVersion(protocol))
        if username is not None:
            self._client.username_pw_set(username)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE)

    def on(self, topic: str) -> list[Heard]:
        return [heard for heard in list(self.heard) if heard.topic == topic]

    def payloads(self, topic: str) -> list[bytes]:
        return [heard.payload for heard in self.on(topic)]

    def newest(self, topic: str) -> bytes | None:
        return next(reversed(self.payloads(topic)), None)

    def caught_up(self) -> None:
        """Returns when it has heard all that the broker has acknowledged, or keeps, by now.

        The acknowledgement to who has published comes before the copy for the others, which have an order.
        """
        mark = uuid.uuid4().bytes
        self.publish(self._mark, mark)
        wait_until(lambda: self._marked == mark)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, properties: Any = None) -> None:
        self._client.publish(topic, payload, 1, retain, properties).wait_for_publish(PATIENCE)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, *_: Any) -> None:
        self._client.subscribe([(one, 1) for one in (*self._filters, self._mark)])

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        payload = bytes(message.payload)
        if message.topic == self._mark:
            self._marked = payload
        elif not message.topic.startswith("listener-"):  # those of others
            self.heard.append(Heard(message.topic, payload, message.retain, message.qos, message.properties))


@contextlib.contextmanager
def listening(
    port: int, *filters: str, protocol: int = MQTTProtocolVersion.MQTTv5, username: str | None = None
) -> Iterator[Listener]:
    listener = Listener(port, *filters, protocol=protocol, username=username)
    try:
        yield listener
    finally:
        listener.close()


class Certificates(NamedTuple):
    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, a certificate of it for localhost and 127.0.0.1, and one for a client."""
    where = tmp_path_factory.mktemp("certificates")
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=where, check=True, capture_output=True)

    openssl("req", "-x509", *ec, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    for name, subject in (("server", "/CN=localhost"), ("client", "/CN=bridge")):
        openssl("req", *ec, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        (where / f"{name}.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return Certificates(*(where / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A plain broker, of whatever make there is."""
    started: Broker = Amqtt(tmp_path) if mosquitto_path() is None else Mosquitto(tmp_path)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def new_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts Mosquittos with settings; see `Mosquitto`."""
    if mosquitto_path() is None:
        pytest.skip("needs a feature of Mosquitto, which is not installed")
    started: list[Mosquitto] = []

    def start(*settings: str, **listeners: tuple[str, ...]) -> Mosquitto:
        directory = tmp_path / f"mosquitto-{len(started)}"
        directory.mkdir()
        one = Mosquitto(directory, *settings, **listeners)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()


if __name__ == "__main__":
    asyncio.run(serve_amqtt(int(sys.argv[1])))
