"""Lanes: the events of one data session on their way to one sink, and what becomes of them. Facts without decisions."""

import msgspec

from bace_bridge.domain.events import Event, LoggedEvent

BRIDGE_LANE = ":bridge"
"""No id of a data session has a colon."""

LETTER_LANE = "letter:"
"""Before its place: the lane of a dead letter that is tried again. What followed it was delivered long ago."""

UNDER_WAY = "under way"
"""The reason of a lane that did not fail: others ran ahead of it, so its place is kept beside the cursor."""


class Parked(msgspec.Struct, frozen=True):
    """A data session whose deliveries wait: its next event's place, the attempts at it, when to go on.

    Up to `replay_upto` its deliveries are replays: somebody asked for them again.
    """

    key: str
    seq: int
    attempts: int
    at: float
    reason: str = ""
    replay_upto: int = 0


class DeadLetter(msgspec.Struct, frozen=True):
    """A delivery that was given up."""

    seq: int
    key: str
    attempts: int
    reason: str


class FailedAttempt(msgspec.Struct, frozen=True):
    """One attempt that failed. `at` is in epoch seconds; `answer` the beginning of what a webhook answered."""

    seq: int
    number: int
    at: float
    seconds: float
    reason: str
    status: int | None = None
    answer: str = ""


class Progress(msgspec.Struct, frozen=True):
    """What is to be made durable, in one update: the cursor and what was parked, released or given up.

    `failed` are the attempts that failed since the last update, `told` the events that say so, `taken` the lanes that
    somebody asked for and that are seen to now.
    """

    cursor: int
    parked: tuple[Parked, ...] = ()
    released: tuple[str, ...] = ()
    dead: tuple[DeadLetter, ...] = ()
    failed: tuple[FailedAttempt, ...] = ()
    told: tuple[Event, ...] = ()
    taken: tuple[Parked, ...] = ()


class Attempt(msgspec.Struct, frozen=True):
    """One delivery to be made now; `number` is 1 for the first attempt, `replay` true where it was asked for again."""

    logged: LoggedEvent
    number: int
    replay: bool = False


def lane_key(logged: LoggedEvent) -> str:
    """Order holds per data session; the bridge's own events are a lane of their own."""
    return letter_lane(logged.seq) if logged.alone else session_lane(logged.event)


def session_lane(event: Event) -> str:
    return event.session_id or BRIDGE_LANE


def letter_lane(seq: int) -> str:
    return f"{LETTER_LANE}{seq}"


def letter_place(key: str) -> int | None:
    """The place of the dead letter whose lane this is; None for other lanes."""
    return int(key.removeprefix(LETTER_LANE)) if key.startswith(LETTER_LANE) else None
