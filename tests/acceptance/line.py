"""The whole line: simulated cloud, the real process, a real broker, a real webhook receiver, and what each saw."""

import asyncio
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiohttp import web
from standardwebhooks.webhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAAAAAAAA"


class Arrival(msgspec.Struct, frozen=True):
    """One event as a subscriber or receiver got it."""

    type: str
    id: str
    session: str | None
    body: dict[str, Any]


class Receiver:
    """A webhook endpoint that verifies each signature."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.url = ""
        self.refuse_with: int | None = None
        self.takes_seconds: Callable[[], float] = lambda: 0.0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        Webhook(SECRET).verify(body, dict(request.headers))
        if self.refuse_with is not None:
            return web.Response(status=self.refuse_with)
        await asyncio.sleep(self.takes_seconds())
        event = msgspec.json.decode(body, type=dict[str, Any])
        assert request.headers["webhook-id"] == event["id"]
        self.arrivals.append(
            Arrival(event["type"].removeprefix("bace."), event["id"], event.get("subject"), event["data"])
        )
        return web.Response(status=204)


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    endpoint = Receiver()
    app = web.Application()
    app.router.add_post("/hook", endpoint.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    endpoint.url = f"http://127.0.0.1:{port}/hook"
    try:
        yield endpoint
    finally:
        await runner.cleanup()


def configuration(
    folder: Path,
    *,
    cloud_url: str,
    mqtt_port: int | None = None,
    hook_url: str | None = None,
    interval: str = "300ms",
    start_from: str = "now",
    hook_timeout: str = "15s",
    extra: dict[str, Any] | None = None,
) -> Path:
    """Writes a bridge.yaml (JSON is YAML) and returns its path."""
    config: dict[str, Any] = {
        "cloud": {
            "url": cloud_url,
            "client_id": "simulator",
            "client_secret": "simulator-secret",
            "username": "demo@example.org",
            "password": "demo",
            "requests_per_minute": 100_000,
        },
        "watch": {"session_interval": interval, "datapoint_interval": interval, "start_from": start_from},
        "store": {"url": f"sqlite:///{folder}/bridge.db"},
        "mqtt": [{"name": "home", "url": f"mqtt://127.0.0.1:{mqtt_port}"}] if mqtt_port else [],
        "webhooks": [{"name": "hook", "url": hook_url, "secret": SECRET, "timeout": hook_timeout}] if hook_url else [],
        "http": {"listen": ""},
    }
    for section, values in (extra or {}).items():
        config[section] = {**config[section], **values}
    path = folder / "bridge.yaml"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    return path


class Process:
    """A running `bace-bridge run`."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.process = process
        self._errors = errors

    @property
    def log(self) -> str:
        """Without a last line of which only a part is written yet."""
        text = self._errors.read_text(errors="replace")
        return text[: text.rfind("\n") + 1]

    async def stop(self, how: signal.Signals = signal.SIGTERM, *, within: float = 60.0) -> int:
        if self.process.returncode is None:
            self.process.send_signal(how)
        async with asyncio.timeout(within):
            return await self.process.wait()


@asynccontextmanager
async def running(
    config: Path,
    *,
    level: str = "info",
    environment: dict[str, str] | None = None,
    failpoint: str = "",
    module: str = "bace_bridge",
) -> AsyncIterator[Process]:
    """Without the terminal that the tests may be run on: there SIGHUP would end it."""
    errors = config.parent / "stderr.log"
    program = ["tests.faults.failpoints", failpoint] if failpoint else [module]
    with errors.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *program, "run", "-c", str(config), "--log-level", level,
            stdin=asyncio.subprocess.DEVNULL, stderr=stderr, stdout=stderr, start_new_session=True,
            env={**os.environ, "NOTIFY_SOCKET": "", **(environment or {})},
        )  # fmt: skip
    one = Process(process, errors)
    try:
        yield one
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], bool], *, within: float, what: str) -> None:
    """Waits for a condition; fails with `what` was waited for."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within:g} s: {what}") from None


def from_mqtt(topic: str, payload: bytes) -> Arrival | None:
    """An event message, of either kind; None for retained state."""
    kind = topic.rsplit("/", 1)[-1]
    if kind == "event":
        body = msgspec.json.decode(payload, type=dict[str, Any])
        return Arrival(body["event_type"], body["id"], (body.get("session") or {}).get("id"), body)
    if kind == "datapoints":
        body = msgspec.json.decode(payload, type=dict[str, Any])
        return Arrival("session.datapoints", body["id"], body["session_id"], body)
    return None


class Complaint(msgspec.Struct, frozen=True):
    """What is wrong: something never came, came in a wrong order, arrived twice as two facts, or has other values."""

    kind: Literal["lost", "order", "twice", "values"]
    text: str


Expected = Mapping[str, Mapping[tuple[str, float], float]]
"""Each session's points by (series, timestamp), with the values that they had in the end."""

