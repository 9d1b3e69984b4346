"""A row of which the cloud says something odd: it is told as far as it can be, and never passed over in silence."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from bace_bridge.simulator.cloud import SimulatedCloud
from tests.integration.polling_line import Clock, Watching, simulated, types, watching

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Odd:
    """Stands before the cloud, and writes something else into the rows of some sessions."""

    def __init__(self) -> None:
        self.fields: dict[str, dict[str, Any]] = {}
        self.cloud = ""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with (
            ClientSession() as client,
            client.request(
                request.method,
                self.cloud + request.path_qs,
                data=body,
                headers={k: v for k, v in request.headers.items() if k in {"Authorization", "Accept", "Content-Type"}},
            ) as reply,
        ):
            read = json.loads(await reply.read())
        for row in [read, *read.get("items", [])]:
            row.update(self.fields.get(row.get("id_data_session", ""), {}))
        return web.json_response(read, status=reply.status)


@asynccontextmanager
async def odd(cloud: SimulatedCloud, store: Path, clock: Clock) -> AsyncIterator[tuple[Odd, Watching]]:
    odd = Odd()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", odd.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with watching(cloud, store, clock) as watch:
            odd.cloud = watch.server.url
            watch.http._base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield odd, watch
    finally:
        await runner.cleanup()


async def looks(watch: Watching, clock: Clock, times: int, *, going_on: str | None = None) -> list[str]:
    """The types of what is told; `going_on` is a session that moves the watermark on."""
    told: list[str] = []
    for number in range(times):
        clock.forward(10)
        if going_on:
            watch.server.cloud.rename_session(going_on, f"take {number}")
        told += [one for one in types(await watch.look()) if one != "session.updated"]
    return told


@pytest.mark.parametrize("quirks", [(), ("filters-ignored",)], ids=["delta", "documented"])
async def test_an_odd_field_costs_nothing_but_itself(clock: Clock, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    other = cloud.open_session(device.id_group)
    with capture_logs() as logs:
        async with odd(cloud, tmp_path / "b.db", clock) as (between, watch):
            await watch.look()
            clock.forward(10)
            session = cloud.open_session(device.id_group)
            between.fields[session] = {"datapoint_count": 12.5}
            assert await looks(watch, clock, 20, going_on=other) == ["session.started"]
            assert watch.poll.unreadable == []
            assert watch.poll.strategy == ("full scan" if quirks else "delta")
    assert [one["what"] for one in logs if one["event"] == "cloud.field_not_understood"] == ["datapoint_count"]


@pytest.mark.parametrize("quirks", [(), ("filters-ignored",)], ids=["delta", "documented"])
@pytest.mark.parametrize("field", ["start", "end", "updated_at"])
async def test_a_row_that_cannot_be_read_is_shown_and_told_when_it_can_be(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], field: str
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    other = cloud.open_session(device.id_group)
    with capture_logs() as logs:
        async with odd(cloud, tmp_path / "b.db", clock) as (between, watch):
            await watch.look()
            clock.forward(10)
            session = cloud.open_session(device.id_group)
            between.fields[session] = {field: "soon"}
            assert await looks(watch, clock, 40, going_on=other) == []
            assert len(watch.poll.unreadable) == 1
            assert watch.poll.strategy == ("full scan" if quirks else "delta")
            before = watch.api_requests()
            await looks(watch, clock, 20, going_on=other)
            assert watch.api_requests() - before <= 20 * 5
            between.fields.clear()
            assert await looks(watch, clock, 40, going_on=other) == ["session.started"]
            assert watch.poll.unreadable == []
    assert len([one for one in logs if one["event"] == "cloud.session_unreadable"]) <= 1
    assert len([one for one in logs if one["event"] == "cloud.place_unreadable"]) <= (2 if quirks else 1)
