"""The simulated cloud over HTTP: faults, quirks, the token and the rate limit come before each route."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Allowance, RequestSeen, judge
from bace_bridge.simulator.query import FilterRefused
from bace_bridge.simulator.replies import (
    API,
    BAD_GATEWAY,
    NO_SUCH_ROUTE,
    TOKEN,
    ApiError,
    header_bytes,
    refusal,
    reply,
)
from bace_bridge.simulator.routes import Routes


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests whose path starts with `prefix` and whose query holds `holding`."""

    prefix: str
    times: int
    status: int | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    holding: str = ""


@dataclass(slots=True)
class Faults:
    """Prepared faults; of those that fit a request, the first one that was prepared is taken."""

    waiting: list[Fault] = field(default_factory=list)

    def answer(
        self,
        prefix: str,
        *,
        status: int,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        holding: str = "",
    ) -> None:
        """This answer in place of the real one."""
        self.waiting.append(Fault(prefix, times, status=status, body=body, headers=headers or {}, holding=holding))

    def delay(self, prefix: str, seconds: float, *, times: int = 1) -> None:
        """The real answer, so much later."""
        self.waiting.append(Fault(prefix, times, delay=seconds))

    def drop(self, prefix: str, *, times: int = 1) -> None:
        """The connection is cut without an answer.

        aiohttp's client quietly repeats a GET once when a connection that it had kept open is cut.
        """
        self.waiting.append(Fault(prefix, times, cut=True))

    def take(self, path: str, query: str = "") -> Fault | None:
        for fault in self.waiting:
            if path.startswith(fault.prefix) and fault.holding in query:
                fault.times -= 1
                if fault.times <= 0:
                    self.waiting.remove(fault)
                return fault
        return None


_REMEMBERED = 100_000