ONCE = ("session.started", "session.ended", "session.csv_ready")


def complaints(arrivals: Sequence[Arrival], sessions: Expected, *, twice_allowed: bool = False) -> list[Complaint]:
    """What is wrong with what one sink got. The order is that of first arrivals."""
    wrong: list[Complaint] = []
    ids = Counter(one.id for one in arrivals)
    if not twice_allowed and (twice := [one for one, count in ids.items() if count > 1]):
        wrong.append(Complaint("twice", f"{len(twice)} events came twice"))
    by_session: dict[str, list[Arrival]] = defaultdict(list)
    seen: set[str] = set()
    for one in arrivals:
        if one.session is not None and one.id not in seen:
            seen.add(one.id)
            by_session[one.session].append(one)
    for session, expected in sessions.items():
        arrived = by_session.get(session, [])
        found = [*_of_its_life(arrived), *_of_its_points(arrived, expected)]
        wrong += [Complaint(one.kind, f"{session}: {one.text}") for one in found]
    return wrong


def _of_its_life(arrived: Sequence[Arrival]) -> Iterator[Complaint]:
    kinds = [one.type for one in arrived]
    for kind in ONCE:
        if kind not in kinds:
            yield Complaint("lost", f"no {kind}")
        elif kinds.count(kind) > 1:
            yield Complaint("twice", f"{kinds.count(kind)} x {kind}")
    if kinds and kinds[0] != "session.started":
        yield Complaint("order", f"begins with {kinds[0]}")
    if "session.csv_ready" in kinds[:-1]:
        yield Complaint("order", f"after session.csv_ready: {', '.join(kinds[kinds.index('session.csv_ready') + 1 :])}")
    labels = {one.body["session"]["label"] for one in arrived if one.type in ONCE}
    if len(labels) > 1 and "session.updated" not in kinds:
        yield Complaint("lost", "no session.updated for its new label")


def _of_its_points(arrived: Sequence[Arrival], expected: Mapping[tuple[str, float], float]) -> Iterator[Complaint]:
    revisions: dict[tuple[str, float], list[int]] = defaultdict(list)
    values: dict[tuple[str, float], float] = {}
    for one in arrived:
        for point in one.body.get("datapoints", []):
            key = (point["series_id"], round(datetime.fromisoformat(point["timestamp"]).timestamp(), 3))
            revisions[key].append(point["revision"])
            values[key] = point["avg"]
    if missing := expected.keys() - values.keys():
        yield Complaint("lost", f"{len(missing)} points of {len(expected)}")
    if invented := values.keys() - expected.keys():
        yield Complaint("values", f"{len(invented)} points that the cloud never had")
    if other := [key for key in expected.keys() & values.keys() if values[key] != expected[key]]:
        yield Complaint("lost", f"the final values of {len(other)} points")
    for key, numbers in revisions.items():
        if len(set(numbers)) != len(numbers):
            yield Complaint("twice", f"revisions {numbers} of the point {key}")
        elif numbers != sorted(numbers):
            yield Complaint("order", f"revisions {numbers} of the point {key}")
        elif numbers != list(range(len(numbers))):
            yield Complaint("lost", f"only the revisions {numbers} of the point {key}")
