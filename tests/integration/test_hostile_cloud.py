"""The client against a server that answers whatever it likes: a fact comes of it or a CloudError, and costs little."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bace_bridge.cloud.api import BaceCloud
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import FixedToken
from bace_bridge.domain.seen import Page, PointsRead, Urgency
from bace_bridge.errors import CloudError
from tests.integration.watching import Clock

ID = "0c7c3d9e-4c53-4a13-9e8b-9d7e3e6a3c11"
SESSION = {"id_data_session": ID, "id_group": "g", "start": 1_764_590_000}
POINT = {"id_container_data_latest": "s", "datatype": 6000, "timestamp_seconds": 1_764_590_000, "count_val": 1}

Answer = Callable[[web.Request], web.Response]


class Server:
    """Answers every GET by `answer`."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _: web.json_response({"items": []})
        self.asked: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        return self.answer(request)

    def says(self, body: bytes, *, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = lambda _: web.Response(status=status, body=body, headers=named)


@asynccontextmanager
async def hostile() -> AsyncIterator[tuple[Server, BaceCloud, CloudHttp]]:
    server, clock = Server(), Clock()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    budget = RequestBudget(6_000_000, clock=clock)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    http = CloudHttp(url, budget, timeout=5, version="t", clock=clock, monotonic=clock, jitter=lambda: 0)
    http.use_tokens(FixedToken("a-token"))
    try:
        async with http:
            yield server, BaceCloud(http), http
    finally:
        await runner.cleanup()


def page(*items: Any, **meta: Any) -> bytes:
    return json.dumps({"items": items, "_meta": meta}).encode()


def resources(api: BaceCloud) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "list": lambda: api.session_page((), 1),
        "view": lambda: api.session(ID),
        "points": lambda: api.datapoints(ID, None, None, urgency=Urgency.LIVE),
        "groups": lambda: api.group_labels({"g"}),
    }


DIGITS = "9" * 5000
ODD_HEADERS = [
    {"X_Pagination_Total_Count": DIGITS},
    {"X_Pagination_Page_Count": "²"},
    {"Date": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
    {"Date": "Mon, 01 Jan 2020 00:00:00 +99999999999999"},
    {"Date": "Fri, 31 Dec 9999 23:59:59 GMT"},
    {"Retry_After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
    {"Retry_After": DIGITS},
]


@pytest.mark.parametrize("status", [200, 429, 503])
@pytest.mark.parametrize("headers", ODD_HEADERS)
async def test_odd_headers_are_no_headers(headers: dict[str, str], status: int) -> None:
    async with hostile() as (server, api, _):
        server.says(b'{"items":[]}', status=status, **headers)
        try:
            found = await api.session_page((), 1)
        except CloudError:
            assert status != 200
            return
        assert (found.total, found.page_count, api.clock_ahead < 1e12) == (None, None, True)


@given(
    status=st.sampled_from([200, 200, 200, 302, 400, 403, 404, 422, 500, 503]),
    body=st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["items", "_meta", "name", "message", *SESSION, *POINT, "datatypes", "group"]),
        st.recursive(
            st.none() | st.integers() | st.integers(2**50, 2**80) | st.floats() | st.text(max_size=5) | st.just(DIGITS),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from([*SESSION, *POINT, "totalCount", "pageCount", "perPage", "id"]), inner, max_size=6
                )
            ),
            max_leaves=12,
        ),
        max_size=8,
    ).map(lambda shape: json.dumps(shape).encode()),
    headers=st.dictionaries(
        st.sampled_from(["Date", "Retry-After", "X-Rate-Limit-Reset", "X-Pagination-Total-Count", "Content-Encoding"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
        | st.sampled_from([next(iter(one.values())) for one in ODD_HEADERS if "²" not in one.values()]),
        max_size=3,
    ),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_any_bytes_and_headers_are_a_fact_or_a_cloud_error(
    status: int, body: bytes, headers: dict[str, str]
) -> None:
    async with hostile() as (server, api, _):
        server.answer = lambda _: web.Response(status=status, body=body, headers=headers)
        for name, ask in resources(api).items():
            try:
                found = await ask()
            except CloudError:
                continue
            assert isinstance(found, {"list": Page, "points": PointsRead, "groups": dict}.get(name, object))