class Gate:
    """One account's way into the cloud."""

    def __init__(self, cloud: SimulatedCloud) -> None:
        self.requests: list[RequestSeen] = []
        self.faults = Faults()
        self._cloud = cloud
        self._allowance: Allowance | None = None
        # Of the requests under way, by `id`: aiohttp's own storage in a request warns of plain keys.
        self._rates: dict[int, Mapping[str, str]] = {}
        self._api_calls = 0

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._cloud.quirks.no_date:
            response.headers.pop("Date", None)
        else:
            response.headers["Date"] = formatdate(self._cloud.clock(), usegmt=True)
        # Here and not at the answer: a streamed CSV has sent its headers before its handler returns.
        response.headers.update(self._rates.pop(id(request), {}))

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # aiohttp keeps the form that it has read, so that the route gets it as well.
        grant_type = str((await request.post()).get("grant_type", "")) if request.path == TOKEN else ""
        fault = self.faults.take(request.path, request.query_string)
        wait = self._cloud.quirks.latency + (fault.delay if fault else 0.0)
        if wait:
            await asyncio.sleep(wait)
        if fault is not None and fault.cut:
            self._record(request, 0, grant_type)
            # Aborted, not closed: a client sees a reset, as when a proxy is killed, and no orderly end.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault is not None and fault.status is not None:
            begins = fault.body.lstrip()[:1]
            kind = "application/json" if begins in ("{", "[") else "text/html" if begins == "<" else "text/plain"
            headers = {"Content-Type": f"{kind}; charset=UTF-8", **fault.headers}
            response: web.StreamResponse = web.Response(status=fault.status, body=fault.body.encode(), headers=headers)
        else:
            response = await self._answered(request, handler)
            # What is sent goes through nginx, which has a buffer of fixed size for the headers that PHP gives it.
            limit = self._cloud.quirks.header_limit
            sent = {**response.headers, **self._rates.get(id(request), {})}
            if limit and not response.prepared and header_bytes(sent) > limit:
                self._rates.pop(id(request), None)
                response = web.Response(status=502, text=BAD_GATEWAY, content_type="text/html")
        self._record(request, response.status, grant_type)
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path.startswith(API):
                self._admit(request)
            return await handler(request)
        except ApiError as error:
            return refusal(error)
        except FilterRefused as refused:
            # 422 is the one error whose body is an array.
            return reply([{"field": "filter", "message": str(refused)}], status=422)
        except web.HTTPMethodNotAllowed:
            return refusal(ApiError(405, "Method Not Allowed."))
        except web.HTTPNotFound:
            return web.Response(status=404, text=NO_SUCH_ROUTE, content_type="text/html")

    def _admit(self, request: web.Request) -> None:
        """Raises the refusal, if there is one."""
        # An unknown route is the web site's, which asks for no token.
        if request.match_info.http_exception is not None:
            return
        quirks = self._cloud.quirks
        if quirks.redirects:
            # The same server by another name: another origin, but one where a test sees who followed.
            elsewhere = f"http://localhost:{request.url.port}/elsewhere{request.path_qs}"
            raise ApiError(302, "Found", {"Location": elsewhere})
        # As Yii's filters: first who asks, then how often. A refused token costs no call of the rate limit.
        if not self._cloud.tokens.accepts(request.headers.get("Authorization")):
            raise ApiError(
                401,
                "Your request was made with invalid credentials.",
                {"WWW-Authenticate": 'Bearer realm="api"'},
            )
        self._limit(request)
        if any(fnmatchcase(request.path, path) for path in quirks.forbidden):
            raise ApiError(401, "You are not allowed to perform this action.")
        # JSON alone: the XML of the real API is left out, for nothing asks for it.
        accepted = {part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "*/*").split(",")}
        if accepted.isdisjoint(("application/json", "application/*", "*/*")):
            raise ApiError(406, "None of your requested content types is supported.")
        self._api_calls += 1
        if quirks.error_every and self._api_calls % quirks.error_every == 0:
            raise ApiError(500, "An internal server error occurred.")

    def _limit(self, request: web.Request) -> None:
        limit = self._cloud.quirks.rate_limit
        if limit is None:
            return
        verdict = judge(limit, self._allowance, self._cloud.clock())
        self._allowance = verdict.allowance
        self._rates[id(request)] = {
            "X-Rate-Limit-Limit": str(limit.calls),
            "X-Rate-Limit-Remaining": str(verdict.remaining),
            "X-Rate-Limit-Reset": str(verdict.reset),
        }
        if not verdict.allowed:
            raise ApiError(429, "Rate limit exceeded.")

    def _record(self, request: web.Request, status: int, grant_type: str) -> None:
        # Half of them at once: to move 100,000 entries at each request would take longer than to answer it.
        if len(self.requests) >= _REMEMBERED:
            del self.requests[: _REMEMBERED // 2]
        self.requests.append(
            RequestSeen(
                at=self._cloud.clock(),
                method=request.method,
                path=request.path,
                query=tuple(request.query.items()),
                status=status,
                headers=tuple(request.headers.items()),
                grant_type=grant_type,
            )
        )


_GRACE = 1.0  # seconds that answers under way get when the server stops


class SimulatedServer:
    """The cloud behind HTTP: `async with SimulatedServer(cloud) as server: server.url`.

    After `stop`, `start` listens on the same port again, with all that the cloud knew. `requests` is what was asked so
    far, the oldest first; `faults` prepares what happens to the next ones.
    """

    def __init__(self, cloud: SimulatedCloud, host: str = "127.0.0.1", port: int = 0) -> None:
        self.cloud = cloud
        self._host = host
        self._port = port
        self._gate = gate = Gate(cloud)
        self.requests, self.faults = gate.requests, gate.faults
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Raises OSError when the port is taken."""
        # A new application each time: aiohttp freezes one that has run, and `start` comes again after `stop`.
        app = web.Application(middlewares=[web.middleware(self._gate)])
        app.on_response_prepare.append(self._gate.on_prepare)
        app.add_routes(Routes(self.cloud).table())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_GRACE)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:  # of a port that is taken nothing may stay behind
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        # Taken first: `stop` may be called twice, by a test and by the end of its `async with`.
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
