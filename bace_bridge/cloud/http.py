"""One HTTP session with the cloud: every request takes its turn, carries a token, and fails by a name."""

import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Self

import aiohttp
import msgspec
import structlog
from yarl import URL

from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.failures import LARGEST_HEADER, Unauthorized, of_answer, of_exception, of_token_answer
from bace_bridge.cloud.tokens import FixedToken, RequestToken, TokenReply, Tokens, parse_token
from bace_bridge.errors import CloudError, CloudRefused, CloudRequestTooLarge, CloudUnavailable, UnexpectedReply
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.redaction import Redaction
from bace_bridge.retry import RateLimit, backoff, http_date, rate_limit

log = structlog.get_logger()

PEACE = 600.0
"""Seconds after the silence of a 429 from which the next one is worth a warning again."""

LARGEST_BODY = 16 * 2**20
"""Bytes of an answer, unpacked: some ten times what the largest page has that is requested."""

MOST_VALUES = 500_000
"""Values in an answer, of which each but the first of its list has a comma: a byte or two of it may cost a hundred."""

CHUNK = 2**16

FIRST_BYTE_WITHIN = 120.0
"""Seconds that a download may take to begin, and to go on: a server may make the whole file before its first byte."""

FIRST_REST = 600.0
LONGEST_REST = 21600.0
"""Seconds for which a path that refused a fresh token, once or again and again, causes no renewal."""

SKEW_WORTH_KNOWING = 5.0
"""Seconds: the cloud's `Date` has whole seconds and a way to travel, so a smaller difference says nothing."""

Params = Sequence[tuple[str, str]]

TokenSource = Tokens | FixedToken


class Reply(msgspec.Struct, frozen=True):
    """A 2xx answer."""

    headers: Mapping[str, str]
    body: bytes


