"""When a delivery or a request is tried again."""

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec
from multidict import MultiMapping

from bace_bridge.formats import EARLIEST, LATEST

RETRY_SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds between the attempts at a delivery, by webhook or MQTT: the schedule of Standard Webhooks."""

LONGEST_RETRY_AFTER = 86400.0
"""Seconds: no receiver can put off an attempt for longer than a day."""

FAILURES_UNTIL_REPORTED = 2
"""Failures in a row of the cloud or of a sink; a single one is a hiccup, or an event's own fault."""

JITTER = 0.1
"""The largest part of a delay that is added to it, so that many deliveries do not come back at once."""


LONGEST_WAIT = max(*RETRY_SCHEDULE, LONGEST_RETRY_AFTER) * (1 + JITTER)
"""Seconds: no delivery waits for longer."""


class TryAgain(msgspec.Struct, frozen=True):
    """Try again at `at` (epoch seconds)."""

    at: float


class GiveUp(msgspec.Struct, frozen=True):
    """The delivery becomes a dead letter."""

    reason: str


def what_follows(decision: TryAgain | GiveUp, attempt: int, *, now: float) -> str:
    """For people, after the failed attempt of this number."""
    if isinstance(decision, GiveUp):
        return "a dead letter: not tried again"
    last = len(RETRY_SCHEDULE) + 1
    return f"tried again in {decision.at - now:.0f} s; a dead letter after {last - attempt} more failures"


def decide(
    attempt: int,
    *,
    now: float,
    jitter: float,
    retry_after: float = 0.0,
    schedule: tuple[float, ...] = RETRY_SCHEDULE,
) -> TryAgain | GiveUp:
    """What follows after the failed attempt number `attempt` (1 for the first).

    `jitter` is in [0, 1); it only ever makes the wait longer. None is made before `retry_after` seconds.
    """
    if attempt > len(schedule):
        return GiveUp(f"gave up after {attempt} attempts")
    # The later of both: a receiver may ask for more time, never for less than the schedule gives.
    wait = max(schedule[attempt - 1], min(retry_after, LONGEST_RETRY_AFTER))
    return TryAgain(now + wait * (1 + JITTER * jitter))


def backoff(failures: int, *, jitter: float, first: float = 1.0, longest: float = 300.0) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, with jitter in [0, 1) on top."""
    # The exponent is bounded, too: 2.0 ** 1024 is an OverflowError, after days of failures.
    wait = min(longest, first * 2.0 ** min(failures - 1, 30)) if failures > 0 else 0.0
    return wait * (1 + JITTER * jitter)


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
    waits = [0.0]
    for text in texts:
        numbers = [_number(part) for part in text.split(",")]
        if None not in numbers:
            waits += [number for number in numbers if number is not None]
        # Compared with the server's own Date: its clock may be minutes off ours, and only the difference is meant.
        elif (until := _moment(text)) is not None:
            waits.append(until - _server_time(headers, now))
    return max(waits)


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
    except (TypeError, ValueError, OverflowError, OSError, IndexError):  # odd dates raise any of them
        return None


def _server_time(headers: Mapping[str, str], now: float) -> float:
    theirs = http_date(headers.get("Date"))
    return now if theirs is None else theirs


def _number(text: str) -> float | None:
    # Not `float` alone: it takes 1e999, nan, -1 and digits of other scripts.
    text = text.strip()
    return float(text) if text.isascii() and text.replace(".", "", 1).isdecimal() else None
