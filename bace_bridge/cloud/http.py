"""One HTTP session with the cloud: every request takes its turn, carries a token, and fails by a name."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol, Self

import aiohttp
import msgspec
import structlog
from yarl import URL

from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.replies import EARLIEST, LATEST, TokenReply, is_json, parse_problem, parse_token
from bace_bridge.domain.retry import backoff
from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudFault,
    CloudGone,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.polling.rules.seen import Urgency

log = structlog.get_logger()

DEFAULT_SILENCE = 30.0
"""Seconds without a request after a 429 that does not say how long."""

PEACE = 600.0
"""Seconds after the silence of a 429 from which the next one is worth a warning again."""

LONGEST_SILENCE = 86400.0
"""Seconds: no answer can silence the bridge for longer."""

LARGEST_BODY = 16 * 2**20
"""Bytes of an answer, unpacked: some ten times what the largest page that is asked for has."""

MOST_VALUES = 500_000
"""Values in an answer, of which each but the first of its list has a comma: a byte or two of it may cost a hundred."""

CHUNK = 2**16

FIRST_REST = 600.0
LONGEST_REST = 21600.0
"""Seconds for which a path that refused a fresh token, once or again and again, causes no other one to be asked for."""

SKEW_WORTH_KNOWING = 5.0
"""Seconds: the cloud's `Date` has whole seconds and a way to travel, so a smaller difference says nothing."""

Params = Sequence[tuple[str, str]]


class TokenSource(Protocol):
    async def current(self) -> str: ...
    async def after_refusal(self, rejected: str) -> str: ...


class Reply(msgspec.Struct, frozen=True):
    """A 2xx answer."""

    headers: Mapping[str, str]
    body: bytes