class Download:
    """A 2xx answer that is read as it comes: what is not taken is neither read nor held."""

    def __init__(self, response: aiohttp.ClientResponse, what: str) -> None:
        self.headers: Mapping[str, str] = response.headers
        self.framed = not {"Content-Length", "Transfer-Encoding"}.isdisjoint(response.headers)
        """Whether the answer says where it ends. Else the end of the connection is all there is."""
        self._response = response
        self._what = what

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises CloudUnavailable where it does not come to its end."""
        try:
            async for piece in self._response.content.iter_chunked(CHUNK):
                yield piece
        except Exception as error:  # noqa: BLE001  # aiohttp, ssl and codecs raise whatever they like
            raise of_exception(self._what, error, timeout=FIRST_BYTE_WITHIN) from None


class CloudHttp:
    """GETs from BACE's API. Raises the CloudErrors of `bace_bridge.errors` and nothing else.

    URLs are built from the configured base alone: `_links` may name internal hosts, and a redirect may lead the token
    elsewhere, so neither is followed. `tokens` makes the source of its tokens, which requests them over this session.
    `redaction` learns each token, and takes out of errors what the cloud repeats of any secret.
    """

    def __init__(
        self,
        base_url: str,
        budget: RequestBudget,
        tokens: Callable[[RequestToken], TokenSource],
        *,
        timeout: float,
        version: str,
        redaction: Redaction | None = None,
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
        self._redaction = redaction or Redaction()
        self._tokens = tokens(self.request_token)
        self._forbidden: dict[str, _Forbidden] = {}
        self._good_token = ""
        self._answered_at = 0.0
        self._limited_at: float | None = None
        self._paced = False
        self._ahead: float | None = None

    @property
    def active_at(self) -> float:
        """When the last answer came or, while the cloud wants silence, when that ends, by the monotonic clock."""
        silent_for = self._budget.silent_for
        return self._monotonic() + silent_for if silent_for else self._answered_at

    @property
    def clock_ahead(self) -> float:
        """Seconds that the cloud's clock is ahead of ours, as far as its answers show."""
        return 0.0 if self._ahead is None or abs(self._ahead) <= SKEW_WORTH_KNOWING else self._ahead

    def now(self) -> float:
        """Epoch seconds by the cloud's clock, as far as its answers show."""
        return self._clock() + self.clock_ahead

    def clock_stepped(self, seconds: float) -> None:
        """Our clock was set forward (or back) by so much."""
        if self._ahead is not None:
            self._ahead -= seconds

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Accept": "application/json", "User-Agent": self._agent},
            # The token alone says who asks.
            cookie_jar=aiohttp.DummyCookieJar(),
            # aiohttp takes 8 KiB a field, and a `Link` header of 32 ids was 8,009 bytes.
            max_line_size=LARGEST_HEADER,
            max_field_size=LARGEST_HEADER,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Params = (), *, urgency: Urgency) -> Reply:
        """One GET. On a 401 the token is renewed once; a fresh one that is refused too means: not permitted."""
        return (await self._allowed(path, partial(self._send, "GET", path, params=params, urgency=urgency))).reply

    @contextlib.asynccontextmanager
    async def download(self, path: str, *, endpoint: str, urgency: Urgency) -> AsyncIterator[Download]:
        """One GET whose answer may be of any size; `endpoint` stands for all paths that are permitted together."""
        answer = await self._allowed(endpoint, partial(self._send, "GET", path, urgency=urgency, whole=False))
        if answer.status != 200:  # such as a part of it (206)
            raise UnexpectedReply(f"GET {path}: {answer.status} in place of 200")
        assert answer.response is not None
        try:
            yield Download(answer.response, f"GET {path}")
        finally:
            # Closed and not released: the rest of it is not wanted.
            answer.response.close()

    async def _allowed(self, path: str, ask: Callable[..., Awaitable["_Answer"]]) -> "_Answer":
        """The answer to what `ask` sends with the token that it is given."""
        token = await self._tokens.current()
        forbidden = self._forbidden.get(path, _Forbidden())
        # BACE answers 401 for two things: a token that is worn out, and an endpoint that this account may not use.
        # Only a fresh token shows which, so it is tried once with one.
        try:
            return await self._with(token, path, ask)
        except Unauthorized:
            # Each renewal may void the token that the other paths use: one that was refused lately causes none.
            if self._monotonic() < forbidden.until:
                raise _not_permitted(path) from None
            token = await self._tokens.after_refusal(token)
        except (CloudRefused, CloudRequestTooLarge) as failure:
            # A token that was never accepted may be why a server calls the request bad, or its headers too large.
            if failure.status not in {400, 431} or token == self._good_token or not self._tokens.renewable:
                raise
            log.info("cloud.token_doubted", status=failure.status, then="renewing it once")
            token = self._good_token = await self._tokens.after_refusal(token)
        try:
            return await self._with(token, path, ask)
        except Unauthorized:
            times = forbidden.times + 1
            rest = backoff(times, jitter=0.0, first=FIRST_REST, longest=LONGEST_REST)
            self._forbidden[path] = _Forbidden(times, self._monotonic() + rest)
            raise _not_permitted(path) from None

    async def _with(self, token: str, path: str, ask: Callable[..., Awaitable["_Answer"]]) -> "_Answer":
        answer = await ask(token=token)
        if answer.failure is not None:
            raise answer.failure
        self._forbidden.pop(path, None)
        self._good_token = token
        return answer

    async def request_token(self, form: dict[str, str]) -> TokenReply:
        """Posts to the token endpoint. Credentials travel in the body, as BACE documents it.

        Raises CloudRefused where it refuses them, and else CloudUnavailable.
        """
        answer = await self._send("POST", "/oauth2/token", form=form, urgency=Urgency.SESSIONS)
        failure = answer.failure
        if failure is None:
            try:
                reply = parse_token(answer.reply.body)
            except UnexpectedReply as unusable:
                failure = unusable
            else:
                self._redaction.learn_token(reply.access_token, reply.refresh_token)
                return reply
        raise of_token_answer(failure, answer.status, answer.reply.body)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        urgency: Urgency,
        params: Params = (),
        form: dict[str, str] | None = None,
        token: str | None = None,
        whole: bool = True,
    ) -> "_Answer":
        """`whole` reads the body; else that of a 200 is left to be read."""
        assert self._session is not None
        await self._budget.turn(urgency)
        what = f"{method} {path}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Before it is sent: the answer's error may repeat it, and so may aiohttp's.
        self._redaction.learn_token(token, (form or {}).get("refresh_token"))
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        if not whole:
            # `Accept: text/csv` is a 406 in Yii. Not packed: a few kilobytes may unpack to gigabytes.
            headers |= {"Accept": "*/*", "Accept-Encoding": "identity"}
            timeout = aiohttp.ClientTimeout(total=None, connect=self._timeout, sock_read=FIRST_BYTE_WITHIN)
        try:
            url = URL(self._base + path).with_query(list(params)) if params else URL(self._base + path)
            response = await self._session.request(
                method, url, headers=headers, data=form, allow_redirects=False, timeout=timeout
            )
            if not whole and response.status == 200:
                body = b""
            else:
                async with response:
                    body = await _body(response, what)
        except CloudError as unusable:
            return _Answer(response.status, Reply(response.headers, b""), unusable)
        except Exception as error:  # noqa: BLE001  # aiohttp, yarl, ssl and codecs raise whatever they like
            return _Answer(None, Reply({}, b""), of_exception(what, error, timeout=self._timeout))
        self._answered_at = self._monotonic()
        if (date := http_date(response.headers.get("Date"))) is not None:
            self._ahead = date - self._clock()
        reply = Reply(response.headers, body)
        cloud_now = self.now()
        if 200 <= response.status < 300:
            self._learn_pace(rate_limit(response.headers, now=cloud_now))
            return _Answer(response.status, reply, None, response)
        quote = partial(self._redaction.quoted, also=(form or {}).values())
        failure = of_answer(what, response.status, response.headers, body, quote=quote, now=cloud_now)
        if response.status == 429 and isinstance(failure, CloudUnavailable):
            self._keep_silent(failure, rate_limit(response.headers, now=cloud_now))
        return _Answer(response.status, reply, failure)

    def _learn_pace(self, allowance: RateLimit) -> None:
        # Logged once: an account with a small allowance has it at every request.
        slower = self._budget.learn(allowance.remaining, allowance.reset)
        if slower and not self._paced:
            self._paced = True
            log.info(
                "cloud.pace_learned",
                limit=allowance.limit,
                remaining=allowance.remaining,
                reset=allowance.reset,
                then="asking less often",
            )

    def _keep_silent(self, failure: CloudUnavailable, allowance: RateLimit) -> None:
        # Yii's limiter counts rejected calls, too, and each restarts its clock: everybody is silent, a bit longer.
        failure.retry_after += 1 + self._jitter()
        self._budget.silence(failure.retry_after)
        # Once until there was none for a while: an account that is polled too often meets its limit all the time.
        now = self._monotonic()
        say = log.debug if self._limited_at is not None and now - self._limited_at < PEACE else log.warning
        say(
            "cloud.rate_limited",
            silent_for=round(failure.retry_after, 1),
            limit=allowance.limit,
            remaining=allowance.remaining,
            then="lower cloud.requests_per_minute if it lasts",
        )
        self._limited_at = now + failure.retry_after


async def _body(response: aiohttp.ClientResponse, what: str) -> bytes:
    # Read as it comes: a few kilobytes of gzip may unpack to gigabytes, and Content-Length is the packed size.
    body = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        body += chunk
        if len(body) > LARGEST_BODY:
            response.close()
            raise UnexpectedReply(f"{what}: an answer of more than {LARGEST_BODY // 2**20} MiB")
    # Parsed, a value takes up to a hundred times its size: `[1,1,1,...]` of 16 MiB would be a gigabyte.
    if body.count(b",") > MOST_VALUES:
        raise UnexpectedReply(f"{what}: an answer of more than {MOST_VALUES} values")
    return bytes(body)


class _Answer(NamedTuple):
    """What became of a request: an answer, and a failure where it is none of use; without a status none came."""

    status: int | None
    reply: Reply
    failure: CloudError | None
    response: aiohttp.ClientResponse | None = None


class _Forbidden(NamedTuple):
    """How often in a row a path refused a fresh token, and until when it causes no renewal."""

    times: int = 0
    until: float = 0.0


def _not_permitted(path: str) -> CloudRefused:
    return CloudRefused(f"{path}: 401 with a fresh token: this account may not use this endpoint", status=401)
