"""Every secret that the bridge has, with other sides that repeat all of them in every way in which a server may.

Searched are the log, the store (also its raw bytes), what goes to MQTT, the health answers, and the commands' output.
"""

import asyncio
import html
import itertools
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import aiohttp
import pytest
from aiohttp import web

from tests.acceptance.line import configuration, running, until
from tests.acceptance.test_secrets import in_the_store, output
from tests.integration.brokers import Broker, free_port, listening

ODD = "ä/\"&<'+% "
SECRETS = {
    "password": f"canary-1{ODD}4711",
    "client_secret": f"canary-2{ODD}4711",
    "mqtt password": f"canary-3{ODD}4711",
    "header": f"canary-4{ODD}4711".replace("ä", ""),
    "bearer": "canary-5/4711+Zm9v==",
    "cookie": "canary-a_4711",
    "http token": f"canary-6{ODD}4711",
    "url path": "canary-7-4711",
    "url signature": "canary-8%2F4711%3D",
    "signing": "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5NDcxMQ==",
    "access token": "canary-9/access+4711==",
    "refresh token": "canary-0/refresh+4711==",
}
KEPT_ON_PURPOSE = ("access token", "refresh token")

WAYS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "PHP's JSON": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "URL": lambda text: quote(text, safe=""),
    "URL, small": lambda text: quote(text, safe="").replace("%2F", "%2f").replace("%C3%A4", "%c3%a4"),
    "form": quote_plus,
    "URL in a URL": lambda text: quote(quote(text, safe=""), safe=""),
    "HTML": html.escape,
    "JSON in HTML": lambda text: html.escape(json.dumps(text)[1:-1]),
    "Basic": lambda text: b64encode(f"me@example.org:{text}".encode()).decode(),
    "base64 for URLs": lambda text: urlsafe_b64encode(f"?{text}".encode()).decode(),
}
ID = "86d70a1b-0000-4000-8000-{:012}"


def session(number: int) -> dict[str, object]:
    return {
        "id_data_session": ID.format(number), "id_group": "4c1c81ca-0000-4000-8000-000000000001",
        "start": 1_764_590_400 + number, "end": None, "created_at": 1_764_590_404, "updated_at": 1_764_590_500 + number,
        "label": "Night", "datapoint_count": 0, "isIngestionFinished": False, "isArchived": False,
    }  # fmt: skip


class Echo:
    """A cloud and a webhook which know every secret."""

    def __init__(self) -> None:
        self.url = ""
        self.repeated = self.posted = 0
        self._asked = 0
        self._refreshes = 0
        self._ways = itertools.cycle(itertools.product(WAYS.values(), SECRETS.values()))

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        self._refreshes += form["grant_type"] == "refresh_token"
        if form["grant_type"] == "password" or self._refreshes % 4 == 0:
            tokens = {"access_token": SECRETS["access token"], "refresh_token": SECRETS["refresh token"]}
            return web.json_response({**tokens, "expires_in": 86400})
        return web.json_response({"message": self._everything()}, status=(400, 500)[self._refreshes % 2])

    async def sessions(self, _: web.Request) -> web.Response:
        self._asked += 1
        if self._asked % 2:
            page = {"totalCount": len(WAYS), "pageCount": 1, "currentPage": 1, "perPage": 100}
            return web.json_response({"items": [session(number) for number in range(len(WAYS))], "_meta": page})
        self.repeated += 1
        said = self._everything()
        answers: tuple[tuple[int, object], ...] = (
            (403, {"name": "Forbidden", "message": said}),
            (500, {"name": said}),
            (422, [{"field": said, "message": said}]),
            (401, {"message": said}),
            (429, {"message": said}),
            (503, {"message": "x" * (60 + self.repeated % 60) + said}),
            (200, {"items": [{**session(0), "id_data_session": f"{said[:90]} "}]}),
            (200, {"items": [{**session(0), "start": said}]}),
            (404, {"message": "x" * (4090 - self.repeated % 60) + said}),
        )
        status, body = answers[self.repeated % len(answers)]
        return web.json_response(body, status=status, headers={"Retry-After": "1"})

    async def hook(self, _: web.Request) -> web.Response:
        way = list(WAYS.values())[self.posted % len(WAYS)]
        self.posted += 1
        everything = " ".join(way(secret) for secret in SECRETS.values())
        return web.Response(text=everything + "x" * (2030 - len(everything) % 2000) + everything, status=500)

    def _everything(self) -> str:
        """Only the beginning is ever quoted: each time another secret, in another way, is the first."""
        way, secret = next(self._ways)
        return f"{way(secret)} {' '.join(SECRETS.values())}"


