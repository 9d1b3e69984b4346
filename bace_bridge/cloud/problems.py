"""What an answer says that is not what was asked for: BACE's errors, and what came in place of JSON. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from bace_bridge.domain.foreign_json import decoded_leniently

LONGEST_MESSAGE = 120
"""Characters of an error's message that are quoted."""

SHORTEST_SECRET = 4
"""Characters: a shorter text occurs by chance."""


class _Problem(msgspec.Struct):
    name: str | None = None
    message: str | None = None


_PROBLEM: Any = _Problem | list[Any]


def is_json(body: bytes) -> bool:
    try:
        decoded_leniently(body, msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def parse_problem(body: bytes, *, private: Sequence[str] = ()) -> str | None:
    """The message of an error in BACE's own JSON, shortened; None where the body is something else (HTML).

    What it repeats of the `private` texts is masked.
    """
    try:
        problem: _Problem | list[Any] = decoded_leniently(body, _PROBLEM, strict=False)
    except msgspec.DecodeError:
        return None
    if isinstance(problem, list):
        parts = [f"{one.get('field')}: {one.get('message')}" for one in problem if isinstance(one, dict)]
        return _told("; ".join(parts), private)
    if problem.name is None and problem.message is None:
        return None
    return _told(" ".join((problem.message or problem.name or "").split()), private)


def _told(message: str, private: Sequence[str]) -> str:
    for secret in sorted(private, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            message = message.replace(secret, "***")
    return message[:LONGEST_MESSAGE]


def instead_of_json(body: bytes) -> str:
    """What came in place of JSON, for people."""
    if not body.strip():
        return " (the answer was empty)"
    html = body.lstrip()[:1] == b"<"
    return " (HTML came: the login page of a network, a proxy, or a wrong cloud.url)" if html else ""
