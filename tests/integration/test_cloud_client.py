"""The client against the simulated cloud over real HTTP, with each doubtful behaviour switched on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from bace_bridge.cloud.api import BaceCloud
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import Credentials, FixedToken, TokenReply, Tokens, parse_token
from bace_bridge.errors import (
    CloudBadGateway,
    CloudFault,
    CloudGone,
    CloudLoginFailed,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.reading import Reader, pages
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.facts import Facts
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.polling_line import Clock, points_of, simulated


@asynccontextmanager
async def client(
    cloud: SimulatedCloud, clock: Clock, store: Path, *, password: str | None = None, timeout: float = 60.0
) -> AsyncIterator[tuple[BaceCloud, SimulatedServer, CloudHttp]]:
    async with SimulatedServer(cloud) as server, SqliteFile(store) as file:
        given = cloud.credentials
        credentials = Credentials(given.client_id, given.client_secret, given.username, password or given.password)
        http = CloudHttp(
            server.url,
            RequestBudget(6_000_000, clock=clock),
            lambda ask: Tokens("account", credentials, Facts(file), ask, clock=clock, monotonic=clock),
            timeout=timeout,
            version="test",
            clock=clock,
            monotonic=clock,
            jitter=lambda: 0,
        )
        async with http:
            yield BaceCloud(http), server, http


@pytest.fixture
def clock() -> Clock:
    return Clock()


def token_requests(server: SimulatedServer) -> int:
    return sum(seen.path == "/oauth2/token" for seen in server.requests)


@pytest.mark.parametrize("refresh", ["refresh-rotates", "refresh-destroys", "refresh-both", "refresh-same"])
async def test_tokens_are_renewed_in_all_refresh_configurations(clock: Clock, tmp_path: Path, refresh: str) -> None:
    cloud = simulated(clock, refresh, "token-lifetime 600s")
    cloud.open_session(cloud.add_device("one").id_group)
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
        for _ in range(6):
            assert (await api.session_page((), 1)).count == 1
            clock.forward(700)
        assert 6 <= token_requests(server) <= 12


@pytest.mark.parametrize("refresh", ["refresh-rotates", "refresh-destroys", "refresh-both", "refresh-same"])
@pytest.mark.parametrize("failure", ["none", "400", "500", "no answer"])
async def test_a_token_that_expires_in_the_middle_of_a_walk(
    clock: Clock, tmp_path: Path, refresh: str, failure: str
) -> None:
    """The walk goes on with the next token; where that cannot be had at once, at the next try, from its beginning."""
    cloud = simulated(clock, refresh, "token-lifetime 600s", "per-page-max 7")
    cloud.add_device("one")
    history = cloud.add_history(30, first_start=clock.now - 90_000, spacing=1000, duration=100)
    async with client(cloud, clock, tmp_path / "b.db", timeout=1.5 if failure == "no answer" else 60) as (
        api,
        server,
        _,
    ):

        async def walk() -> list[str]:
            seen: list[str] = []
            async for page in pages(partial(Reader(api).page, (("sort", "id_data_session"),))):
                seen += [row.session.id for row in page.items]
                clock.forward(400)
            return seen

        await api.session_page((), 1)
        if failure == "no answer":
            server.faults.delay("/oauth2/token", 5)
        elif failure != "none":
            server.faults.answer("/oauth2/token", status=int(failure), body="{}")
        if failure in {"500", "no answer"}:
            with pytest.raises(CloudUnavailable):
                await walk()
            server.faults.waiting.clear()
        seen = await walk()
        assert sorted(seen) == sorted(history)
        assert token_requests(server) <= 12


async def test_a_token_that_the_cloud_forgot_in_the_middle_of_a_walk(clock: Clock, tmp_path: Path) -> None:
    """401 before its time, as after the cloud's restart, or where our clock was set back."""
    cloud = simulated(clock, "per-page-max 7", "token-lifetime 600s")
    cloud.add_device("one")
    history = cloud.add_history(30, first_start=clock.now - 90_000, spacing=1000, duration=100)
    ours = Clock(clock.now)
    async with client(cloud, ours, tmp_path / "b.db") as (api, server, _):
        seen: list[str] = []
        async for page in pages(partial(Reader(api).page, (("sort", "id_data_session"),))):
            seen += [row.session.id for row in page.items]
            clock.forward(400)
        assert sorted(seen) == sorted(history)
        assert sum(one.status == 401 for one in server.requests) >= 2