@asynccontextmanager
async def echoing() -> AsyncIterator[Echo]:
    echo = Echo()
    app = web.Application()
    app.router.add_post("/oauth2/token", echo.token)
    app.router.add_get("/api/v2/data-session", echo.sessions)
    app.router.add_post("/{path:.*}", echo.hook)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    echo.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield echo
    finally:
        await runner.cleanup()


def settings(folder: Path, echo: Echo, broker: Broker, health: int) -> Path:
    hook = f"{echo.url}/{SECRETS['url path']}?sp=%2Frun&sig={SECRETS['url signature']}"
    config = configuration(folder, cloud_url=echo.url, mqtt_port=broker.port, hook_url=hook)
    given: dict[str, Any] = json.loads(config.read_text())
    given["cloud"] |= {"password": SECRETS["password"], "client_secret": SECRETS["client_secret"]}
    given["mqtt"][0] |= {"username": "bridge", "password": SECRETS["mqtt password"]}
    headers = {"X-Key": SECRETS["header"], "Authorization": f"Bearer {SECRETS['bearer']}"}
    headers["Cookie"] = f"session={SECRETS['cookie']}; theme=dark"
    given["webhooks"][0] |= {"secret": SECRETS["signing"], "headers": headers, "max_in_flight": 1}
    given["http"] = {"listen": f"127.0.0.1:{health}", "token": SECRETS["http token"]}
    config.write_text(json.dumps(given))
    return config


def found(shown: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Where which secret is, and in which form; of a beginning 12 characters of the plain one are enough."""
    for place, text in shown.items():
        for name, secret in SECRETS.items():
            for way, written in WAYS.items():
                forms = {written(secret), json.dumps(written(secret))[1:-1]}
                if any(form in text for form in forms):
                    yield place, name, way
            if secret[:12] in text:
                yield place, name, "its beginning"


@pytest.mark.slow
async def test_no_echo_of_a_secret_is_shown_anywhere(broker: Broker, tmp_path: Path) -> None:
    shown: dict[str, str] = {}
    health = free_port()
    async with echoing() as echo, aiohttp.ClientSession() as http:
        config = settings(tmp_path, echo, broker, health)
        with listening(broker.port, "bace/#") as listener:
            async with running(config, level="debug") as bridge:
                await until(lambda: "mqtt.connected" in bridge.log, within=60, what="the broker")
                hostile = SECRETS["mqtt password"]
                for name in (hostile, "x" * 50 + hostile):
                    listener.publish("bace/bridge/info", json.dumps({"installation": name}).encode(), retain=True)
                    listener.publish("bace/bridge/guest/" + quote(name, safe=""), b"{}", retain=True)
                    listener.publish("bace/bridge/request/replay", json.dumps({"since": name}).encode())
                answers: list[str] = []
                async with asyncio.timeout(240):
                    while echo.repeated < len(WAYS) or echo.posted < len(WAYS):
                        listener.publish("bace/bridge/request/poll", b"{}")
                        for path in ("healthz", "readyz", "", SECRETS["url path"]):
                            async with http.get(f"http://127.0.0.1:{health}/{path}") as response:
                                answers.append(f"{response.headers} {await response.text()}")
                        await asyncio.sleep(0.1)
                shown["HTTP"] = "\n".join(answers)
                for file in tmp_path.glob("bridge.db*"):
                    shown[f"raw {file.name}, while it runs"] = file.read_bytes().decode("latin-1")
                assert await bridge.stop() == 0
                shown["log"] = bridge.log
            own = ("bace/bridge/request/", "bace/bridge/guest/")
            said = [one for one in listener.heard if not one.topic.startswith(own)]
            by_us = [one for one in said if one.topic != "bace/bridge/info" or b"version" in one.payload]
            shown["MQTT"] = "\n".join(f"{one.topic} {one.payload.decode()} {one.properties}" for one in by_us)
        for arguments in (
            ("check", "--json"), ("sessions", "--json"), ("events", "--json"), ("events",),
            ("dead-letters", "list", "--parked", "--json"), ("dead-letters", "list", "--parked"),
        ):  # fmt: skip
            shown[" ".join(arguments)] = await output(config, *arguments)
    shown["store"] = in_the_store(tmp_path / "bridge.db")
    for file in tmp_path.glob("bridge.db*"):
        shown[f"raw {file.name}"] = file.read_bytes().decode("latin-1")
    assert "HTTP 500" in shown["dead-letters list --parked --json"], "the answers are kept"
    assert "***" in shown["HTTP"]
    assert "***" in shown["MQTT"]
    hits = {one for one in found(shown) if not (one[0].startswith("raw") and one[1] in KEPT_ON_PURPOSE)}
    assert hits == set()
