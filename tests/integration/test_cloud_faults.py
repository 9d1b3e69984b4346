"""Each way in which the cloud can fail: a name, one log event, a reason in the health answer, and the way back."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bace_bridge.app.account import Account
from bace_bridge.app.storage import Devices
from bace_bridge.cloud.api import BaceCloud
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.failures import DEFAULT_SILENCE
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import FixedToken
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudFault,
    CloudLoginFailed,
    CloudRefused,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.datapoint_fetch import FetchSettings
from bace_bridge.polling.list_poll import ListPoll
from bace_bridge.polling.loops import DatapointLoop, SessionLoop
from bace_bridge.polling.points import PointEndpoint
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules.session_list import FirstStart
from bace_bridge.polling.session_lists import PollSettings
from bace_bridge.status.health import Check, Status
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.brokers import free_port
from tests.integration.polling_line import NOON, Clock

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SHORT_TIMEOUT = 2.0
"""Seconds, which a slow machine needs no more of for an answer that does come."""


async def nothing(*_: object) -> None: ...


async def empty_list(_: web.Request) -> web.StreamResponse:
    return web.json_response({"items": [], "_meta": {"totalCount": 0, "pageCount": 0, "currentPage": 1}})


def says(status: int, body: str = "", **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body.encode(), headers=named)

    return handler


async def hangs(request: web.Request) -> web.StreamResponse:
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.01)
    return web.Response()


async def resets(request: web.Request) -> web.StreamResponse:
    """A part of the body, then RST."""
    response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"items":[')
    assert request.transport is not None
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return response


class Watched:
    """The session loop over a cloud that does what a test says, one poll at a time."""

    def __init__(self, url: str, file: SqliteFile, *, timeout: float = 30.0) -> None:
        self.clock = Clock()
        self.silence = RequestBudget(6_000_000, clock=self.clock)
        self.http = CloudHttp(
            url,
            self.silence,
            lambda _: FixedToken("a-token"),
            timeout=timeout,
            version="t",
            clock=self.clock,
            monotonic=self.clock,
            jitter=lambda: 0,
        )
        self.api, self.log, journal = BaceCloud(self.http), EventLog(file), Journal(file)
        recorder = SessionRecorder(self.api, journal, groups=(), deciding=asyncio.Lock(), clock=self.clock)
        settings = PollSettings(FirstStart("since", NOON), 10.0, 60.0, 3600.0, 120)
        poll = ListPoll(self.api, recorder, settings)
        self.waits: list[float] = []
        self._turns = asyncio.Semaphore(0)
        self.loop = SessionLoop(
            poll.poll,
            journal,
            interval=10,
            clock=self.clock,
            monotonic=self.clock,
            jitter=lambda: 0,
            after_poll=lambda: None,
            pause=self._pause,
        )
        endpoint = PointEndpoint(self.api, clock=self.clock)
        fetching = FetchSettings(15.0, "as_served", {}, csv_url=str)
        points = DatapointLoop(
            journal,
            nothing,
            nothing,
            endpoint,
            BatchFetch(self.api, endpoint, journal, fetching, deciding=asyncio.Lock(), clock=self.clock),
            interval=15,
            clock=self.clock,
            monotonic=self.clock,
            jitter=lambda: 0,
        )
        self.account = Account(self.http, poll, self.loop, points, interval=10, monotonic=self.clock)
        self.upkeep = Upkeep(file, self.log, Cap(file, 2**30), retention=60, session_retention=60)
        device_states = DeviceStates(file, groups=(), csv_url=str, fetch_interval=15.0, clock=self.clock)
        self._devices = Devices(device_states, changed=lambda _: None)
        self.status = self.status_of()

    def status_of(self, *outlets: Outlet) -> Status:
        return Status(
            [Check(ready=lambda: {"store": self.upkeep.problem})],
            [self.account],
            outlets,
            self.upkeep.figures,
            self._devices,
            version="t",
            installation="here",
            started_at=self.clock(),
        )

    async def _pause(self, _: asyncio.Event, seconds: float) -> None:
        self.waits.append(seconds)
        await self._turns.acquire()

    async def polled(self, times: int) -> None:
        """Until that poll has ended."""
        async with asyncio.timeout(60):
            while len(self.waits) < times:
                await asyncio.sleep(0.001)

    async def poll(self) -> None:
        self.clock.forward(self.waits[-1])
        assert self.silence.silent_for == 0, "the next poll comes while the cloud wants silence"
        self.silence.release()
        self._turns.release()
        await self.polled(len(self.waits) + 1)

    async def told(self) -> list[str]:
        return [one.event.type for one in await self.log.search()]


class Stage:
    handler: Handler = staticmethod(empty_list)
    url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return await self.handler(request)


@asynccontextmanager
async def staged(tmp_path: Path, *, timeout: float = 30.0) -> AsyncIterator[tuple[Stage, Watched]]:
    stage = Stage()
    app = web.Application()
    app.router.add_get("/{path:.*}", stage.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stage.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with SqliteFile(tmp_path / "b.db") as file:
            watched = Watched(stage.url, file, timeout=timeout)
            async with watched.http:
                yield stage, watched
    finally:
        await runner.cleanup()


PROBLEM = '{"name":"Forbidden","message":"not yours","status":403}'
HTML = "<html><body>Welcome to the hotel</body></html>"
FAULTS: list[tuple[str, Handler, type[CloudError], str, str]] = [
    ("slow", hangs, CloudUnavailable, "unreachable", "no answer within 2 s"),
    ("reset in a body", resets, CloudUnavailable, "unreachable", "cut|Payload"),
    ("HTML with 200", says(200, HTML), UnexpectedReply, "unreachable", "got HTML instead of JSON: the login page"),
    ("truncated JSON", says(200, '{"items":[{"id_da'), UnexpectedReply, "unreachable", "a page cannot be read"),
    ("an empty body", says(200), UnexpectedReply, "unreachable", "the answer was empty"),
    ("401", says(401, PROBLEM), CloudLoginFailed, "auth_failed", r"cloud\.access_token"),
    ("403", says(403, PROBLEM), CloudRefused, "auth_failed", "403 not yours"),
    ("403 as HTML", says(403, HTML), CloudRefused, "auth_failed", "403"),
    ("404 as HTML", says(404, HTML), CloudRefused, "unreachable", "404"),
    ("429", says(429), CloudUnavailable, "unreachable", "429.*rate limit"),
    ("500", says(500, PROBLEM), CloudFault, "unreachable", "500"),
    ("502", says(502, HTML), CloudBadGateway, "unreachable", "502"),
    ("503", says(503, Retry_After="7"), CloudUnavailable, "unreachable", "503"),
]


@pytest.mark.parametrize(
    ("handler", "error", "kind", "reason"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS]
)
async def test_a_fault_has_a_name_a_log_event_a_reason_and_an_end(
    tmp_path: Path, handler: Handler, error: type[CloudError], kind: str, reason: str
) -> None:
    async with staged(tmp_path, timeout=SHORT_TIMEOUT if handler is hangs else 30.0) as (stage, watched):
        with capture_logs() as logs:
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            assert watched.status.ready()["cloud"] is None
            stage.handler = handler
            for _ in range(3):
                await watched.poll()
            problem = watched.status.ready()["cloud"] or ""
            assert watched.status.health()["healthy"] is False
            assert watched.status.health()["problems"] == {"cloud": problem}
            assert "<html" not in problem
            stage.handler = empty_list
            await watched.poll()
            assert watched.status.ready()["cloud"] is None
            assert watched.status.health()["healthy"] is True
            run.cancel()
        stage.handler = handler
        watched.clock.forward(100)
        watched.silence.release()
        with pytest.raises(error) as caught:
            await watched.api.session_page((), 1)
        assert type(caught.value) is error
        assert re.search(reason, problem), problem
        assert said_of_outages(logs) == [f"cloud.{kind}", "cloud.recovered"]
        assert await watched.told() == [f"cloud.{kind}", "cloud.recovered"]


async def test_a_cloud_that_refuses_connections(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        watched = Watched(f"http://127.0.0.1:{free_port()}", file)
        async with watched.http:
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            await watched.poll()
            assert "cannot connect: Connect" in (watched.status.ready()["cloud"] or "")
            assert await watched.told() == ["cloud.unreachable"]
            run.cancel()


@pytest.mark.parametrize("restarts", [1, 2])
async def test_an_outage_that_was_emitted_is_over_once_however_often_the_bridge_restarts(
    tmp_path: Path, restarts: int
) -> None:
    """It is told as over by the process that sees it, also where it was another one that told of it."""
    async with staged(tmp_path) as (stage, watched):
        stage.handler = says(500, PROBLEM)
        run = asyncio.create_task(watched.loop.run())
        await watched.polled(1)
        await watched.poll()
        run.cancel()
        assert await watched.told() == ["cloud.unreachable"]
    for restart in range(restarts):
        async with staged(tmp_path) as (stage, watched):
            stage.handler = says(500, PROBLEM) if restart < restarts - 1 else empty_list
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            run.cancel()
    async with staged(tmp_path) as (stage, watched):
        run = asyncio.create_task(watched.loop.run())
        await watched.polled(1)
        run.cancel()
        assert await watched.told() == ["cloud.unreachable", "cloud.recovered"]


def said_of_outages(logs: Sequence[MutableMapping[str, Any]]) -> list[str]:
    """What the log says of them above level debug."""
    loud = [one["event"] for one in logs if one["log_level"] != "debug"]
    return [one for one in loud if one in {"cloud.unreachable", "cloud.auth_failed", "cloud.recovered"}]


@pytest.mark.parametrize(
    ("handler", "kind"), [(says(500, PROBLEM), "unreachable"), (says(403, PROBLEM), "auth_failed")]
)
async def test_every_process_logs_the_outage_that_it_is_started_into_once(
    tmp_path: Path, handler: Handler, kind: str
) -> None:
    """The event is kept in the store and not repeated; the log of a new process begins empty."""
    for _ in range(3):
        async with staged(tmp_path) as (stage, watched):
            stage.handler = handler
            with capture_logs() as logs:
                run = asyncio.create_task(watched.loop.run())
                await watched.polled(1)
                for _ in range(3):
                    await watched.poll()
                run.cancel()
            assert said_of_outages(logs) == [f"cloud.{kind}"]
            assert await watched.told() == [f"cloud.{kind}"]
    async with staged(tmp_path) as (_, watched):
        with capture_logs() as logs:
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            await watched.poll()
            run.cancel()
        assert said_of_outages(logs) == ["cloud.recovered"]
        assert await watched.told() == [f"cloud.{kind}", "cloud.recovered"]


async def test_an_outage_that_changes_its_kind_again_and_again_is_logged_once_a_kind(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, watched):
        with capture_logs() as logs:
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            for number in range(8):
                stage.handler = says(403, PROBLEM) if number % 2 else says(500, PROBLEM)
                await watched.poll()
            stage.handler = empty_list
            await watched.poll()
            run.cancel()
        assert said_of_outages(logs) == ["cloud.unreachable", "cloud.auth_failed", "cloud.recovered"]


async def test_whatever_was_logged_as_an_outage_is_logged_as_over(tmp_path: Path) -> None:
    """A single failed poll is no event, but it is in the log."""
    async with staged(tmp_path) as (stage, watched):
        with capture_logs() as logs:
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            stage.handler = says(503)
            await watched.poll()
            stage.handler = empty_list
            await watched.poll()
            await watched.poll()
            run.cancel()
        assert said_of_outages(logs) == ["cloud.unreachable", "cloud.recovered"]
        assert await watched.told() == []


async def test_a_rate_limit_that_lasts_is_logged_once_until_there_was_none_for_a_while(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, watched):
        with capture_logs() as logs:
            run = asyncio.create_task(watched.loop.run())
            await watched.polled(1)
            for number in range(8):
                stage.handler = says(429, Retry_After="60") if number % 2 else empty_list
                await watched.poll()
            assert [one["log_level"] for one in logs if one["event"] == "cloud.rate_limited"] == [
                "warning", "debug", "debug", "debug"
            ]  # fmt: skip
            stage.handler = empty_list
            while watched.clock() < NOON + 4 * 61 + 700:
                await watched.poll()
            stage.handler = says(429)
            await watched.poll()
            run.cancel()
        assert [one["log_level"] for one in logs if one["event"] == "cloud.rate_limited"][4:] == ["warning"]


DATE = formatdate(NOON - 5 * 86400, usegmt=True)
LATER = formatdate(NOON - 5 * 86400 + 90, usegmt=True)


@pytest.mark.parametrize(
    ("handler", "wait"),
    [
        (says(429, X_Rate_Limit_Reset="17"), 18.0),
        (says(429, Retry_After="40", X_Rate_Limit_Reset="17"), 41.0),
        (says(429, Retry_After=LATER, Date=DATE), 91.0),
        (says(429), DEFAULT_SILENCE + 1),
        (says(503, Retry_After="70"), 70.0),
        (says(503, Retry_After=LATER, Date=DATE), 90.0),
        (says(503, Retry_After=LATER.removesuffix(" GMT"), Date=DATE), 90.0),
        (says(429, Retry_After=LATER.removesuffix(" GMT"), Date=DATE.removesuffix(" GMT")), 91.0),
        (says(429, X_Rate_Limit_Reset=str(int(NOON) - 5 * 86400 + 17), Date=DATE), 18.0),
        (says(429, X_Rate_Limit_Reset="soon"), DEFAULT_SILENCE + 1),
        (says(502, HTML), 1.0),
        (says(503, Retry_After="nonsense"), 1.0),
        (says(503, Retry_After="1e99"), 1.0),
        (says(503, Retry_After="99999999999"), 86400.0),
    ],
)
async def test_the_next_look_waits_as_long_as_the_cloud_asks(tmp_path: Path, handler: Handler, wait: float) -> None:
    """A date is read against the answer's own, here five days behind our clock."""
    async with staged(tmp_path) as (stage, watched):
        stage.handler = handler
        run = asyncio.create_task(watched.loop.run())
        await watched.polled(1)
        assert watched.waits == [pytest.approx(wait)]
        assert watched.status.alive() == {"sessions": None, "datapoints": None}
        run.cancel()


