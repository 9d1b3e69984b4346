"""Figures of the real process: draining a backlog, idling, starting, and the time from the cloud to a subscriber."""

import compileall
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

import bace_bridge
from bench import cloud as bench_cloud
from bench import machinery, peers
from bench.report import Row

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class Cloud:
    """A simulated cloud in a process of its own, asked line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.about: dict[str, Any] = json.loads(self._line())

    def ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextlib.contextmanager
def cloud(kind: str, *, module: str = "bench.cloud") -> Iterator[Cloud]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(machinery.free_port()), kind],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        yield Cloud(process)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def bridge(
    folder: Path,
    url: str,
    port: int | None,
    *,
    start_from: str,
    interval: str | None = None,
    datapoint_interval: str | None = None,
    per_minute: int = 1_000_000,
    webhooks: Sequence[dict[str, Any]] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """The real process; without an interval with the default ones."""
    intervals = {"session_interval": interval, "datapoint_interval": datapoint_interval or interval}
    config = {
        "cloud": {
            "url": url,
            "client_id": "simulator",
            "client_secret": "simulator-secret",
            "username": "demo@example.org",
            "password": "demo",
            "requests_per_minute": per_minute,
        },
        "watch": {"start_from": start_from, **{name: each for name, each in intervals.items() if each}},
        "store": {"url": f"sqlite:///{folder}/bridge.db"},
        "mqtt": [{"name": "home", "url": f"mqtt://127.0.0.1:{port}"}] if port else [],
        "webhooks": list(webhooks),
        "http": {"listen": ""},
    }
    path = folder / "bridge.yaml"
    path.write_text(json.dumps(config))
    compileall.compile_dir(Path(bace_bridge.__file__).parent, quiet=1)  # as an installation does
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bace_bridge", "run", "-c", str(path), "--log-level", "warning"],
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def subscriber(port: int) -> Iterator[list[tuple[float, str, bytes]]]:
    """What arrives, with the time of its arrival."""
    heard: list[tuple[float, str, bytes]] = []
    client = paho.Client(CallbackAPIVersion.VERSION2)

    def subscribe(*_: Any) -> None:
        client.subscribe("bace/#", qos=1)

    def hear(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        heard.append((time.time(), message.topic, bytes(message.payload)))

    client.on_connect, client.on_message = subscribe, hear
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def token_of(url: str) -> str:
    form = (
        b"client_id=simulator&client_secret=simulator-secret&grant_type=password"
        b"&username=demo@example.org&password=demo"
    )
    with urllib.request.urlopen(f"{url}/oauth2/token", data=form) as answer:
        return str(json.loads(answer.read())["access_token"])


def drain(runs: int) -> list[Row]:
    """From the first request for datapoints to the last point at a subscriber, all durable on the way."""
    ours, naive = [], []
    for _ in range(runs):
        with (
            tempfile.TemporaryDirectory() as name,
            machinery.mosquitto(Path(name)) as port,
            cloud("backlog") as source,
        ):
            url, session = source.about["url"], source.about["session"]
            peers.naive_script(url, token_of(url), session, port)
            seconds, points = peers.naive_script(url, token_of(url), session, port)
            naive.append(points / seconds)
            with subscriber(port) as heard, bridge(Path(name), url, port, interval="60s", start_from="now"):
                wait_for(lambda: arrived(heard) >= bench_cloud.POINTS, within=60)
                first = min(at for at, path in source.ask("requests") if path.endswith("data-downsampled") and at > 0)
                ours.append(bench_cloud.POINTS / (heard_last(heard) - newest_bridge_start(source, first)))
    return [
        Row(
            "drain of 20,000 points, durable, MQTT QoS 1, points/s",
            ours,
            naive,
            "naive script, not durable",
            "",
        )
    ]


def newest_bridge_start(source: Cloud, _first: float) -> float:
    """When the bridge, which polls the session list first, asked for datapoints."""
    requests = source.ask("requests")
    lists = [index for index, (_, path) in enumerate(requests) if path.endswith("/data-session")]
    after = requests[lists[0] :]
    return float(next(at for at, path in after if path.endswith("data-downsampled")))


def arrived(heard: list[tuple[float, str, bytes]]) -> int:
    return sum(payload.count(b'"series_id"') for _, topic, payload in list(heard) if topic.endswith("/datapoints"))


def heard_last(heard: list[tuple[float, str, bytes]]) -> float:
    return max(at for at, topic, _ in heard if topic.endswith("/datapoints"))


def wait_for(condition: Any, *, within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the bench waited in vain")
        time.sleep(0.01)


def idle(_runs: int, *, seconds: float = 30.0) -> list[Row]:
    """Memory, CPU and requests of a bridge that watches 50,000 finished sessions once a second."""
    with (
        tempfile.TemporaryDirectory() as name,
        machinery.mosquitto(Path(name)) as port,
        cloud("50000") as source,
    ):
        launched = time.time()
        with bridge(Path(name), source.about["url"], port, interval="1s", start_from="now") as process:
            time.sleep(5)
            requests = source.ask("requests")
            first_start, began = len([one for one in requests if one[0] < requests[0][0] + 0.9]), time.time()
            cpu = cpu_seconds(process.pid)
            time.sleep(seconds)
            used = cpu_seconds(process.pid) - cpu
            polls = [at for at, _ in source.ask("requests") if at >= began]
            memory = resident_mb(process.pid)
    return [
        Row("start -> first request, seconds", [requests[0][0] - launched], goal="<= 0.40", unit=" s"),
        Row("requests of the first start, 50,000 sessions", [float(first_start)]),
        Row("requests per idle poll, 50,000 sessions", [len(polls) / seconds], goal="<= 2, aim 1"),
        Row("memory idle (RSS)", [memory], goal="<= 58", unit=" MB"),
        Row("CPU idle at one poll a second", [100 * used / seconds], goal="<= 0.3", unit=" %"),
    ]


def latency(_runs: int, *, interval: float = 1.0, changes: int = 60) -> list[Row]:
    """From a session's opening in the cloud to its event at a subscriber, in multiples of the poll interval."""
    with (
        tempfile.TemporaryDirectory() as name,
        machinery.mosquitto(Path(name)) as port,
        cloud("100") as source,
        subscriber(port) as heard,
        bridge(Path(name), source.about["url"], port, interval="1s", start_from="now"),
    ):
        time.sleep(4)
        opened = []
        for number in range(changes):
            time.sleep(0.61 + (number * 0.377) % 0.5)
            opened.append(source.ask("open"))
        time.sleep(3)
        started = [at for at, topic, body in heard if topic.endswith("/event") and b'"session.started"' in body]
    assert len(started) == changes, f"{len(started)} of {changes} arrived"
    waits = sorted((end - begin) / interval for begin, end in zip(opened, sorted(started), strict=True))
    return [
        Row("cloud -> subscriber, p50, poll intervals", [waits[len(waits) // 2]]),
        Row("cloud -> subscriber, p99, poll intervals", [waits[int(len(waits) * 0.99)]]),
    ]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid: int | str = "self") -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_SIZE / 1e6
