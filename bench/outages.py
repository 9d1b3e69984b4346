"""Webhooks that hang, fail and come back: what that costs the others, and how a backlog drains."""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bace_bridge.store.eventlog import EventLog
from bench import machinery
from bench.processes import bridge, cloud, resident_mb, wait_for
from bench.report import Row

SECRET = "whsec_" + "A" * 32
GOOD = 8
BACKLOG = 20_000
RATE = 2_000


class Receiver:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def webhook(self, name: str, path: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "url": f"{self.url}{path}", "secret": SECRET, **more}


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    port = machinery.free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "bench.receiver", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield Receiver(process, port)
        finally:
            process.terminate()


def isolation(runs: int) -> list[Row]:
    """From the opening of a session in the cloud to eight good webhooks, with and without two bad ones beside them."""
    beside, alone = [], []
    for _ in range(max(1, runs // 2)):
        alone.append(good_p99(with_bad_ones=False))
        beside.append(good_p99(with_bad_ones=True))
    return [
        Row("p99 at 8 good webhooks beside a hanging and a failing one", beside, alone, "without", "<= 1.2 x", " ms")
    ]


def good_p99(*, with_bad_ones: bool, sessions: int = 300, interval: float = 0.25) -> float:
    """Milliseconds from a session's opening to its arrival at the good webhooks, the 99th percentile of all."""
    with tempfile.TemporaryDirectory() as name, cloud("100") as source, receiver() as endpoint:
        webhooks = [endpoint.webhook(f"good-{one}", f"/good/{one}") for one in range(GOOD)]
        if with_bad_ones:
            webhooks += [endpoint.webhook("hanging", "/hang"), endpoint.webhook("failing", "/fail")]
        url = source.about["url"]
        with bridge(Path(name), url, None, interval=f"{interval}s", start_from="now", webhooks=webhooks):
            wait_for(lambda: len(source.ask("requests")) > 4, within=20)
            opened = []
            for number in range(sessions):
                time.sleep(0.02 + (number * 0.0377) % 0.03)
                opened.append(source.ask("open"))
            wait_for(lambda: all(len(one) >= sessions for one in started(endpoint)), within=60)
            waits = [
                arrival - begin
                for arrivals in started(endpoint)
                for begin, arrival in zip(opened, sorted(arrivals), strict=False)
            ]
    return float(1000 * sorted(waits)[int(0.99 * len(waits))])


def started(endpoint: Receiver) -> list[list[float]]:
    arrivals = endpoint.ask("arrivals")
    return [[at for at, _ in arrivals.get(f"/good/{one}", [])] for one in range(GOOD)]


def outage(_runs: int) -> list[Row]:
    """A backlog of 20,000 events, whose endpoint comes back after a while and has a rate limit."""
    with tempfile.TemporaryDirectory() as name, cloud("100") as source, receiver() as endpoint:
        folder = Path(name)
        empty = idle_memory(source.about["url"], endpoint)
        asyncio.run(fill(folder))
        endpoint.ask("down")
        webhook = endpoint.webhook("hook", "/switch", rate_limit=RATE)
        with bridge(folder, source.about["url"], None, interval="1s", start_from="now", webhooks=[webhook]) as process:
            time.sleep(4)
            endpoint.ask("up")
            up = time.time()
            wait_for(lambda: len({one for _, one in taken(endpoint)}) >= BACKLOG, within=120)
            arrivals = taken(endpoint)
            peak, now = peak_mb(process.pid), resident_mb(process.pid)
    ids = Counter(event_id for _, event_id in arrivals)
    first, last = arrivals[0][0], max(at for at, _ in arrivals)
    per_second = Counter(int(at - first) for at, _ in arrivals)
    return [
        Row("backlog of 20,000: events delivered", [len(ids)]),
        Row("backlog of 20,000: delivered twice", [sum(ids.values()) - len(ids)]),
        Row("from the endpoint's return to the last event", [last - up], unit=" s"),
        Row("most requests in a second", [max(per_second.values())], goal=f"<= {RATE}"),
        Row("peak memory meanwhile, over that of an idle bridge", [peak - empty], goal="<= 20", unit=" MB"),
        Row("memory after it, over that of an idle bridge", [now - empty], unit=" MB"),
    ]


def taken(endpoint: Receiver) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = endpoint.ask("arrivals").get("/switch", [])
    return found


def idle_memory(url: str, endpoint: Receiver) -> float:
    webhook = endpoint.webhook("hook", "/switch")
    with (
        tempfile.TemporaryDirectory() as name,
        bridge(Path(name), url, None, interval="1s", start_from="now", webhooks=[webhook]) as process,
    ):
        time.sleep(3)
        return peak_mb(process.pid)


async def fill(folder: Path) -> None:
    events = machinery.session_events(BACKLOG, sessions=400)
    async with machinery.filled_log(folder, [], name="bridge.db") as (log, _):
        await log.open_sink("hook", target="")
    async with machinery.filled_log(folder, events, name="bridge.db") as (log, _):
        assert isinstance(log, EventLog)


def peak_mb(pid: int | str = "self") -> float:
    """The largest resident memory so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
