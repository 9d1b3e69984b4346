"""From when on a first start reports data sessions."""

from collections.abc import Sequence
from typing import Literal

from bace_bridge.polling.rules.sessions import DataSession

BEFORE_EVERYTHING = -1.0
PLAUSIBLE_AHEAD = 86400.0
"""Seconds that the cloud's newest record may be ahead of our clock before it is taken for a wrong one."""

StartKind = Literal["now", "all", "since", "ago"]


def first_start_from(kind: StartKind, seconds: float, rows: Sequence[DataSession], *, now: float) -> float:
    """Epoch seconds in the cloud's time. For `now` that is its newest update, `rows` being the latest ones.

    `seconds` is a time for `since` and a duration for `ago`. Taking `now` from the cloud's own rows makes a difference
    between its clock and ours harmless.
    """
    if kind == "all" or (kind == "now" and not rows):
        return BEFORE_EVERYTHING
    if kind == "since":
        return seconds
    if kind == "ago":
        return now - seconds
    stamps = [stamp for row in rows for stamp in (row.updated_at, row.created_at) if stamp is not None]
    newest = max(stamps, default=now)
    return newest if newest <= now + PLAUSIBLE_AHEAD else now
