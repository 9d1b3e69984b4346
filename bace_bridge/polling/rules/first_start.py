"""From when on a first start reports data sessions."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from bace_bridge.polling.rules.sessions import DataSession

BEFORE_EVERYTHING = -1.0
PLAUSIBLE_AHEAD = 600.0
"""Seconds that the cloud's newest record may be ahead of its answers' `Date` before it is taken for a wrong one."""

StartKind = Literal["now", "all", "since", "ago"]


class FirstStart(msgspec.Struct, frozen=True):
    """`watch.start_from`. `seconds` is a time (epoch) for `since` and a duration for `ago`."""

    kind: StartKind
    seconds: float = 0.0

    def start_from(self, newest: float | None, *, now: float, cloud_now: float, empty: bool = False) -> float:
        """Epoch seconds in the cloud's time.

        For `now` that is `newest`, the newest stamp of all its rows: then a difference between its clock and ours is
        harmless. Where there is none, or not every row could be read, it is the time of the cloud's answers; only an
        `empty` cloud has no history.
        """
        if self.kind == "all" or (self.kind == "now" and empty):
            return BEFORE_EVERYTHING
        if self.kind == "since":
            return self.seconds
        if self.kind == "ago":
            return now - self.seconds
        return newest if newest is not None and newest <= cloud_now + PLAUSIBLE_AHEAD else cloud_now


def newest_stamp(rows: Sequence[DataSession]) -> float | None:
    """The time of the latest change that the rows show; their ends count where `updated_at` is null."""
    stamps = [stamp for row in rows for stamp in (row.updated_at, row.created_at, row.end) if stamp is not None]
    return max(stamps, default=None)
