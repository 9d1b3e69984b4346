"""The whole line: simulated cloud, the real process, a real broker, a real webhook receiver, and what each saw."""

import asyncio
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        Webhook(SECRET).verify(body, dict(request.headers))
        if self.refuse_with is not None:
            return web.Response(status=self.refuse_with)
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
        "webhooks": [{"name": "hook", "url": hook_url, "secret": SECRET}] if hook_url else [],
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
        return self._errors.read_text()

    async def stop(self, how: signal.Signals = signal.SIGTERM, *, within: float = 20.0) -> int:
        if self.process.returncode is None:
            self.process.send_signal(how)
        async with asyncio.timeout(within):
            return await self.process.wait()


@asynccontextmanager
async def running(
    config: Path, *, level: str = "info", environment: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    errors = config.parent / "stderr.log"
    with errors.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bace_bridge", "run", "-c", str(config), "--log-level", level,
            stderr=stderr, stdout=stderr, env={**os.environ, "NOTIFY_SOCKET": "", **(environment or {})},
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


Stage = {
    "session.started": 0,
    "session.datapoints": 1,
    "session.ended": 2,
    "session.csv_ready": 3,
}


def complaints(
    arrivals: list[Arrival],
    sessions: dict[str, dict[tuple[str, float], float]],
    *,
    twice_allowed: bool = False,
) -> list[str]:
    """What is wrong with what arrived: `sessions` holds each session's expected points by (series, timestamp)."""
    wrong: list[str] = []
    ids = Counter(one.id for one in arrivals)
    if not twice_allowed and (twice := [one for one, count in ids.items() if count > 1]):
        wrong.append(f"{len(twice)} events came twice")
    by_session: dict[str, list[Arrival]] = defaultdict(list)
    seen: set[str] = set()
    for one in arrivals:
        if one.session is not None and one.id not in seen:
            seen.add(one.id)
            by_session[one.session].append(one)
    for session, expected in sessions.items():
        wrong += [f"{session}: {text}" for text in _complaints_of(by_session.get(session, []), expected)]
    return wrong


def _complaints_of(arrivals: list[Arrival], expected: dict[tuple[str, float], float]) -> list[str]:
    kinds = [one.type for one in arrivals if one.type != "session.updated"]
    wrong: list[str] = []
    once = ("session.started", "session.ended", "session.csv_ready")
    wrong += [f"{kinds.count(kind)} x {kind}" for kind in once if kinds.count(kind) != 1]
    if not wrong:
        if kinds[0] != "session.started":
            wrong.append(f"begins with {kinds[0]}")
        if kinds[-1] != "session.csv_ready":
            wrong.append(f"ends with {kinds[-1]}")
    told: Counter[tuple[str, str, int]] = Counter()
    for one in arrivals:
        for point in one.body.get("datapoints", []):
            told[(point["series_id"], point["timestamp"], point["revision"])] += 1
    if twice := [key for key, count in told.items() if count > 1]:
        wrong.append(f"{len(twice)} points twice")
    if len({(series, stamp) for series, stamp, _ in told}) != len(expected):
        wrong.append(f"{len({(series, stamp) for series, stamp, _ in told})} points of {len(expected)}")
    return wrong