@pytest.mark.parametrize("step", [86400.0, -86400.0])
async def test_an_outage_is_as_long_as_it_was_when_the_clock_is_set_in_it(tmp_path: Path, step: float) -> None:
    async with staged(tmp_path) as (stage, watched):
        stage.handler = says(502, HTML)
        run = asyncio.create_task(watched.loop.run())
        await watched.polled(1)
        await watched.poll()
        watched.clock.forward(step)
        watched.loop.clock_stepped(step)
        stage.handler = empty_list
        await watched.poll()
        run.cancel()
        (recovered,) = [one.event for one in await watched.log.search() if one.event.type == "cloud.recovered"]
        assert msgspec.json.decode(recovered.data)["seconds"] == pytest.approx(sum(watched.waits[:2]))


class AskedAgain:
    """A poll in the middle of which somebody asks for another one."""

    def __init__(self) -> None:
        self.made = 0
        self.ask: Callable[[], None] = lambda: None

    async def poll(self) -> None:
        self.made += 1
        if self.made == 1:
            self.ask()


async def test_a_poll_that_is_asked_for_during_another_one_is_made_after_it(tmp_path: Path) -> None:
    clock, polls = Clock(), AskedAgain()
    async with SqliteFile(tmp_path / "b.db") as file:
        loop = SessionLoop(
            polls.poll,
            Journal(file),
            interval=3600,
            clock=clock,
            monotonic=clock,
            jitter=lambda: 0,
            after_poll=lambda: None,
        )
        polls.ask = loop.poll_now
        run = asyncio.create_task(loop.run())
        async with asyncio.timeout(60):
            while polls.made < 2:
                await asyncio.sleep(0.001)
        run.cancel()
