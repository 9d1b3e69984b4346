"""The store's troubles: which side of it fails and why, so that each is reported once and not at each attempt."""

from typing import Literal

import msgspec

FORGOTTEN_AFTER = 60.0
"""Seconds after which a failure counts no more, once anything was written: what failed need not come again."""

Side = Literal["reading", "known", "deliveries", "facts", "upkeep"]
"""Who uses the store. A small write may succeed where a large one finds no room, so each counts by itself."""


class Failure(msgspec.Struct, frozen=True):
    reason: str
    at: float


class StoreTrouble(msgspec.Struct, frozen=True):
    """What fails now, by side, the first one first."""

    failing: dict[Side, Failure] = {}

    @property
    def reason(self) -> str | None:
        return next((failure.reason for failure in self.failing.values()), None)


def after_failure(trouble: StoreTrouble, side: Side, reason: str, *, now: float) -> StoreTrouble:
    return StoreTrouble({**trouble.failing, side: Failure(reason, now)})


def after_success(trouble: StoreTrouble, side: Side, *, now: float) -> StoreTrouble:
    return StoreTrouble(
        {
            other: failure
            for other, failure in trouble.failing.items()
            if other != side and (side == "reading" or now - failure.at < FORGOTTEN_AFTER)
        }
    )
