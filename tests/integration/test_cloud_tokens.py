"""The client and its tokens: what a token endpoint and the API may say of them, and what is kept over a restart."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bace_bridge.cloud.api import BaceCloud
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp, TokenSource
from bace_bridge.cloud.tokens import Credentials, FixedToken, RequestToken, Tokens
from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused, CloudRequestTooLarge, CloudUnavailable
from bace_bridge.events.types import Token
from bace_bridge.store.facts import Facts
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.polling_line import Clock
from tests.models import examples

TOKEN_ENDPOINT = "/oauth2/token"
EMPTY = {"items": [], "_meta": {"totalCount": 0, "pageCount": 0, "currentPage": 1}}


def a_reply(number: int, **changes: Any) -> dict[str, Any]:
    return {"access_token": f"access{number}", "expires_in": 600, "refresh_token": f"refresh{number}"} | changes


class Account:
    """A token endpoint and an API that do what a test says; without that the n-th token is `access<n>`."""

    def __init__(self) -> None:
        self.logins: list[web.Response] = []
        self.refreshes: list[web.Response] = []
        self.refused: dict[str, int] = {}
        self.grants: list[str] = []
        self.used: list[str] = []
        self.number = 0
        self.answers = asyncio.Event()
        self.answers.set()

    def gives(self, **changes: Any) -> web.Response:
        self.number += 1
        return web.json_response(a_reply(self.number, **changes))

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == TOKEN_ENDPOINT:
            grant = str((await request.post())["grant_type"])
            self.grants.append(grant)
            await self.answers.wait()
            prepared = self.logins if grant == "password" else self.refreshes
            return prepared.pop(0) if prepared else self.gives()
        token = request.headers["Authorization"].removeprefix("Bearer ")
        self.used.append(token)
        status = self.refused.get(token, self.refused.get("*", 200))
        return web.json_response(EMPTY if status == 200 else {"message": "no"}, status=status)


class Line:
    def __init__(self, account: Account, url: str, clock: Clock, store: Path) -> None:
        self.account, self.url, self.clock, self.store = account, url, clock, store
        self.facts: Facts | None = None

    @asynccontextmanager
    async def bridge(self, *, fixed: str | None = None) -> AsyncIterator[BaceCloud]:
        """A process of the bridge: another one begins with what the store holds."""
        budget = RequestBudget(6_000_000, clock=self.clock)
        async with SqliteFile(self.store) as file:
            facts = self.facts = Facts(file)

            def tokens(request_token: RequestToken) -> TokenSource:
                login = Credentials("id", "secret", "user", "password")
                renewed = Tokens("a", login, facts, request_token, clock=self.clock, monotonic=self.clock)
                return renewed if fixed is None else FixedToken(fixed)

            http = CloudHttp(self.url, budget, tokens, timeout=5, version="t", clock=self.clock, monotonic=self.clock)
            async with http:
                yield BaceCloud(http)

    async def kept(self) -> Token | None:
        """What the store of the running bridge holds."""
        assert self.facts is not None
        return await self.facts.load_token("a")

    async def keeps(self, token: Token) -> None:
        async with SqliteFile(self.store) as file:
            await Facts(file).save_token("a", token)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Line]:
    account = Account()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", account.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0, max_field_size=128 * 1024)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Line(account, f"http://127.0.0.1:{runner.addresses[0][1]}", Clock(), folder / "b.db")
    finally:
        await runner.cleanup()


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with serving(tmp_path) as one:
        yield one


def said(status: int, body: str = "", **headers: str) -> web.Response:
    return web.Response(status=status, text=body, headers=headers)


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["9" * 400, "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


@given(
    st.lists(
        st.binary(max_size=20)
        | st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("access_token", "expires_in", "refresh_token", "token_type", "error"), ODD)
        ).map(lambda reply: json.dumps(reply).encode()),
        min_size=3,
        max_size=3,
    )
)
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
async def test_whatever_the_token_endpoint_answers_is_a_token_or_a_cloud_error(bodies: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        async with serving(Path(folder)) as line:
            line.account.logins = [web.Response(body=body) for body in bodies]
            line.account.refreshes = [web.Response(body=body) for body in bodies]
            for _ in range(2):
                async with line.bridge() as cloud:
                    for _ in range(3):
                        with suppress(CloudError):
                            assert (await cloud.session_page((), 1)).count == 0
                        line.clock.now += 86400


REFUSALS = {
    "403": (403, "", {}),
    "403 as JSON": (403, '{"error":"access_denied"}', {}),
    "404": (404, "<html>", {}),
    "405": (405, "", {}),
    "413": (413, "", {}),
    "422": (422, '[{"field":"refresh_token","message":"is invalid"}]', {}),
    "431": (431, "", {}),
    "an empty 400": (400, "", {}),
    "500": (500, "{}", {}),
    "502": (502, "<html>", {}),
    "503": (503, "", {}),
    "a redirect": (302, "", {"Location": "/login"}),
    "200 with an error": (200, '{"error":"invalid_grant"}', {}),
    "200 with HTML": (200, "<html>", {}),
    "200 with nothing": (200, "", {}),
    "200 with a token that no header carries": (200, json.dumps({"access_token": "a\nb"}), {}),
    "a body that cannot be unpacked": (200, "nonsense", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("restarted", [False, True], ids=["one process", "restarted"])
@pytest.mark.parametrize("refusal", [one for one in REFUSALS if "unpacked" not in one])
async def test_a_refresh_token_is_given_up_after_three_refusals_of_any_kind(
    line: Line, refusal: str, restarted: bool
) -> None:
    """Also in the store: where the login fails, too, no later process asks with it once more."""
    status, body, headers = REFUSALS[refusal]
    account = line.account
    async with line.bridge() as api:
        await api.session_page((), 1)
        line.clock.forward(700)
        account.refreshes = [said(status, body, **headers) for _ in range(9)]
        account.logins = [said(503)]
        for _ in range(3):
            with pytest.raises(CloudUnavailable):
                await api.session_page((), 1)
        assert account.grants == ["password", *["refresh_token"] * 3, "password"]
        kept = await line.kept() if restarted else None
        if not restarted:
            await api.session_page((), 1)
    if restarted:
        assert kept is not None
        assert kept.refresh is None
        async with line.bridge() as api:
            await api.session_page((), 1)
    assert account.grants == ["password", *["refresh_token"] * 3, "password", "password"]


@pytest.mark.parametrize(
    ("status", "body"), [(400, '{"error":"invalid_grant"}'), (401, ""), (401, "<html>"), (401, "{}")]
)
async def test_a_refresh_token_that_the_token_endpoint_refuses_is_given_up_at_once(
    line: Line, status: int, body: str
) -> None:
    async with line.bridge() as api:
        await api.session_page((), 1)
        line.clock.forward(700)
        line.account.refreshes = [said(status, body)]
        await api.session_page((), 1)
    assert line.account.grants == ["password", "refresh_token", "password"]


async def test_what_is_no_answer_to_the_refresh_is_no_refusal_of_it(line: Line) -> None:
    """Neither a rate limit nor a connection that breaks says anything of the token; nor does it begin a new count."""
    async with line.bridge() as api:
        await api.session_page((), 1)
        line.clock.forward(700)
        status, body, headers = REFUSALS["a body that cannot be unpacked"]
        line.account.refreshes = [
            said(503),
            *(said(status, body, **headers) for _ in range(5)),
            said(429, **{"Retry-After": "1"}),
            said(503),
        ]
        for _ in range(8):
            line.clock.forward(10)
            with pytest.raises(CloudUnavailable):
                await api.session_page((), 1)
        assert set(line.account.grants[1:]) == {"refresh_token"}
        await api.session_page((), 1)
        line.clock.forward(700)
        line.account.refreshes = [said(503), said(503)]
        for _ in range(2):
            with pytest.raises(CloudUnavailable):
                await api.session_page((), 1)
        await api.session_page((), 1)
    assert set(line.account.grants[1:]) == {"refresh_token"}, "a refresh that went well begins a new count"


@pytest.mark.parametrize("life", [None, False, True, "", "never", -5, 0, 10**30, "3600", [], {"seconds": 5}, "NaN"])
async def test_whatever_is_said_of_its_life_is_no_reason_not_to_log_in(line: Line, life: Any) -> None:
    line.account.logins = [line.account.gives(expires_in=life)]
    async with line.bridge() as api:
        for _ in range(3):
            await api.session_page((), 1)
    assert line.account.grants == ["password"]


ODD_TOKENS = ["a\nb", "a\r\nHost: x", "a\0b", "tökén", "日本", "\ud800", "a b", "x" * 65536]


@pytest.mark.parametrize("token", ODD_TOKENS, ids=[str(number) for number in range(len(ODD_TOKENS))])
async def test_a_token_that_no_header_can_carry_is_never_kept(line: Line, token: str) -> None:
    account = line.account
    async with line.bridge() as api:
        account.logins = [account.gives(access_token=token)]
        with pytest.raises(CloudUnavailable, match="it cannot be sent in an HTTP header"):
            await api.session_page((), 1)
        await api.session_page((), 1)
        kept = await line.kept()
        assert kept is not None
        assert kept.access == "access2"
        line.clock.forward(700)
        account.refreshes = [account.gives(access_token=token)]
        with pytest.raises(CloudUnavailable):
            await api.session_page((), 1)
        assert await line.kept() == kept
        await api.session_page((), 1)
    assert account.used == ["access2", "access4"]


@pytest.mark.parametrize("token", [one for one in ODD_TOKENS if one != "\ud800"])
async def test_such_a_token_in_the_store_of_an_older_version_is_refreshed(line: Line, token: str) -> None:
    await line.keeps(Token(token, "refresh0", line.clock.now + 1e6))
    async with line.bridge() as api:
        await api.session_page((), 1)
    assert (line.account.grants, line.account.used) == (["refresh_token"], ["access1"])


@pytest.mark.parametrize("token", ["a\nb", "tökén", "x" * 65536])
async def test_a_fixed_token_that_no_header_can_carry_is_named(line: Line, token: str) -> None:
    async with line.bridge(fixed=token) as api:
        with pytest.raises(CloudLoginFailed, match=r"cloud\.access_token cannot be sent in an HTTP header"):
            await api.session_page((), 1)


@pytest.mark.parametrize("restarted", [False, True], ids=["one process", "restarted"])
@pytest.mark.parametrize("status", [400, 431])
async def test_a_token_that_makes_a_request_bad_is_dropped(line: Line, status: int, restarted: bool) -> None:
    account = line.account
    if restarted:
        await line.keeps(Token("odd", "refresh0", line.clock.now + 600))
    else:
        account.logins = [account.gives(access_token="odd")]
    account.refused = {"odd": status}
    async with line.bridge() as api:
        await api.session_page((), 1)
        await api.session_page((), 1)
    assert account.used[0] == "odd"
    assert "odd" not in account.used[1:]
    assert account.grants[-1:] == ["refresh_token"]


async def test_who_leaves_during_a_refresh_does_not_lose_the_new_refresh_token(line: Line) -> None:
    account = line.account
    async with line.bridge() as api:
        await api.session_page((), 1)
        line.clock.forward(700)
        account.answers.clear()
        leaving = asyncio.create_task(api.session_page((), 1))
        async with asyncio.timeout(60):
            while len(account.grants) < 2:
                await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        account.answers.set()
        await api.session_page((), 1)
        kept = await line.kept()
    assert (account.grants, account.used) == (["password", "refresh_token"], ["access1", "access2"])
    assert kept is not None
    assert kept.refresh == "refresh2"


async def test_a_renewal_that_fails_after_who_asked_has_left_logs_no_traceback(line: Line) -> None:
    account, unhandled = line.account, list[object]()
    account.logins = [said(503)]
    account.answers.clear()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    async with line.bridge() as api:
        leaving = asyncio.create_task(api.session_page((), 1))
        async with asyncio.timeout(60):
            while not account.grants:
                await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        account.answers.set()
        await api.session_page((), 1)  # the next login is behind the one that fails
    del leaving
    gc.collect()
    assert unhandled == []


@pytest.mark.parametrize(("status", "error"), [(400, CloudRefused), (431, CloudRequestTooLarge)])
async def test_a_bad_request_costs_no_token_but_the_first(line: Line, status: int, error: type[Exception]) -> None:
    account = line.account
    async with line.bridge() as api:
        account.refused = {"*": status}
        for _ in range(20):
            with pytest.raises(error) as caught:
                await api.session_page((), 1)
            assert type(caught.value) is error
        assert account.grants == ["password", "refresh_token"]
        account.refused = {}
        await api.session_page((), 1)
        line.clock.forward(700)
        await api.session_page((), 1)
        account.refused = {"*": status}
        for _ in range(20):
            with pytest.raises(error):
                await api.session_page((), 1)
    assert account.grants == ["password", *["refresh_token"] * 2]


@pytest.mark.parametrize(("status", "error"), [(400, CloudRefused), (431, CloudRequestTooLarge)])
async def test_a_bad_request_with_a_fixed_token_stays_what_it_is(
    line: Line, status: int, error: type[Exception]
) -> None:
    line.account.refused = {"*": status}
    async with line.bridge(fixed="a-token") as api:
        with pytest.raises(error) as caught:
            await api.session_page((), 1)
        assert type(caught.value) is error


async def test_a_renewal_that_fails_leaves_the_doubt(line: Line) -> None:
    account = line.account
    account.logins = [account.gives(access_token="odd")]
    account.refused = {"odd": 400}
    account.refreshes = [said(503)]
    async with line.bridge() as api:
        with pytest.raises(CloudUnavailable):
            await api.session_page((), 1)
        await api.session_page((), 1)
    assert account.used == ["odd", "odd", "access2"]
