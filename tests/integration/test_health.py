import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from bace_bridge.config.models import HttpConfig
from bace_bridge.errors import ConfigError
from bace_bridge.status.health import Reasons
from bace_bridge.status.listener import Request
from bace_bridge.status.server import HealthServer, may_know

ANY_PORT = HttpConfig(listen="127.0.0.1:0")


def nothing() -> dict[str, str | None]:
    return {}


@asynccontextmanager
async def listening(server: HealthServer) -> AsyncIterator[HealthServer]:
    await server.open()
    try:
        yield server
    finally:
        await server.close()


async def answer(
    path: str, *, alive: Reasons = nothing, ready: Reasons = nothing, method: str = "GET"
) -> tuple[int, Any]:
    async with (
        listening(HealthServer(ANY_PORT, alive=alive, ready=ready)) as server,
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{server.address}{path}") as response,
    ):
        assert response.content_type == "application/json"
        assert response.headers["Cache-Control"] == "no-store", "a proxy must not answer for a bridge that stands still"
        return response.status, await response.json() if method != "HEAD" else await response.read()


async def test_healthy_while_the_loops_make_progress() -> None:
    assert await answer("/healthz", alive=lambda: {"watcher": None, "dispatcher": None}) == (
        200,
        {
            "status": "ok",
            "checks": {"watcher": {"ok": True, "reason": None}, "dispatcher": {"ok": True, "reason": None}},
        },
    )


async def test_a_loop_that_stands_is_named() -> None:
    status, body = await answer("/healthz", alive=lambda: {"watcher": "no round for 90 s", "dispatcher": None})
    assert (status, body["status"]) == (503, "stalled")
    assert body["checks"]["watcher"] == {"ok": False, "reason": "no round for 90 s"}
    assert body["checks"]["dispatcher"] == {"ok": True, "reason": None}


async def test_ready_when_everything_is_usable() -> None:
    assert await answer("/readyz", ready=lambda: {"cloud": None, "store": None, "mqtt:home": None}) == (
        200,
        {
            "status": "ready",
            "checks": {name: {"ok": True, "reason": None} for name in ("cloud", "store", "mqtt:home")},
        },
    )


async def test_what_is_degraded_is_shown_and_makes_nothing_unready() -> None:
    async with (
        listening(
            HealthServer(
                ANY_PORT, alive=nothing, ready=lambda: {"cloud": None}, degraded=lambda: {"webhook:alerts": "HTTP 500"}
            )
        ) as server,
        aiohttp.ClientSession(f"http://{server.address}") as session,
        session.get("/readyz") as ready,
        session.get("/healthz") as healthy,
    ):
        assert (ready.status, healthy.status) == (200, 200)
        body = await ready.json()
    assert (body["status"], body["degraded"]) == ("ready", {"webhook:alerts": "HTTP 500"})


async def test_not_ready_says_what_is_not() -> None:
    status, body = await answer("/readyz", ready=lambda: {"cloud": None, "mqtt:home": "connection refused"})
    assert (status, body["status"]) == (503, "not ready")
    assert body["checks"]["mqtt:home"] == {"ok": False, "reason": "connection refused"}


async def test_each_request_asks_anew() -> None:
    reasons: dict[str, str | None] = {"cloud": "login refused"}
    async with (
        listening(HealthServer(ANY_PORT, alive=nothing, ready=lambda: reasons)) as server,
        aiohttp.ClientSession(f"http://{server.address}") as session,
    ):
        async with session.get("/readyz") as before:
            assert before.status == 503
        reasons["cloud"] = None
        async with session.get("/readyz") as after:
            assert after.status == 200


async def test_readiness_and_health_are_different_questions() -> None:
    status, _ = await answer("/healthz", ready=lambda: {"cloud": "away"})
    assert status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_head_works(path: str) -> None:
    assert await answer(path, method="HEAD") == (200, b"")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/healthz/"), ("POST", "/healthz"), ("DELETE", "/x/y")]
)
async def test_anything_else_is_not_found(method: str, path: str) -> None:
    status, body = await answer(path, method=method)
    assert status == 404
    assert body["error"] == "not found"


FACTS: dict[str, str | None] = {
    "cloud": None, "store": None, "mqtt:upstairs": "the broker at 192.0.2.7:1883 does not answer", "mqtt:home": None,
}  # fmt: skip
BESIDE = {"webhook:alerts": "HTTP 500: upstairs", "retained:home": "upstairs"}


def server_with_facts(token: str | None = "right") -> HealthServer:
    config = HttpConfig.model_validate({"listen": "127.0.0.1:0", "token": token})
    return HealthServer(config, alive=lambda: {"deliveries:home": None}, ready=lambda: FACTS, degraded=lambda: BESIDE)


