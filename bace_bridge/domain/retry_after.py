"""What an answer's headers say of when to ask again: `Retry-After`, and those of a rate limit.

`now` is the server's time as far as it is known. An answer's own `Date` is better where it has one: a date is only as
good as the clock that it was made with.
"""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec
from multidict import MultiMapping

from bace_bridge.domain.timestamps import EARLIEST, LATEST

SMALLEST_MOMENT = 1e9
"""A rate limit's reset from here on is a moment in epoch seconds, as some servers have it: no wait takes 30 years."""


LONGEST_WINDOW = 86400.0
"""Seconds: no limiter takes longer until it is full again, so what says so (in milliseconds, perhaps) says nothing."""


class RateLimit(msgspec.Struct, frozen=True):
    """How many requests a window takes and has left, and the seconds until it is full again; None where not said."""

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None


def retry_after(headers: Mapping[str, str], *, now: float) -> float:
    """Seconds that `Retry-After` asks for, given as a number or as a date; 0 where it is neither.

    Of several headers, or several numbers in one, the longest wait counts. It may be infinite: the caller has a bound.
    """
    texts = headers.getall("Retry-After", []) if isinstance(headers, MultiMapping) else [headers.get("Retry-After", "")]
    return max((_wait(text, _server_time(headers, now)) for text in texts), default=0.0)


def _wait(text: str, server_time: float) -> float:
    numbers = [_number(part) for part in text.split(",")]
    if None not in numbers:
        return max(number for number in numbers if number is not None)
    until = _moment(text)
    return 0.0 if until is None else max(0.0, until - server_time)


def rate_limit(headers: Mapping[str, str], *, now: float) -> RateLimit:
    reset = _number(headers.get("X-Rate-Limit-Reset", ""))
    if reset is not None and reset >= SMALLEST_MOMENT:
        reset = max(0.0, reset - _server_time(headers, now))
    if reset is not None and reset > LONGEST_WINDOW:
        reset = None
    return RateLimit(
        limit=_number(headers.get("X-Rate-Limit-Limit", "")),
        remaining=_number(headers.get("X-Rate-Limit-Remaining", "")),
        reset=reset,
    )


def http_date(text: str | None) -> float | None:
    """Epoch seconds, in UTC where no zone is given; None where it is no date, or one that no calendar holds."""
    seconds = _moment(text) if text else None
    return seconds if seconds is not None and EARLIEST < seconds < LATEST else None


def _moment(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, OSError, IndexError):
        return None


def _server_time(headers: Mapping[str, str], now: float) -> float:
    theirs = http_date(headers.get("Date"))
    return now if theirs is None else theirs


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if text.isascii() and text.replace(".", "", 1).isdecimal() else None
