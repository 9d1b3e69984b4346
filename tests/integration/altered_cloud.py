"""Stands before the simulated cloud, and alters what it answers."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from bace_bridge.polling.rules.session_list import StartKind
from bace_bridge.simulator.cloud import SimulatedCloud
from tests.integration.polling_line import Clock, Watching, watching

Alter = Callable[[web.Request, Any], Any]
"""The JSON of an answer to its request, altered; an HTTP status in its place is answered with a problem."""

PASSED_ON = {"Authorization", "Accept", "Content-Type"}


class AlteredCloud:
    def __init__(self, cloud_url: str = "") -> None:
        self.cloud_url = cloud_url
        self.alter: Alter = lambda _, answer: answer

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name in PASSED_ON}
        url = self.cloud_url + request.path_qs
        async with ClientSession() as client, client.request(request.method, url, data=body, headers=headers) as reply:
            read = json.loads(await reply.read())
            status = reply.status
            date = {"Date": reply.headers["Date"]} if "Date" in reply.headers else {}
        if status == web.HTTPOk.status_code and not request.path.startswith("/oauth2"):
            read = self.alter(request, read)
        if isinstance(read, int):
            status, read = read, {"name": "Problem", "message": "as the test wants it", "status": read}
        return web.json_response(read, status=status, headers=date)


@asynccontextmanager
async def altered(
    cloud: SimulatedCloud, store: Path, clock: Clock, *, start: StartKind = "now", groups: Sequence[str] = ()
) -> AsyncIterator[tuple[AlteredCloud, Watching]]:
    between = AlteredCloud()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", between.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with watching(cloud, store, clock, start=start, groups=groups) as watch:
            between.cloud_url = watch.server.url
            watch.http._base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield between, watch
    finally:
        await runner.cleanup()
