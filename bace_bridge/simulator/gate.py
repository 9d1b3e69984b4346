"""What every request passes before its route: faults, quirks, the account's token and its rate limit."""

import asyncio
from collections.abc import Mapping
from email.utils import formatdate
from fnmatch import fnmatchcase

from aiohttp import web
from aiohttp.typedefs import Handler

from bace_bridge.simulator.answers import (
    ApiError,
    bad_gateway,
    header_bytes,
    invalid,
    negotiated,
    no_such_route,
    refusal,
)
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from bace_bridge.simulator.faults import Fault, Faults
from bace_bridge.simulator.filters import FilterRefused
from bace_bridge.simulator.ratelimit import Allowance, judge

API = "/api/v2/"
TOKEN = "/oauth2/token"  # noqa: S105 - a path, no secret
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
        response.headers.update(self._rates.pop(id(request), {}))

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        grant_type = await _grant_type(request)
        fault = self.faults.take(request.path, request.query_string)
        wait = self._cloud.quirks.latency + (fault.delay if fault else 0.0)
        if wait:
            await asyncio.sleep(wait)
        if fault is not None and fault.cut:
            self._record(request, 0, grant_type)
            return _cut(request)
        if fault is not None and fault.status is not None:
            response: web.StreamResponse = _prepared(fault, fault.status)
        else:
            response = self._proxied(request, await self._answered(request, handler))
        self._record(request, response.status, grant_type)
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path.startswith(API):
                self._admit(request)
            return await handler(request)
        except ApiError as error:
            return refusal(request, error)
        except FilterRefused as refused:
            return invalid(request, str(refused))
        except web.HTTPMethodNotAllowed:
            return refusal(request, ApiError(405, "Method Not Allowed."))
        except web.HTTPNotFound:
            return no_such_route()

    def _proxied(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """The answer as it comes through the web server before PHP."""
        limit = self._cloud.quirks.header_limit
        sent = {**response.headers, **self._rates.get(id(request), {})}
        if limit and not response.prepared and header_bytes(sent) > limit:
            self._rates.pop(id(request), None)
            return bad_gateway()
        return response

    def _admit(self, request: web.Request) -> None:
        """Raises the refusal, if there is one."""
        if request.match_info.http_exception is not None:
            return
        quirks = self._cloud.quirks
        if quirks.redirects:
            raise ApiError(302, "Found", {"Location": _elsewhere(request)})
        if not self._cloud.tokens.accepts(request.headers.get("Authorization")):
            raise ApiError(
                401,
                "Your request was made with invalid credentials.",
                {"WWW-Authenticate": 'Bearer realm="api"'},
            )
        self._limit(request)
        if any(fnmatchcase(request.path, path) for path in quirks.forbidden):
            raise ApiError(401, "You are not allowed to perform this action.")
        if negotiated(request.headers.get("Accept")) is None:
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


async def _grant_type(request: web.Request) -> str:
    return str((await request.post()).get("grant_type", "")) if request.path == TOKEN else ""


def _prepared(fault: Fault, status: int) -> web.Response:
    begins = fault.body.lstrip()[:1]
    kind = "application/json" if begins in ("{", "[") else "text/html" if begins == "<" else "text/plain"
    return web.Response(
        status=status,
        body=fault.body.encode(),
        headers={"Content-Type": f"{kind}; charset=UTF-8", **fault.headers},
    )


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _elsewhere(request: web.Request) -> str:
    """The same server by another name: another origin, but one where a test sees who followed."""
    return f"http://localhost:{request.url.port}/elsewhere{request.path_qs}"
