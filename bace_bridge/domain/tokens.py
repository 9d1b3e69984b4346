import re

import msgspec

LONGEST_TOKEN = 16 * 1024
"""Characters: more than web servers take in a header as they are installed."""

_SENDABLE = re.compile(r"[\x21-\x7e]+")


class Token(msgspec.Struct, frozen=True):
    """An access token of the cloud; `expires_at` is in epoch seconds."""

    access: str
    refresh: str | None
    expires_at: float


def is_sendable(token: str) -> bool:
    """True for what a header can carry: visible ASCII characters, and not too many."""
    return len(token) <= LONGEST_TOKEN and _SENDABLE.fullmatch(token) is not None
