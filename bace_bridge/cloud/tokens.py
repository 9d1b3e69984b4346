"""Access tokens: what the token endpoint answers, and when to refresh or to log in."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol

import msgspec
import structlog

from bace_bridge.cloud.failures import instead_of_json
from bace_bridge.errors import CloudLoginFailed, CloudRefused, CloudUnavailable, UnexpectedReply
from bace_bridge.events.types import Token, is_sendable
from bace_bridge.formats import decoded_leniently, iso_utc
from bace_bridge.retry import backoff

log = structlog.get_logger()

DOCUMENTED_LIFE = 86400.0
"""Seconds that a token lives where the reply says nothing usable of it."""


class TokenReply(msgspec.Struct, frozen=True):
    """What the token endpoint answers. `expires_in` is in seconds."""

    access_token: str
    expires_in: float = DOCUMENTED_LIFE
    refresh_token: str | None = None


class _TokenRow(msgspec.Struct):
    access_token: str | int
    expires_in: msgspec.Raw = msgspec.Raw(b"null")
    refresh_token: msgspec.Raw = msgspec.Raw(b"null")


_TEXT: Any = str | int
_NO_TOKEN = "the token endpoint's answer is not a token"  # noqa: S105  # a message


def parse_token(body: bytes) -> TokenReply:
    """The tokens of a reply; only an access token that cannot be used is an error, which quotes nothing of it."""
    try:
        row = decoded_leniently(body, _TokenRow, strict=False)
    except msgspec.DecodeError:
        raise UnexpectedReply(f"{_NO_TOKEN}{instead_of_json(body)}") from None
    access = str(row.access_token)
    if not is_sendable(access):
        raise UnexpectedReply(f"{_NO_TOKEN}: it cannot be sent in an HTTP header")
    # An access token alone is enough for a day, so what is odd beside it costs no login.
    seconds = _or_none(row.expires_in, float)
    life = seconds if seconds is not None and 0 < seconds < math.inf else DOCUMENTED_LIFE
    refresh = _or_none(row.refresh_token, _TEXT)
    return TokenReply(access, life, str(refresh) if refresh is not None and is_sendable(str(refresh)) else None)


def _or_none(value: msgspec.Raw, kind: Any) -> Any:
    try:
        return decoded_leniently(value, kind, strict=False)
    except msgspec.DecodeError:
        return None


RENEW_BEFORE = 60.0
"""Seconds before its expiry from which a token is no longer used; of a short life a tenth."""

SHORTEST_LIFE, LONGEST_LIFE = 30.0, 366 * 86400.0
"""Seconds that a token is used for, whatever is said of it: a 401 renews it before."""

MOST_REFUSALS = 3
"""After so many answers in a row that are no token the refresh token is given up for a login."""

_TOO_MANY_REQUESTS = 429

FIRST_LOGIN_PAUSE = 300.0
LONGEST_LOGIN_PAUSE = 3600.0


class TokenStore(Protocol):
    async def load_token(self, account: str) -> Token | None: ...
    async def save_token(self, account: str, token: Token) -> None: ...


class Credentials(msgspec.Struct, frozen=True):
    """What the password grant needs."""

    client_id: str
    client_secret: str
    username: str
    password: str


RequestToken = Callable[[dict[str, str]], Awaitable[TokenReply]]
"""Posts a form to the token endpoint. Raises CloudRefused where that refuses it, else CloudUnavailable."""


class Tokens:
    """Hands out access tokens, from the store, by refreshing, or by logging in."""

    renewable = True

    def __init__(
        self,
        account: str,
        credentials: Credentials,
        store: TokenStore,
        request_token: RequestToken,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._credentials = credentials
        self._store = store
        self._request_token = request_token
        self._clock = clock
        self._monotonic = monotonic
        self._token: Token | None = None
        self._loaded = False
        self._unsaved = False
        self._renew_before = RENEW_BEFORE
        self._renewing = asyncio.Lock()
        # asyncio itself keeps no task alive.
        self._renewals: set[asyncio.Future[str]] = set()
        self._refused_logins = 0
        self._refusals = 0
        self._no_login_before = 0.0
        self._refusal, self._next_login_at = "", 0.0

    async def current(self) -> str:
        """A token that has not expired. Raises CloudLoginFailed where the credentials are refused."""
        token = self._token
        if token is not None and not self._unsaved and self._clock() < token.expires_at - self._renew_before:
            return token.access
        return await self.after_refusal(None)

    async def after_refusal(self, rejected: str | None) -> str:
        """Another token than `rejected`, which the cloud did not take."""
        # Whoever asks may leave, as the client of a download: the refresh token that the cloud has just given must not
        # go with it, since the old one is void.
        renewal = asyncio.ensure_future(self._renewed(rejected))
        self._renewals.add(renewal)
        renewal.add_done_callback(self._renewal_ended)
        return await asyncio.shield(renewal)

    def _renewal_ended(self, renewal: asyncio.Future[str]) -> None:
        self._renewals.discard(renewal)
        if not renewal.cancelled():
            renewal.exception()  # else asyncio logs a traceback where whoever asked has left

    async def _renewed(self, rejected: str | None) -> str:
        # One renewal at a time: the cloud may void a refresh token with its first use, so of two that run at once the
        # second would end in a login, of which BACE wants few. Who waited here takes what the first one has brought.
        async with self._renewing:
            if not self._loaded:
                stored = await self._store.load_token(self._account)
                # What no header can carry is no token, wherever it comes from: only its refresh token is of use.
                if stored is not None and not is_sendable(stored.access):
                    stored = msgspec.structs.replace(stored, expires_at=0.0)
                self._token, self._loaded = stored, True
            token = self._token
            if token is None or token.access == rejected or self._clock() >= token.expires_at - self._renew_before:
                token = await self._refreshed(token) or await self._logged_in()
                await self._keep(token)
            elif self._unsaved:
                await self._keep(token)
            return token.access

    async def _keep(self, token: Token) -> None:
        # Held before it is durable: where the store fails, a rotated refresh token must not be lost with it. And not
        # used before it is: a crash in between would leave a refresh token behind that the cloud has destroyed.
        self._token, self._unsaved = token, True
        await self._store.save_token(self._account, token)
        self._unsaved = False

    async def _refreshed(self, token: Token | None) -> Token | None:
        """None where only a login helps. A refresh token that was given up does not come back with a restart."""
        if token is None or token.refresh is None:
            return None
        given = self._credentials
        form = {
            "grant_type": "refresh_token",
            "client_id": given.client_id,
            "client_secret": given.client_secret,
            "refresh_token": token.refresh,
        }
        try:
            reply = await self._request_token(form)
        except (CloudRefused, CloudUnavailable) as refusal:
            # An outage of the endpoint is no reason for a login, unless it answers, again and again, with nonsense.
            if isinstance(refusal, CloudUnavailable):
                if refusal.status in {None, _TOO_MANY_REQUESTS}:
                    raise
                self._refusals += 1
                if self._refusals < MOST_REFUSALS:
                    raise
            log.info("cloud.refresh_refused", status=refusal.status, then="logging in")
            self._refusals = 0
            await self._keep(msgspec.structs.replace(token, refresh=None))
            return None
        self._refusals = 0
        log.debug("cloud.token_refreshed")
        return self._kept(reply, old_refresh=token.refresh)

    async def _logged_in(self) -> Token:
        now = self._monotonic()
        if now < self._no_login_before:
            raise CloudLoginFailed(f"{self._refusal}; the next attempt is at {iso_utc(self._next_login_at)}")
        given = self._credentials
        form = {
            "grant_type": "password",
            "client_id": given.client_id,
            "client_secret": given.client_secret,
            "username": given.username,
            "password": given.password,
        }
        try:
            reply = await self._request_token(form)
        except CloudRefused as refusal:
            # A wrong password does not become right by trying, and may lock the account: minutes, then an hour.
            self._refused_logins += 1
            pause = backoff(self._refused_logins, jitter=0.0, first=FIRST_LOGIN_PAUSE, longest=LONGEST_LOGIN_PAUSE)
            self._no_login_before = now + pause
            what = "username or password" if refusal.status == 401 else "client_id or client_secret"  # noqa: PLR2004  # HTTP
            self._refusal = f"the cloud refused the login ({refusal.status}): check cloud.{what}"
            self._next_login_at = round(self._clock() + pause)
            raise CloudLoginFailed(self._refusal) from None
        self._refused_logins = 0
        log.info("cloud.logged_in")
        return self._kept(reply, old_refresh=None)

    def _kept(self, reply: TokenReply, *, old_refresh: str | None) -> Token:
        # bshaffer's OAuth2 server rotates, destroys or keeps a refresh token, as configured. Where the reply has none
        # the old one may still be good: it is kept, and a refused refresh ends in a login.
        life = min(max(reply.expires_in, SHORTEST_LIFE), LONGEST_LIFE)
        self._renew_before = min(RENEW_BEFORE, life / 10)
        return Token(reply.access_token, reply.refresh_token or old_refresh, self._clock() + life)


class FixedToken(msgspec.Struct, frozen=True):
    """An access token from the configuration: there is nothing to renew it with."""

    access: str
    renewable: ClassVar[bool] = False

    async def current(self) -> str:
        if not is_sendable(self.access):
            raise CloudLoginFailed("cloud.access_token cannot be sent in an HTTP header: configure a valid one")
        return self.access

    async def after_refusal(self, rejected: str) -> str:  # noqa: ARG002  # the same duty as Tokens
        raise CloudLoginFailed("the cloud refused cloud.access_token: configure a valid one")
