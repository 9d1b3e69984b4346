"""What an answer says that is not what was asked for: BACE's errors, and what came in place of JSON. Pure."""

from typing import Any

import msgspec

from bace_bridge.domain.foreign_json import decoded_leniently
from bace_bridge.domain.redaction import Quote, quoted_as_it_is

LONGEST_MESSAGE = 120
"""Characters of an error's message that are quoted."""


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


def parse_problem(body: bytes, quote: Quote = quoted_as_it_is) -> str | None:
    """The message of an error in BACE's own JSON, shortened; None where the body is something else (HTML)."""
    try:
        problem: _Problem | list[Any] = decoded_leniently(body, _PROBLEM, strict=False)
    except msgspec.DecodeError:
        return None
    if isinstance(problem, list):
        parts = [f"{one.get('field')}: {one.get('message')}" for one in problem if isinstance(one, dict)]
        return quote("; ".join(parts), LONGEST_MESSAGE)
    if problem.name is None and problem.message is None:
        return None
    return " ".join(quote(problem.message or problem.name or "", LONGEST_MESSAGE).split())


def instead_of_json(body: bytes) -> str:
    """What came in place of JSON, for people."""
    if not body.strip():
        return " (the answer was empty)"
    html = body.lstrip()[:1] == b"<"
    return " (HTML came: the login page of a network, a proxy, or a wrong cloud.url)" if html else ""
