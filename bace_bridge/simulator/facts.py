"""What a simulated cloud is made of: devices, sessions, series, rate limits and tokens."""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bace_bridge.config.values import parse_duration

_ZERO = re.compile(r"0+(\.0+)?(ms|[smhd])?")

LONGEST = 18_250 * 86_400.0
"""Seconds: half a century, so that the simulated cloud's times are times."""


def seconds(written: object) -> float:
    """A duration as in the configuration, or none: `10s`, `1.5m`, `2h`, `500ms`, `0`, or a plain number of seconds.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(written, bool) and _ZERO.fullmatch(str(written).strip()):
        return 0.0
    try:
        amount = parse_duration(written)
    except ValueError:
        raise ValueError(f"{written!r} is not a duration (examples: 500ms, 10s, 5m, 2h, 1d)") from None
    if amount > LONGEST:
        raise ValueError("a duration is at most 18250d")
    return amount


DEFAULT_TOKEN_LIFETIME = 86400.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an account needs for a token; the defaults are what the simulator prints for its user."""

    client_id: str = "simulator"
    client_secret: str = "simulator-secret"  # noqa: S105 - no secret: the simulator prints it for everyone
    username: str = "demo@example.org"
    password: str = "demo"  # noqa: S105 - as above


@dataclass(frozen=True, slots=True)
class Series:
    """One stream of values: a group, a physical device and a datatype."""

    id_container_data_latest: str
    id_group: str
    source_device: str
    datatype: int


@dataclass(frozen=True, slots=True)
class Device:
    """A BACE Go: the group that it has in the cloud, and the physical devices that report through it."""

    id: int
    id_group: str
    label: str
    sources: tuple[str, ...]
    series: tuple[Series, ...]
    created_at: int


@dataclass(frozen=True, slots=True)
class Session:
    """A data session as the cloud stores it; times are epoch seconds."""

    id_data_session: str
    id_group: str
    label: str
    start: int
    created_at: int
    updated_at: int | None
    end: int | None = None
    id_person: str | None = None
    created_by: str | None = None
    updated_by: str | None = None
    archived_at: int | None = None
    datapoint_count: int = 0
    is_ingestion_finished: bool = False
    is_archived: bool = False


@dataclass(frozen=True, slots=True)
class RequestSeen:
    """One request as it was answered; `status` 0: the connection was cut instead."""

    at: float
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    grant_type: str = ""


@dataclass(frozen=True, slots=True)
class RateLimit:
    calls: int
    window: float


@dataclass(frozen=True, slots=True)
class Allowance:
    left: int
    at: int


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    remaining: int
    reset: int
    allowance: Allowance


def judge(limit: RateLimit, before: Allowance | None, now: float) -> Verdict:
    """Yii's rate limiter, with its whole seconds.

    A rejected call saves "nothing left, as of now", so that a client which keeps asking before one whole
    call has been earned again never recovers.
    """
    at = int(now)
    # Yii's allowance comes back by fractions of a call, but both it and the time are stored as whole numbers.
    before = before or Allowance(limit.calls, at)
    left = min(limit.calls, before.left + int((at - before.at) * limit.calls / limit.window))
    if left < 1:
        # The whole window, though one call is earned much sooner: this is what Yii's header says.
        return Verdict(allowed=False, remaining=0, reset=int(limit.window), allowance=Allowance(0, at))
    reset = int((limit.calls - left + 1) * limit.window / limit.calls)
    return Verdict(allowed=True, remaining=left - 1, reset=reset, allowance=Allowance(left - 1, at))


REFRESH_LIFETIME = 14 * 86400.0


class Refresh(Enum):
    """What a refresh does to the refresh token that it was asked with."""

    ROTATES = "a new one, the old one is refused"
    DESTROYS = "no new one, and the old one is refused"
    BOTH = "a new one, the old one stays valid too"
    SAME = "no new one, the old one stays valid until it expires"


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    status: int
    body: Mapping[str, Any]


@dataclass
class TokenDesk:
    """The OAuth2 token endpoint of one account, and the tokens that it has given out, with the time of their end.

    `expires_in`, where there is one, is said in place of the lifetime.
    """

    credentials: Credentials
    clock: Callable[[], float]
    refresh: Refresh = Refresh.ROTATES
    lifetime: float = DEFAULT_TOKEN_LIFETIME
    expires_in: tuple[Any, ...] = ()
    access: dict[str, float] = field(default_factory=dict)
    to_refresh: dict[str, float] = field(default_factory=dict)

    def answer(self, form: Mapping[str, str]) -> TokenAnswer:
        known = self.credentials
        if (form.get("client_id"), form.get("client_secret")) != (known.client_id, known.client_secret):
            return _refused(400, "invalid_client", "The client credentials are invalid")
        match form.get("grant_type"):
            case "password":
                if (form.get("username"), form.get("password")) == (known.username, known.password):
                    return self._given(new_refresh=True)
                # The one mistake that the real endpoint answers with 401: a client must not refresh because of it.
                return _refused(401, "invalid_grant", "Invalid username and password combination")
            case "refresh_token":
                return self._by_refresh(form.get("refresh_token", ""))
            case None | "":
                return _refused(400, "invalid_request", "The grant type was not specified in the request")
            case other:
                return _refused(400, "unsupported_grant_type", f'Grant type "{other}" not supported')

    def _by_refresh(self, token: str) -> TokenAnswer:
        if self.to_refresh.get(token, 0.0) <= self.clock():
            return _refused(400, "invalid_grant", "Invalid refresh token")
        if self.refresh in (Refresh.ROTATES, Refresh.DESTROYS):
            del self.to_refresh[token]
        return self._given(new_refresh=self.refresh in (Refresh.ROTATES, Refresh.BOTH))

    def accepts(self, authorization: str | None) -> bool:
        scheme, _, token = (authorization or "").partition(" ")
        return scheme == "Bearer" and self.access.get(token, 0.0) > self.clock()

    def _given(self, *, new_refresh: bool) -> TokenAnswer:
        now = self.clock()
        # A demo runs for weeks with short-lived tokens: those that have expired must not pile up.
        self.access = {token: until for token, until in self.access.items() if until > now}
        self.to_refresh = {token: until for token, until in self.to_refresh.items() if until > now}
        access = secrets.token_hex(20)
        self.access[access] = now + self.lifetime
        body: dict[str, Any] = {
            "access_token": access,
            "expires_in": self.expires_in[0] if self.expires_in else int(self.lifetime),
            "token_type": "Bearer",
            "scope": None,
        }
        if new_refresh:
            body["refresh_token"] = secrets.token_hex(20)
            self.to_refresh[body["refresh_token"]] = now + REFRESH_LIFETIME
        return TokenAnswer(200, body)


def _refused(status: int, error: str, description: str) -> TokenAnswer:
    return TokenAnswer(status, {"error": error, "error_description": description})