async def test_a_refresh_that_breaks_again_and_again_gives_way_to_a_login(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "token-lifetime 600s")
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
        await api.session_page((), 1)
        clock.forward(700)
        server.faults.answer("/oauth2/token", status=500, body="{}", times=3)
        for _ in range(2):
            with pytest.raises(CloudUnavailable, match="500"):
                await api.session_page((), 1)
        assert (await api.session_page((), 1)).count == 0
        grants = [one.grant_type for one in server.requests if one.path == "/oauth2/token"]
        assert grants == ["password", *["refresh_token"] * 3, "password"]


async def test_a_token_survives_a_restart(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    for expected in (1, 0):
        async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
            await api.session_page((), 1)
            assert token_requests(server) == expected


async def test_many_requests_at_once_renew_an_expired_token_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "token-lifetime 600s")
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
        await api.session_page((), 1)
        clock.forward(600)
        await asyncio.gather(*(api.session_page((), 1) for _ in range(20)))
        assert token_requests(server) == 2


async def test_a_wrong_password_is_not_tried_in_a_storm(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    async with client(cloud, clock, tmp_path / "b.db", password="wrong") as (api, server, _):
        for look in range(50):
            reason = r"refused the login \(401\): check cloud\.username or password"
            later = r"; the next attempt is at 2025-12-01T12:\d\d:00Z$" if look % 30 else "$"
            with pytest.raises(CloudLoginFailed, match=reason + later):
                await api.session_page((), 1)
            clock.forward(10)
        assert token_requests(server) == 2


async def test_a_good_login_makes_up_for_the_refused_ones(clock: Clock, tmp_path: Path) -> None:
    """Another refusal after it is the first one again, with the shortest pause."""
    async with client(simulated(clock, "token-lifetime 600s"), clock, tmp_path / "b.db") as (api, server, _):
        for grants in (["password"], ["refresh_token", "password"]):
            server.faults.answer("/oauth2/token", status=401, body="{}", times=len(grants))
            with pytest.raises(CloudLoginFailed):
                await api.session_page((), 1)
            clock.forward(300)
            assert (await api.session_page((), 1)).count == 0
            clock.forward(700)
        assert [one.status for one in server.requests if one.path == "/oauth2/token"] == [401, 200, 401, 401, 200]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, "<html>a proxy</html>") for status in (400, 403, 404, 405, 408, 413, 421, 425)),
        *((status, '{"name":"Not Found","message":"no such page"}') for status in (403, 404, 405)),
    ],
)
async def test_what_is_no_answer_of_a_token_endpoint_says_nothing_of_the_login(
    clock: Clock, tmp_path: Path, status: int, body: str
) -> None:
    """The refresh token is kept at first, and the next try is made as after any outage."""
    async with client(simulated(clock, "token-lifetime 600s"), clock, tmp_path / "b.db") as (api, server, _):
        await api.session_page((), 1)
        clock.forward(700)
        server.faults.answer("/oauth2/token", status=status, body=body, times=2)
        for _ in range(2):
            with pytest.raises(CloudUnavailable, match=rf"{status}.*check cloud\.url"):
                await api.session_page((), 1)
        assert (await api.session_page((), 1)).count == 0
        grants = [one.grant_type for one in server.requests if one.path == "/oauth2/token"]
        assert grants == ["password", *["refresh_token"] * 3]


@pytest.mark.parametrize(("status", "body"), [(400, '{"error":"invalid_client"}'), (401, ""), (401, "{}")])
async def test_a_token_endpoint_that_refuses_the_login(clock: Clock, tmp_path: Path, status: int, body: str) -> None:
    async with client(simulated(clock), clock, tmp_path / "b.db") as (api, server, _):
        server.faults.answer("/oauth2/token", status=status, body=body)
        with pytest.raises(CloudLoginFailed, match=str(status)):
            await api.session_page((), 1)


async def test_a_forbidden_endpoint_is_named_and_costs_no_more_logins(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "forbidden /api/v2/group")
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
        for _ in range(5):
            with pytest.raises(CloudRefused, match="may not use this endpoint"):
                await api.group_page(1)
        assert token_requests(server) == 2


