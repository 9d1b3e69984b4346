"""How a sink has taken what it was sent, and when that is worth a word: once an outage, not once an attempt."""

from typing import Literal

import msgspec

FAILURES_TO_TELL = 2
"""Failed attempts in a row; a single one is an event's own trouble, or a hiccup."""


class Reception(msgspec.Struct, frozen=True):
    """`problem` is why the last attempt failed, without secrets; None where it did not. Times are epoch seconds."""

    last_success_at: float | None = None
    failures: int = 0
    failing_since: float | None = None
    problem: str | None = None

    @property
    def failing(self) -> bool:
        return self.failures >= FAILURES_TO_TELL


def after_attempt(
    before: Reception, problem: str | None, *, now: float
) -> tuple[Reception, Literal["failing", "recovered"] | None]:
    if problem is None:
        return Reception(last_success_at=now), "recovered" if before.failing else None
    since = now if before.failing_since is None else before.failing_since
    after = Reception(before.last_success_at, before.failures + 1, since, problem)
    return after, "failing" if after.failing and not before.failing else None