async def asked(server: HealthServer, path: str = "/readyz", **headers: str) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.address}{path}", headers=headers) as answer,
    ):
        assert "Server" not in answer.headers
        return await answer.json()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8099"},
        {"Host": "[::1"},
        {"Host": "192.0.2.7"},
        {"Host": "evil.example", "Authorization": "Bearer wrong"},
        {"Host": "evil.example", "Authorization": "right"},
        {"Host": "evil.example", "Authorization": "Basic right"},
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_stranger_sees_kinds_only(path: str, headers: dict[str, str]) -> None:
    async with listening(server_with_facts()) as server:
        answer = await asked(server, path, **headers)
    kinds = {
        "/healthz": {"status": "ok", "checks": {"deliveries": {"ok": True}}},
        "/readyz": {
            "status": "not ready",
            "checks": {"cloud": {"ok": True}, "store": {"ok": True}, "mqtt": {"ok": False}},
            "degraded": ["retained", "webhook"],
        },
    }
    assert answer == kinds[path]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example", "Authorization": "Bearer right"},
        {"Host": "evil.example", "Authorization": "bearer  right"},
        {},
        {"Host": "localhost"},
        {"Host": "LocalHost:80"},
        {"Host": "[::1]:8099"},
    ],
)
async def test_who_asks_here_or_has_the_token_sees_reasons(headers: dict[str, str]) -> None:
    async with listening(server_with_facts()) as server:
        answer = await asked(server, **headers)
    assert answer["checks"]["mqtt:upstairs"]["reason"] == FACTS["mqtt:upstairs"]
    assert answer["degraded"] == BESIDE


@pytest.mark.parametrize("token", [None, ""])
async def test_no_token_is_no_key(token: str | None) -> None:
    async with listening(server_with_facts(token)) as server:
        for given in ("Bearer ", "Bearer", "Bearer None", ""):
            assert "192.0.2.7" not in str(await asked(server, Host="evil.example", Authorization=given))


@pytest.mark.parametrize(
    ("listening", "authorization", "may"),
    [
        (["127.0.0.1"], "", True),
        (["127.0.0.1", "::1"], "", True),
        (["127.0.0.2"], "", True),
        (["0.0.0.0"], "", False),
        (["::"], "", False),
        (["192.0.2.7"], "", False),
        (["fe80::1%eth0"], "", False),
        (["127.0.0.1", "192.0.2.7"], "", False),
        (["0.0.0.0"], "Bearer right", True),
        (["0.0.0.0"], "Bearer wrong", False),
    ],
)
def test_beyond_this_machine_names_and_reasons_take_the_token(
    listening: list[str], authorization: str, *, may: bool
) -> None:
    request = Request("GET", "/readyz", {"host": ["localhost"], "authorization": [authorization]})
    assert may_know(request, listening, "right") is may
    assert may_know(request, listening, " right ") is may, "no header can carry blanks at its ends"


async def test_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aiohttp")
    await answer("/healthz")
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]


@pytest.mark.parametrize("host", ["127.0.0..1", "x" * 64])
def test_a_host_that_can_be_no_name_is_a_mistake_in_the_configuration(host: str) -> None:
    with pytest.raises(ValidationError, match="its host is neither an address nor a name"):
        HttpConfig(listen=f"{host}:8099")


async def test_an_address_in_use_is_a_mistake_in_the_configuration() -> None:
    async with listening(HealthServer(ANY_PORT, alive=nothing, ready=nothing)) as first:
        taken = HttpConfig(listen=str(first.address))
        with pytest.raises(ConfigError) as refused:
            await HealthServer(taken, alive=nothing, ready=nothing).open()
    (mistake,) = refused.value.mistakes
    assert mistake.path == "http.listen"
    assert mistake.problem == f"cannot listen on {taken.listen}: Address already in use"


async def test_an_address_of_another_machine_is_a_mistake_too() -> None:
    elsewhere = HttpConfig(listen="192.0.2.1:8099")
    with pytest.raises(ConfigError, match="Cannot assign requested address"):
        await HealthServer(elsewhere, alive=nothing, ready=nothing).open()


async def test_closed_it_listens_no_more() -> None:
    async with listening(HealthServer(ANY_PORT, alive=nothing, ready=nothing)) as server:
        host, port = str(server.address).split(":")
    assert server.address is None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\r\n\r\n"])
@pytest.mark.parametrize("pieces", [1, 2])
async def test_empty_lines_before_a_request_mean_nothing(before: bytes, pieces: int) -> None:
    request = before + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with listening(HealthServer(ANY_PORT, alive=nothing, ready=nothing)) as server:
        reader, writer = await asyncio.open_connection(*str(server.address).split(":"))
        for piece in (request,) if pieces == 1 else (request[:9], request[9:]):
            writer.write(piece)
            await asyncio.sleep(0.05)  # so that they come one after the other
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