async def test_two_forbidden_endpoints_do_not_renew_the_token_in_turns(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "forbidden /api/v2/group", "forbidden /api/v2/data-downsampled")
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
        for _ in range(20):
            with pytest.raises(CloudRefused, match="may not use this endpoint"):
                await api.group_page(1)
            with pytest.raises(CloudRefused, match="may not use this endpoint"):
                await api.point_page((), 1, urgency=Urgency.LIVE)
        assert token_requests(server) == 3
        for _ in range(24 * 6):
            clock.forward(600)
            with pytest.raises(CloudRefused):
                await api.group_page(1)
        assert token_requests(server) < 3 + 12


async def test_an_endpoint_that_is_permitted_later_is_used_and_its_token_renewed(clock: Clock, tmp_path: Path) -> None:
    async with client(simulated(clock), clock, tmp_path / "b.db") as (api, server, _):
        server.faults.answer("/api/v2/group", status=401, body="{}", times=2)
        with pytest.raises(CloudRefused, match="may not use this endpoint"):
            await api.group_page(1)
        assert (await api.group_page(1)).items == ()
        server.faults.answer("/api/v2/group", status=401, body="{}", times=1)
        assert (await api.group_page(1)).items == ()
        assert token_requests(server) == 3


@pytest.mark.parametrize(
    ("life", "most"), [("30", 5), ("60", 3), ("1", 5), ("0", 1), ("-5", 1), ('"nan"', 1), ('"inf"', 1), ("1e308", 1)]
)
async def test_a_token_is_used_whatever_is_said_of_its_life(clock: Clock, tmp_path: Path, life: str, most: int) -> None:
    asked = 0

    async def ask(_: dict[str, str]) -> TokenReply:
        nonlocal asked
        asked += 1
        return parse_token(b'{"access_token":"t%d","expires_in":%b}' % (asked, life.encode()))

    async with SqliteFile(tmp_path / "t.db") as file:
        tokens = Tokens("a", Credentials("a", "b", "c", "d"), Facts(file), ask, clock=clock, monotonic=clock)
        for _ in range(100):
            await tokens.current()
            clock.forward(1)
        assert asked <= most


async def test_a_refresh_token_that_no_answer_replaces_is_used_on(clock: Clock, tmp_path: Path) -> None:
    grants: list[str] = []

    async def ask(form: dict[str, str]) -> TokenReply:
        grants.append(form["grant_type"])
        return TokenReply(f"token-{len(grants)}", 600.0, "refresh" if len(grants) == 1 else None)

    async with SqliteFile(tmp_path / "t.db") as file:
        tokens = Tokens("a", Credentials("a", "b", "c", "d"), Facts(file), ask, clock=clock, monotonic=clock)
        for _ in range(4):
            await tokens.current()
            clock.forward(600)
    assert grants == ["password", "refresh_token", "refresh_token", "refresh_token"]


async def test_a_refused_fixed_token_says_where_to_put_another(clock: Clock) -> None:
    async with SimulatedServer(simulated(clock)) as server:
        budget = RequestBudget(6000, clock=clock)
        http = CloudHttp(
            server.url,
            budget,
            lambda _: FixedToken("not-valid"),
            timeout=60,
            version="test",
            clock=clock,
            monotonic=clock,
        )
        async with http:
            with pytest.raises(CloudLoginFailed, match=r"cloud\.access_token"):
                await BaceCloud(http).session_page((), 1)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, '{"name":"Internal","message":"broken","status":500}', CloudFault),
        (502, "<html>bad gateway</html>", CloudBadGateway),
        (413, "", CloudRequestTooLarge),
        (414, "<html>too long</html>", CloudRequestTooLarge),
        (431, "", CloudRequestTooLarge),
        (410, "<html>gone</html>", CloudRefused),
        (410, '{"name":"Gone","message":"gone"}', CloudGone),
        (404, "", CloudRefused),
        (503, "", CloudUnavailable),
        (404, "<html>no such route</html>", CloudRefused),
        (404, '{"name":"Not Found","message":"Object not found","status":404}', CloudGone),
        (403, '{"name":"Forbidden","message":"no","code":"0"}', CloudRefused),
        (422, '[{"field":"start","message":"must be an integer"}]', CloudRefused),
        (200, "<html>a login page</html>", UnexpectedReply),
        (200, '{"items":[{"id_data_se', UnexpectedReply),
    ],
)
async def test_answers_become_named_errors(
    clock: Clock, tmp_path: Path, status: int, body: str, error: type[Exception]
) -> None:
    cloud = simulated(clock)
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):
        await api.session_page((), 1)
        server.faults.answer("/api/v2/data-session", status=status, body=body)
        with pytest.raises(error) as caught:
            await api.session_page((), 1)
        assert type(caught.value) is error
        assert "<html" not in str(caught.value)


