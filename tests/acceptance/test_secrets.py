"""Canaries: every secret that the bridge holds, with other sides that echo whatever they are sent.

Searched are the log, the store, what goes to MQTT and webhooks, the health answers, and the output of every command.
"""

import asyncio
import json
import re
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.acceptance.line import configuration, running, until
from tests.integration.brokers import Broker, Listener, free_port, listening

PASSWORD = "canary-password-4711"
CLIENT_SECRET = "canary-client-secret-4711"
ACCESS, REFRESH = "canary-access-token-4711", "canary-refresh-token-4711"
SIGNING = "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5NDcxMQ=="
URL_PATH = "canary-hook-path-4711"
HEADER = "canary-header-4711"
MQTT_PASSWORD = "canary-mqtt-4711"

TOKENS = (ACCESS, REFRESH)
NEVER = (PASSWORD, CLIENT_SECRET, SIGNING, SIGNING.removeprefix("whsec_"), URL_PATH, HEADER, MQTT_PASSWORD)

SESSION = {
    "id_data_session": "86d70a1b-0000-4000-8000-000000000001", "id_group": "4c1c81ca-0000-4000-8000-000000000001",
    "start": 1_764_590_400, "end": None, "created_at": 1_764_590_404, "updated_at": 1_764_590_500,
    "label": "Night", "datapoint_count": 0, "isIngestionFinished": False, "isArchived": False,
}  # fmt: skip


FINISHED = {
    **SESSION, "id_data_session": "86d70a1b-0000-4000-8000-000000000002", "end": 1_764_590_450,
    "isIngestionFinished": True,
}  # fmt: skip
CSV = f"/api/v2/data-session/{FINISHED['id_data_session']}/download-csv"
SIGNATURE = re.compile(r"signature=([A-Za-z0-9_-]{43})")


class Echo:
    """A cloud and a webhook that answer with all that they were sent, in every shape that a server may choose."""

    def __init__(self) -> None:
        self.asked = 0
        self.shape = ""
        self.posted = 0
        self.url = ""

    async def everything(self, request: web.Request) -> str:
        body = (await request.read()).decode()
        return f"{request.method} {request.path_qs} {dict(request.headers)} {body}"[:3000]

    async def token(self, request: web.Request) -> web.Response:
        if "grant_type=password" in await request.text():
            return web.json_response({"access_token": ACCESS, "refresh_token": REFRESH, "expires_in": 86400})
        return web.json_response({"message": await self.everything(request)}, status=400)

    async def sessions(self, request: web.Request) -> web.Response:
        self.asked += 1
        said = await self.everything(request)
        meta = {"totalCount": 2, "pageCount": 1, "currentPage": 1, "perPage": 20}
        answers: dict[str, tuple[int, object]] = {
            "": (200, {"items": [SESSION, FINISHED], "_meta": meta}),
            "403": (403, {"name": "Forbidden", "message": said}),
            "500": (500, {"name": "Error", "message": f"{ACCESS} {said}"}),
            "422": (422, [{"field": said, "message": f"{ACCESS} {said}"}]),
            "401": (401, {"message": f"token {ACCESS} is not known"}),
            "mistyped": (200, {"items": [{**SESSION, "start": ACCESS}, {**SESSION, "id_group": [ACCESS]}]}),
            "html": (200, f"<html>{said}</html>"),
            "cut off": (200, f'{{"items": [{{"start": "{ACCESS}"'),
        }
        status, body = answers[self.shape]
        return web.Response(text=body if isinstance(body, str) else json.dumps(body), status=status)

    async def csv(self, request: web.Request) -> web.Response:
        return web.Response(text=f"{ACCESS} {await self.everything(request)}", status=500)

    async def hook(self, request: web.Request) -> web.Response:
        self.posted += 1
        return web.Response(text=f"no: {SIGNING} {await self.everything(request)}", status=500)


@asynccontextmanager
async def echoing() -> AsyncIterator[Echo]:
    echo = Echo()
    app = web.Application()
    app.router.add_post("/oauth2/token", echo.token)
    app.router.add_get("/api/v2/data-session", echo.sessions)
    app.router.add_get(CSV, echo.csv)
    app.router.add_post(f"/{URL_PATH}", echo.hook)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    echo.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield echo
    finally:
        await runner.cleanup()