class CloudHttp:
    """GETs from BACE's API. Raises the CloudErrors of `bace_bridge.errors` and nothing else.

    URLs are built from the configured base alone: `_links` may name internal hosts, and a redirect may lead the token
    elsewhere, so neither is followed.
    """

    def __init__(
        self,
        base_url: str,
        budget: RequestBudget,
        *,
        timeout: float,
        version: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._budget = budget
        self._clock = clock
        self._monotonic = monotonic
        self._jitter = jitter
        self._timeout = timeout
        self._agent = f"bace-bridge/{version}"
        self._session: aiohttp.ClientSession | None = None
        self._tokens: TokenSource | None = None
        self._forbidden: dict[str, _Forbidden] = {}
        self.requests_made = 0
        self._answered_at = 0.0
        self._limited_at: float | None = None
        self._ahead: float | None = None

    @property
    def active_at(self) -> float:
        """When the last answer came or, while the cloud wants silence, when that ends, by the monotonic clock."""
        silent_for = self._budget.silent_for
        return self._monotonic() + silent_for if silent_for else self._answered_at

    @property
    def clock_ahead(self) -> float:
        """Seconds that the cloud's clock is ahead of ours, as far as its answers tell."""
        return 0.0 if self._ahead is None or abs(self._ahead) <= SKEW_WORTH_KNOWING else self._ahead

    def clock_stepped(self, seconds: float) -> None:
        """Our clock was set forward (or back) by so much."""
        if self._ahead is not None:
            self._ahead -= seconds

    def use_tokens(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers={"Accept": "application/json", "User-Agent": self._agent},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Params = (), *, urgency: Urgency) -> Reply:
        """One GET. On a 401 the token is renewed once; a fresh one that is refused too means: not permitted.

        Then that path causes no renewal for a while: two such paths would take turns at renewing each other's token.
        """
        assert self._tokens is not None
        token = await self._tokens.current()
        forbidden = self._forbidden.get(path, _Forbidden())
        try:
            return await self._allowed(path, params, token, urgency)
        except _Unauthorized:
            if self._monotonic() < forbidden.until:
                raise _not_permitted(path) from None
        token = await self._tokens.after_refusal(token)
        try:
            return await self._allowed(path, params, token, urgency)
        except _Unauthorized:
            times = forbidden.times + 1
            rest = backoff(times, jitter=0.0, first=FIRST_REST, longest=LONGEST_REST)
            self._forbidden[path] = _Forbidden(times, self._monotonic() + rest)
            raise _not_permitted(path) from None

    async def _allowed(self, path: str, params: Params, token: str, urgency: Urgency) -> Reply:
        reply = await self._send("GET", path, params=params, token=token, urgency=urgency)
        self._forbidden.pop(path, None)
        return reply

    async def ask_token(self, form: dict[str, str]) -> TokenReply:
        """Posts to the token endpoint. Credentials travel in the body, as BACE documents it."""
        try:
            reply = await self._send("POST", "/oauth2/token", form=form, urgency=Urgency.SESSIONS)
        except _Unauthorized:
            raise CloudRefused("the token endpoint refused the login", status=401) from None
        return parse_token(reply.body)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        urgency: Urgency,
        params: Params = (),
        form: dict[str, str] | None = None,
        token: str | None = None,
    ) -> Reply:
        assert self._session is not None
        await self._budget.turn(urgency)
        self.requests_made += 1
        url = URL(self._base + path).with_query(list(params)) if params else URL(self._base + path)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._session.request(
                method, url, headers=headers, data=form, allow_redirects=False
            ) as response:
                body = await _body(response, f"{method} {path}")
                self._answered_at = self._monotonic()
                self._note_clock(response.headers.get("Date"))
        except TimeoutError:
            raise CloudUnavailable(f"{method} {path}: no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise CloudUnavailable(f"{method} {path}: {_why(error)}") from None
        if 200 <= response.status < 300:
            return Reply(response.headers, body)
        sent = (*(form or {}).values(), token or "")
        failure = self._failure(f"{method} {path}", response.status, response.headers, body, sent)
        if form is not None and isinstance(failure, CloudRefused) and not _refuses_login(response.status, body):
            raise CloudUnavailable(f"{failure}: it does not come from a token endpoint: check cloud.url")
        raise failure

    def _failure(
        self, what: str, status: int, headers: Mapping[str, str], body: bytes, sent: Sequence[str]
    ) -> CloudError:
        """The error that an answer means; `sent` are the secrets of the request, which a server may repeat."""
        problem = parse_problem(body, private=sent)
        text = f"{what}: {status}" + (f" {problem}" if problem else "")
        if status == 401:
            return _Unauthorized(text, status=status)
        if status == 429:
            pause = max(_seconds(headers, "Retry-After"), _seconds(headers, "X-Rate-Limit-Reset")) or DEFAULT_SILENCE
            pause += 1 + self._jitter()
            self._budget.silence(pause)
            self._log_rate_limit(pause)
            return CloudUnavailable(f"{text} (rate limit)", retry_after=pause)
        if status == 500:
            return CloudFault(text)
        if status == 502:
            return CloudBadGateway(text, retry_after=_seconds(headers, "Retry-After"))
        if status in {413, 414, 431}:
            return CloudRequestTooLarge(text)
        if status > 500:
            return CloudUnavailable(text, retry_after=_seconds(headers, "Retry-After"))
        if 300 <= status < 400:
            return UnexpectedReply(f"{text}: a redirect, which is not followed with the token: check cloud.url")
        if status in {404, 410} and problem is not None:
            return CloudGone(text, status=status)
        return CloudRefused(text, status=status)

    def _log_rate_limit(self, pause: float) -> None:
        """Once until there was none for a while: an account that is polled too often meets its limit all the time."""
        now = self._monotonic()
        say = log.debug if self._limited_at is not None and now - self._limited_at < PEACE else log.warning
        say("cloud.rate_limited", silent_for=round(pause, 1), then="lower cloud.requests_per_minute if it lasts")
        self._limited_at = now + pause

    def _note_clock(self, date: str | None) -> None:
        theirs = _http_date(date)
        if theirs is not None:
            self._ahead = theirs - self._clock()


async def _body(response: aiohttp.ClientResponse, what: str) -> bytes:
    """Read as it comes, since a small compressed answer may be a very large one."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        body += chunk
        if len(body) > LARGEST_BODY:
            response.close()
            raise UnexpectedReply(f"{what}: an answer of more than {LARGEST_BODY // 2**20} MiB")
    if body.count(b",") > MOST_VALUES:
        raise UnexpectedReply(f"{what}: an answer of more than {MOST_VALUES} values")
    return bytes(body)


def _refuses_login(status: int, body: bytes) -> bool:
    """True for OAuth 2's own answers; any other 4xx is a proxy's or another server's, and says nothing of the login."""
    return status == 401 or (status == 400 and is_json(body))


class _Forbidden(NamedTuple):
    """How often in a row a path refused a fresh token, and until when it causes no renewal."""

    times: int = 0
    until: float = 0.0


class _Unauthorized(CloudRefused):
    """401: the token, or the permission for this endpoint, is missing."""


def _not_permitted(path: str) -> CloudRefused:
    return CloudRefused(f"{path}: 401 with a fresh token: this account may not use this endpoint", status=401)


def _why(error: Exception) -> str:
    """A short reason without the URL (aiohttp's messages may hold it)."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the server's TLS certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return "the connection was cut"
    return type(error).__name__


def _seconds(headers: Mapping[str, str], name: str) -> float:
    """A header's wait in seconds, given as a number or as an HTTP date; 0 where it says nothing.

    A date is compared with the answer's own, since our clock may be wrong by days.
    """
    text = headers.get(name, "").strip()
    if text.replace(".", "", 1).isdecimal():
        return min(float(text), LONGEST_SILENCE)
    until = _http_date(text)
    since = _http_date(headers.get("Date"))
    if until is None:
        return 0.0
    return max(0.0, min(until - (time.time() if since is None else since), LONGEST_SILENCE))


def _http_date(text: str | None) -> float | None:
    """Epoch seconds; None where it is no date, or one that no calendar holds."""
    try:
        seconds = parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError, OverflowError, OSError, IndexError):
        return None
    return seconds if seconds is not None and EARLIEST < seconds < LATEST else None
