"""When a delivery or a request is tried again."""

import msgspec

WEBHOOK_SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Seconds between the attempts of a webhook: the schedule of Standard Webhooks."""

LONGEST_RETRY_AFTER = 86400.0
"""Seconds: no receiver can put off an attempt for longer than a day."""

JITTER = 0.1
"""The largest part of a delay that is added to it, so that many deliveries do not come back at once."""


LONGEST_WAIT = max(*WEBHOOK_SCHEDULE, LONGEST_RETRY_AFTER) * (1 + JITTER)
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
    last = len(WEBHOOK_SCHEDULE) + 1
    return f"tried again in {decision.at - now:.0f} s; a dead letter after {last - attempt} more failures"


def decide(
    attempt: int,
    *,
    now: float,
    jitter: float,
    retry_after: float = 0.0,
    schedule: tuple[float, ...] = WEBHOOK_SCHEDULE,
) -> TryAgain | GiveUp:
    """What follows after the failed attempt number `attempt` (1 for the first).

    `jitter` is in [0, 1); it only ever makes the wait longer. None is made before `retry_after` seconds.
    """
    if attempt > len(schedule):
        return GiveUp(f"gave up after {attempt} attempts")
    wait = max(schedule[attempt - 1], min(retry_after, LONGEST_RETRY_AFTER))
    return TryAgain(now + wait * (1 + JITTER * jitter))


def backoff(failures: int, *, jitter: float, first: float = 1.0, longest: float = 300.0) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, with jitter in [0, 1) on top."""
    wait = min(longest, first * 2.0 ** min(failures - 1, 30)) if failures > 0 else 0.0
    return wait * (1 + JITTER * jitter)
