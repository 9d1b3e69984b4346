"""When a data session counts as removed: not by one answer, and never because a list lacks it."""

import msgspec

ANSWERS = 3
LONG_ENOUGH = 300.0
"""Seconds: during maintenance a cloud may deny what it has, for a while."""


class Absence(msgspec.Struct, frozen=True):
    """How often in a row the cloud denied to have a session (404 or 410), and since when."""

    since: float
    answers: int = 1


def with_answer(before: Absence | None, *, now: float) -> Absence:
    """One more; it begins anew where the clock was set back."""
    if before is None or now < before.since:
        return Absence(since=now)
    return Absence(before.since, before.answers + 1)


def is_removed(absence: Absence, *, now: float) -> bool:
    return absence.answers >= ANSWERS and now - absence.since >= LONG_ENOUGH
