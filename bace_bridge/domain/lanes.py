"""Lanes: the events of one data session on their way to one sink, and what becomes of them. Facts without decisions."""

from collections.abc import Callable

import msgspec

from bace_bridge.domain.events import Event, LoggedEvent

BRIDGE_LANE = ":bridge"
"""No id of a data session has a colon."""

LETTER_LANE = "letter:"
"""Before its place: the lane of a dead letter that is tried again. What followed it was delivered long ago."""


class Lane(msgspec.Struct, frozen=True):
    """A lane that still has something to deliver: the place of its next event, the attempts at it, when to go on.

    Up to `replay_through` its deliveries are replays: somebody asked for them again. A lane that is `behind` (it failed
    or was asked for) takes turns with the others. `version` is another one whenever anybody else has moved the lane.
    """

    key: str
    seq: int
    attempts: int = 0
    due_at: float = 0.0
    reason: str = ""
    replay_through: int = 0
    behind: bool = False
    version: int = 0


class Piece(msgspec.Struct, frozen=True):
    """The next events of a lane that its sink wants. The log was read through `through`, to its end if `complete`."""

    lane: Lane
    events: tuple[LoggedEvent, ...]
    through: int
    complete: bool


class Share(msgspec.Struct, frozen=True):
    """How much more may be taken into memory."""

    lanes: int
    events: int
    size: int


class Claim(msgspec.Struct, frozen=True):
    """What a sink's dispatcher asks for: due lanes that it does not hold, and more of those that it has begun.

    `read_on` holds lanes with the place from which on.
    """

    held: frozenset[str]
    read_on: tuple[tuple[Lane, int], ...]
    fresh: Share
    behind: Share


class Claimed(msgspec.Struct, frozen=True):
    """`more_fresh` and `more_behind` where other lanes are due; `next_due` is the time of the first one that is not."""

    begun: tuple[Piece, ...]
    read_on: tuple[Piece, ...]
    more_fresh: bool
    more_behind: bool
    next_due: float | None


class DeadLetter(msgspec.Struct, frozen=True):
    """A delivery that was given up; `told` makes the event that says so to the other sinks, of how many there are."""

    seq: int
    key: str
    attempts: int
    reason: str
    told: Callable[[int], Event] | None = None


class LaneRecord(msgspec.Struct, frozen=True):
    """What became of a lane: where it is now, and what was given up on the way.

    The row vanishes when the lane is `drained` and the log has no more events of it.
    """

    lane: Lane
    drained: bool = False
    dead: tuple[DeadLetter, ...] = ()


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
    """What is to be made durable, in one transaction; `failed` are the attempts that failed since the last time."""

    lanes: tuple[LaneRecord, ...] = ()
    failed: tuple[FailedAttempt, ...] = ()


class Recorded(msgspec.Struct, frozen=True):
    """Lanes that somebody else has moved, so that their rows count; `more` where drained lanes have events again."""

    moved: frozenset[str] = frozenset()
    more: bool = False


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
