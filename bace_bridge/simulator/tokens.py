import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bace_bridge.simulator.facts import DEFAULT_TOKEN_LIFETIME, Credentials

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


class TokenDesk:
    """The OAuth2 token endpoint of one account, and the tokens that it has given out."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        clock: Callable[[], float],
        refresh: Refresh = Refresh.ROTATES,
        lifetime: float = DEFAULT_TOKEN_LIFETIME,
        expires_in: tuple[Any, ...] = (),
    ) -> None:
        """`expires_in`, where there is one, is said in place of the lifetime."""
        self.credentials = credentials
        self.refresh = refresh
        self.lifetime = lifetime
        self._expires_in = expires_in
        self._clock = clock
        self._access: dict[str, float] = {}
        self._refresh: dict[str, float] = {}

    def answer(self, form: Mapping[str, str]) -> TokenAnswer:
        known = self.credentials
        if (form.get("client_id"), form.get("client_secret")) != (known.client_id, known.client_secret):
            return _refused(400, "invalid_client", "The client credentials are invalid")
        match form.get("grant_type"):
            case "password":
                return self._by_password(form)
            case "refresh_token":
                return self._by_refresh(form.get("refresh_token", ""))
            case None | "":
                return _refused(400, "invalid_request", "The grant type was not specified in the request")
            case other:
                return _refused(400, "unsupported_grant_type", f'Grant type "{other}" not supported')

    def accepts(self, authorization: str | None) -> bool:
        scheme, _, token = (authorization or "").partition(" ")
        return scheme == "Bearer" and self._access.get(token, 0.0) > self._clock()

    def revoke_access(self) -> None:
        """Every access token is refused from now on, as after a restart of the cloud."""
        self._access.clear()

    def revoke_refresh(self) -> None:
        self._refresh.clear()

    def _by_password(self, form: Mapping[str, str]) -> TokenAnswer:
        known = self.credentials
        if (form.get("username"), form.get("password")) != (known.username, known.password):
            return _refused(401, "invalid_grant", "Invalid username and password combination")
        return self._given(new_refresh=True)

    def _by_refresh(self, token: str) -> TokenAnswer:
        if self._refresh.get(token, 0.0) <= self._clock():
            return _refused(400, "invalid_grant", "Invalid refresh token")
        if self.refresh in (Refresh.ROTATES, Refresh.DESTROYS):
            del self._refresh[token]
        return self._given(new_refresh=self.refresh in (Refresh.ROTATES, Refresh.BOTH))

    def _given(self, *, new_refresh: bool) -> TokenAnswer:
        now = self._clock()
        self._access = {token: until for token, until in self._access.items() if until > now}
        self._refresh = {token: until for token, until in self._refresh.items() if until > now}
        access = secrets.token_hex(20)
        self._access[access] = now + self.lifetime
        body: dict[str, Any] = {
            "access_token": access,
            "expires_in": self._expires_in[0] if self._expires_in else int(self.lifetime),
            "token_type": "Bearer",
            "scope": None,
        }
        if new_refresh:
            body["refresh_token"] = secrets.token_hex(20)
            self._refresh[body["refresh_token"]] = now + REFRESH_LIFETIME
        return TokenAnswer(200, body)


def _refused(status: int, error: str, description: str) -> TokenAnswer:
    return TokenAnswer(status, {"error": error, "error_description": description})