async def test_a_rate_limit_silences_the_whole_account(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "rate-limit 2/20s")
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, http):
        answers = await asyncio.gather(*(api.session_page((), 1) for _ in range(3)), return_exceptions=True)
        refused = [one for one in answers if isinstance(one, CloudUnavailable)]
        assert [one.retry_after >= 1 for one in refused] == [True]
        before = len(server.requests)
        waiting = asyncio.create_task(api.session_page((), 1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.requests) == before
        assert http.active_at > clock.now
        waiting.cancel()


async def test_redirects_carry_no_token_anywhere(clock: Clock, tmp_path: Path) -> None:
    async with client(simulated(clock, "redirects"), clock, tmp_path / "b.db") as (api, server, _):
        with pytest.raises(UnexpectedReply, match=r"redirect.*check cloud\.url"):
            await api.session_page((), 1)
        assert sum(seen.path.startswith("/api/") for seen in server.requests) == 1


async def test_a_cut_or_silent_connection_is_unavailable(clock: Clock, tmp_path: Path) -> None:
    async with client(simulated(clock), clock, tmp_path / "b.db", timeout=1) as (api, server, _):
        await api.session_page((), 1)
        server.faults.drop("/api/v2/data-session", times=5)
        with pytest.raises(CloudUnavailable):
            await api.session_page((), 1)
        server.faults.waiting.clear()
        server.faults.delay("/api/v2/data-session", 30)
        with pytest.raises(CloudUnavailable, match="no answer within"):
            await api.session_page((), 1)


async def test_a_walk_ends_where_the_server_clamps(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.add_device("one")
    cloud.add_history(230, first_start=clock.now - 500_000, spacing=1000, duration=100)
    async with client(cloud, clock, tmp_path / "b.db") as (api, _, _):
        seen = [
            row.session.id
            async for page in pages(partial(Reader(api).page, (("sort", "id_data_session"),)))
            for row in page.items
        ]
        assert len(seen) == len(set(seen)) == 230
        assert (await api.session_page((), 99)).page == 3


@pytest.mark.parametrize(
    "quirks",
    [
        ("numbers-as-strings",),
        ("booleans-as-ints",),
        ("unknown-fields",),
        ("internal-links",),
        ("no-expand",),
    ],
)
async def test_loose_types_are_understood(clock: Clock, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("one")
    session = cloud.open_session(device.id_group)
    cloud.add_points(session, device.series[0].id_container_data_latest, [(clock.now + 0.5, 5.25)])
    cloud.end_session(session)
    cloud.finish_ingestion(session)
    async with client(cloud, clock, tmp_path / "b.db") as (api, _, _):
        page = await api.session_page((), 1)
        (row,) = page.items
        assert (row.session.id, row.session.state) == (session, "ingested")
        assert page.unreadable == ()
        read = await points_of(api, session, clock).read(0, 2**31 - 1)
        assert [point.avg for point in read.points] == [5.25]


@pytest.mark.parametrize("quirks", [(), ("tie-shuffle",), ("per-page-max 50",), ("tie-shuffle", "per-page-max 50")])
async def test_datapoints_are_complete_however_pages_shuffle(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("one", datatypes=(6000, 6001, 6002, 5205))
    session = cloud.open_session(device.id_group, start=int(clock.now))
    for series in device.series:
        cloud.add_points(session, series.id_container_data_latest, [(clock.now + one, one) for one in range(100)])
    async with client(cloud, clock, tmp_path / "b.db") as (api, _, _):
        start = int(clock.now)
        read = await points_of(api, session, clock).read(start, start + 3600)
        assert len({(point.series_id, point.timestamp) for point in read.points}) == 400


@pytest.mark.parametrize("quirks", [(), ("series-truncated",)])
async def test_more_than_a_hundred_series_are_read_in_parts(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("one", datatypes=(6000, 6001), sources=120)
    session = cloud.open_session(device.id_group, start=int(clock.now))
    for series in device.series:
        cloud.add_points(session, series.id_container_data_latest, [(clock.now + 1, 1.0)])
    async with client(cloud, clock, tmp_path / "b.db") as (api, _, _):
        start = int(clock.now)
        read = await points_of(api, session, clock).read(start, start + 3600)
        assert len(read.points) == 240


async def test_the_budget_holds_over_any_minute() -> None:
    clock = Clock()
    budget = RequestBudget(60, clock=clock)
    made: list[float] = []

    async def ask() -> None:
        await budget.turn(Urgency.LIVE)
        made.append(clock.now)

    asks = [asyncio.create_task(ask()) for _ in range(200)]
    for _ in range(3000):
        await asyncio.sleep(0)
        clock.forward(0.1)
        budget.release()
    await asyncio.gather(*asks)
    assert all(sum(start <= one < start + 60 for one in made) <= 60 for start in made)
    assert made[-1] - made[0] < 260


async def test_the_most_urgent_goes_first() -> None:
    clock = Clock()
    budget = RequestBudget(4, clock=clock)
    await budget.turn(Urgency.LIVE)
    order: list[Urgency] = []

    async def ask(urgency: Urgency) -> None:
        await budget.turn(urgency)
        order.append(urgency)

    asks = [asyncio.create_task(ask(one)) for one in (Urgency.BACKLOG, Urgency.LIVE, Urgency.SESSIONS)]
    for _ in range(30):
        await asyncio.sleep(0)
        clock.forward(10)
        budget.release()
    await asyncio.gather(*asks)
    assert order == sorted(order)


async def test_a_shorter_silence_does_not_end_a_longer_one() -> None:
    clock = Clock()
    budget = RequestBudget(6000, clock=clock)
    budget.silence(60)
    clock.forward(1)
    budget.silence(5)
    turn = asyncio.create_task(budget.turn(Urgency.SESSIONS))
    for seconds, granted in ((0, False), (58, False), (1, True)):
        clock.forward(seconds)
        for _ in range(3):
            await asyncio.sleep(0)
            budget.release()
        assert turn.done() is granted


async def test_a_turn_that_is_cancelled_as_it_is_granted_goes_to_the_next() -> None:
    clock = Clock()
    budget = RequestBudget(4, clock=clock)
    await budget.turn(Urgency.SESSIONS)
    first, second = (asyncio.create_task(budget.turn(Urgency.SESSIONS)) for _ in range(2))
    await asyncio.sleep(0)
    clock.forward(20)
    budget.release()
    first.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (first.cancelled(), second.done()) == (True, True)


async def test_no_burst_follows_a_silence() -> None:
    clock = Clock()
    budget = RequestBudget(60, clock=clock)
    budget.silence(2)
    turns = [asyncio.create_task(budget.turn(Urgency.LIVE)) for _ in range(15)]
    await asyncio.sleep(0)
    clock.forward(2)
    budget.release()
    for _ in range(3):
        await asyncio.sleep(0)
    assert 1 <= sum(one.done() for one in turns) <= 3
    for one in turns:
        one.cancel()


@pytest.mark.parametrize("status", [429, 500, 502])
async def test_what_an_answer_repeats_of_our_secrets_is_masked(clock: Clock, tmp_path: Path, status: int) -> None:
    cloud = simulated(clock, "token-lifetime 600s")
    given = cloud.credentials
    async with client(cloud, clock, tmp_path / "b.db") as (api, server, _):

        async def said(path: str, secret: str) -> str:
            server.faults.answer(path, status=status, body=f'{{"name":"Error","message":"not {secret} at all"}}')
            with pytest.raises((CloudFault, CloudUnavailable)) as caught:
                await api.session_page((), 1)
            clock.forward(60)
            return str(caught.value)

        for secret in (given.password, given.client_secret):
            assert "not *** at all" in await said("/oauth2/token", secret)
        await api.session_page((), 1)
        token = next(
            value.removeprefix("Bearer ")
            for seen in server.requests
            for name, value in seen.headers
            if name.lower() == "authorization"
        )
        assert "not *** at all" in await said("/api/", token)


@pytest.mark.parametrize(("ahead", "counts"), [(3, 0), (-3, 0), (20, 20), (-20, -20)])
async def test_a_difference_between_the_clocks_counts_from_five_seconds_on(
    clock: Clock, tmp_path: Path, ahead: float, counts: float
) -> None:
    cloud = simulated(Clock(clock.now + ahead))
    async with client(cloud, clock, tmp_path / "b.db") as (api, _, http):
        await api.session_page((), 1)
        assert http.clock_ahead == counts
        assert api.now() == clock.now + counts