async def output(config: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bace_bridge", *arguments, "-c", str(config),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    return (await process.communicate())[0].decode()


def settings(folder: Path, echo: Echo, broker: Broker, health: int) -> Path:
    config = configuration(folder, cloud_url=echo.url, mqtt_port=broker.port, hook_url=f"{echo.url}/{URL_PATH}")
    given: dict[str, Any] = json.loads(config.read_text())
    given["cloud"] |= {"password": PASSWORD, "client_secret": CLIENT_SECRET}
    given["mqtt"][0] |= {"username": "bridge", "password": MQTT_PASSWORD}
    given["webhooks"][0] |= {"secret": SIGNING, "headers": {"X-Key": HEADER}}
    given["webhooks"].append({**given["webhooks"][0], "name": "links", "events": ["session.csv_ready"]})
    given["watch"]["start_from"] = "all"
    given["csv"] = {"link_base": f"http://127.0.0.1:{health}"}
    given["http"] = {"listen": f"127.0.0.1:{health}"}
    config.write_text(json.dumps(given))
    return config


def of_links(listener: Listener) -> Iterator[str]:
    """What MQTT was told of the finished session."""
    for one in listener.heard:
        if one.topic.endswith("/event") and b"session.csv_ready" in one.payload:
            yield json.loads(one.payload)["csv"]["link"]


def in_the_store(path: Path) -> str:
    """The store as text, but for the tokens and the keys of links, which are kept there on purpose."""
    connection = sqlite3.connect(path)
    connection.execute("delete from facts where name like 'token:%' or name = 'csv:signing-keys'")
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.rollback()
        connection.close()


@pytest.mark.slow
async def test_no_secret_is_shown_anywhere(broker: Broker, tmp_path: Path) -> None:
    shown: dict[str, str] = {}
    health = free_port()
    async with echoing() as echo, aiohttp.ClientSession() as http:
        config = settings(tmp_path, echo, broker, health)
        with listening(broker.port, "#") as listener:
            async with running(config, level="debug") as bridge:
                await until(lambda: "mqtt.connected" in bridge.log, within=60, what="the broker")
                for shape in ("", "403", "500", "422", "401", "html", "mistyped", "cut off", ""):
                    echo.shape, before = shape, echo.asked
                    async with asyncio.timeout(60):
                        while echo.asked < before + 3:  # the second failure in a row is reported as an event
                            listener.publish("bace/bridge/request/poll", b"{}")
                            await asyncio.sleep(0.1)
                await until(lambda: echo.posted >= 3, within=60, what="the webhook has got them")
                for path in ("healthz", "readyz", "", "nonsense"):
                    async with http.get(f"http://127.0.0.1:{health}/{path}") as response:
                        shown[f"GET /{path}"] = await response.text()
                await until(lambda: [*of_links(listener)] != [], within=60, what="a link")
                links = [*of_links(listener)]
                for link in links:
                    async with http.get(link) as response:
                        assert response.status == 502
                        shown["GET a link"] = await response.text()
                    async with http.get(link[:-1]) as response:
                        shown["GET a changed link"] = await response.text()
                await until(lambda: "csv.broken_off" in bridge.log, within=60, what="the log of it")
                assert await bridge.stop() == 0
                shown["log"] = bridge.log
            shown["mqtt"] = "\n".join(f"{one.topic} {one.payload!r} {one.properties}" for one in listener.heard)
        for arguments in (
            ("check", "--json"), ("sessions", "--json"), ("events", "--json"), ("events",),
            ("dead-letters", "list", "--parked", "--json"), ("dead-letters", "list", "--parked"),
            ("dead-letters", "list", "--json"),
        ):  # fmt: skip
            shown[" ".join(arguments)] = await output(config, *arguments)
    assert "HTTP 500" in shown["dead-letters list --parked --json"], "the answers are kept"
    shown["store"] = in_the_store(tmp_path / "bridge.db")
    signatures = {SIGNATURE.findall(one)[0] for one in links}
    assert signatures, "there was a link"
    # A message that holds a link is the one place for it.
    places = {place: text for place, text in shown.items() if place != "mqtt"}
    assert [(place, one) for place, text in places.items() for one in signatures if one[4:20] in text] == []
    assert [place for place, text in places.items() if SIGNATURE.search(text)] == []
    assert b"signature=" not in (tmp_path / "bridge.db").read_bytes().replace(b"signature=***", b"")
    hits = {(place, secret) for place, text in shown.items() for secret in (*NEVER, *TOKENS) if secret in text}
    assert hits == set()

    for file in tmp_path.iterdir():
        if file.name.startswith("bridge.db"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
            assert [secret for secret in NEVER if secret.encode() in file.read_bytes()] == [], file.name
