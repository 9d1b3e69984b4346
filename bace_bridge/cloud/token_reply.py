"""What the token endpoint answers. Pure."""

import math
from typing import Any

import msgspec

from bace_bridge.cloud.problems import instead_of_json
from bace_bridge.domain.foreign_json import decoded_leniently
from bace_bridge.domain.tokens import is_sendable
from bace_bridge.errors import UnexpectedReply

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
_NO_TOKEN = "the token endpoint answered something that is not a token"  # noqa: S105  # a message


def parse_token(body: bytes) -> TokenReply:
    """The tokens of a reply; only an access token that cannot be used is an error, which quotes nothing of it."""
    try:
        row = decoded_leniently(body, _TokenRow, strict=False)
    except msgspec.DecodeError:
        raise UnexpectedReply(f"{_NO_TOKEN}{instead_of_json(body)}") from None
    access = str(row.access_token)
    if not is_sendable(access):
        raise UnexpectedReply(f"{_NO_TOKEN}: no header can carry it")
    return TokenReply(access, _life(row.expires_in), _refresh_token(row.refresh_token))


def _life(said: msgspec.Raw) -> float:
    try:
        seconds = decoded_leniently(said, float, strict=False)
    except msgspec.DecodeError:
        return DOCUMENTED_LIFE
    return seconds if 0 < seconds < math.inf else DOCUMENTED_LIFE


def _refresh_token(said: msgspec.Raw) -> str | None:
    try:
        token = str(decoded_leniently(said, _TEXT, strict=False))
    except msgspec.DecodeError:
        return None
    return token if is_sendable(token) else None
