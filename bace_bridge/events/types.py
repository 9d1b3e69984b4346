"""Event types, their ids and rows, which sink wants which, the lanes on which they go, and what is kept beside them."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

import msgspec

SESSION_STARTED = "session.started"
SESSION_DATAPOINTS = "session.datapoints"
SESSION_UPDATED = "session.updated"
SESSION_ENDED = "session.ended"
SESSION_REOPENED = "session.reopened"
SESSION_CSV_READY = "session.csv_ready"
SESSION_REMOVED = "session.removed"
CLOUD_UNREACHABLE = "cloud.unreachable"
CLOUD_RECOVERED = "cloud.recovered"
CLOUD_AUTH_FAILED = "cloud.auth_failed"
SINK_DISABLED = "sink.disabled"
SINK_DEAD_LETTER = "sink.dead_letter"

EVENT_TYPES = (
    SESSION_STARTED,
    SESSION_DATAPOINTS,
    SESSION_UPDATED,
    SESSION_ENDED,
    SESSION_REOPENED,
    SESSION_CSV_READY,
    SESSION_REMOVED,
    CLOUD_UNREACHABLE,
    CLOUD_RECOVERED,
    CLOUD_AUTH_FAILED,
    SINK_DISABLED,
    SINK_DEAD_LETTER,
)


SPECVERSION = "1.0"
TYPE_PREFIX = "bace."
"""Of CloudEvents, whose types are global names; ours are unique within the bridge."""

SEQUENCE_DIGITS = 20
"""The attribute `sequence` is the seq with leading zeros: CloudEvents compares it as text."""

DATA_CONTENT_TYPE = "application/json"


class Event(msgspec.Struct, frozen=True):
    """One fact, as it stands in the event log: once, however many sinks there are.

    `time` is the cloud's time of the fact and `observed_at` that of the poll, both in epoch seconds.
    `data` is a JSON object, encoded when the fact was found; sinks wrap it, none encodes it again.
    """

    id: str
    type: str
    session_id: str | None
    device_id: str | None
    time: float
    observed_at: float
    data: bytes


class LoggedEvent(msgspec.Struct, frozen=True):
    """An event and its seq in the event log; `alone` where it is delivered apart from its data session's others."""

    seq: int
    event: Event
    alone: bool = False


def event_id(event_type: str, *facts: object) -> str:
    """The same facts give the same id, on every machine and after every crash. It holds no dots."""
    # By JSON and not by joining texts: ("a", "bc") and ("ab", "c") must not be the same facts.
    digest = blake2b(msgspec.json.encode([event_type, *facts]), digest_size=16)
    # No dots, because Standard Webhooks sign "id.timestamp.body".
    return f"evt_{digest.hexdigest()}"


def bridge_event(event_type: str, *, at: float, facts: tuple[object, ...], data: Mapping[str, Any]) -> Event:
    """An event about the bridge itself; it belongs to no data session."""
    return Event(
        id=event_id(event_type, *facts),
        type=event_type,
        session_id=None,
        device_id=None,
        time=at,
        observed_at=at,
        data=msgspec.json.encode(data),
    )


BRIDGE_LANE = ":bridge"
"""No id of a data session has a colon."""

LETTER_LANE = "letter:"
"""Before its seq: the lane of a dead letter that is tried again. What followed it was delivered long ago."""


class Lane(msgspec.Struct, frozen=True):
    """A lane that still has something to deliver: the seq of its next event, the attempts at it, when to go on.

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

    `read_on` holds lanes with the seq from which on.
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
    """A delivery that was given up; `report` makes the event about it for the other sinks, of how many there are."""

    seq: int
    key: str
    attempts: int
    reason: str
    report: Callable[[int], Event] | None = None


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
    # One lane for all of the bridge's own: `cloud.recovered` must not overtake `cloud.unreachable`.
    return event.session_id or BRIDGE_LANE


def letter_lane(seq: int) -> str:
    return f"{LETTER_LANE}{seq}"


def letter_seq(key: str) -> int | None:
    """The seq of the dead letter whose lane this is; None for other lanes."""
    return int(key.removeprefix(LETTER_LANE)) if key.startswith(LETTER_LANE) else None


class Filter(msgspec.Struct, frozen=True):
    """What the sink of this name wants: globs on the event type and, where not empty, only these devices (id_group)."""

    events: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ()
    sink: str | None = None


class _AboutASink(msgspec.Struct):
    sink: str


def wanted(event: Event, filter_: Filter) -> bool:
    """Events about the bridge itself belong to no device, so a filter on devices lets them through.

    What is wrong with a sink is reported to the others: itself would be the last to get it.
    """
    if filter_.groups and event.device_id is not None and event.device_id not in filter_.groups:
        return False
    if not matches(event.type, filter_.events):
        return False
    # Decoded last: this is asked for each event and sink, and few events are about a sink.
    return not is_about_a_sink(event) or msgspec.json.decode(event.data, type=_AboutASink).sink != filter_.sink


def is_about_a_sink(event: Event) -> bool:
    return event.type.startswith("sink.")


def matches(event_type: str, globs: Sequence[str]) -> bool:
    # `fnmatchcase`: `fnmatch` would fold case on systems whose file names do.
    return any(fnmatchcase(event_type, glob) for glob in globs)


class KnownDevice(msgspec.Struct, frozen=True):
    """A device of which data sessions are known, or which the cloud lists.

    `last_seen_at` is the newest time that the cloud has of it: of a datapoint, or of a session's start or end. The last
    session is the active one, where there is one.
    """

    id: str
    label: str | None = None
    active_session_id: str | None = None
    last_session_id: str | None = None
    last_seen_at: float | None = None


class LatestPoint(msgspec.Struct, frozen=True):
    """The newest datapoint of a series; `payload` is the contract's datapoint object as JSON."""

    source_device: str
    datatype: int
    payload: bytes


class Series(msgspec.Struct, frozen=True):
    """A series of a device; name and unit as they were when its newest datapoint came."""

    source_device: str
    datatype: int
    name: str | None = None
    unit: str | None = None


class DeviceState(msgspec.Struct, frozen=True):
    """How a device stands now.

    `session` is the contract's `session` object, with `device`, and `csv_url` once there is one, of the newest active
    data session, else of the newest one, as JSON; None where there is none. `available` is false while the view is not
    current. The last session is the one that is shown. `series` are all that were ever seen, in data sessions that are
    still there: more than `latest`, which belongs to the data sessions that are shown. `label` is the group's.
    """

    device_id: str
    available: bool
    session: bytes | None
    latest: tuple[LatestPoint, ...] = ()
    active_session_id: str | None = None
    last_session_id: str | None = None
    label: str | None = None
    series: tuple[Series, ...] = ()


class Announced(msgspec.Struct, frozen=True):
    """What Home Assistant may know by a discovery topic: the keys of its components, each with its platform.

    Those that are `removed` are kept until it has started anew: it may have been away when they were removed.
    """

    components: dict[str, str] = {}
    removed: dict[str, str] = {}

    @property
    def is_cleared(self) -> bool:
        """The topic is not retained any more; only what was removed is still to be known."""
        return bool(self.removed) and not self.components


LONGEST_TOKEN = 16 * 1024
"""Characters: more than web servers take in a header as they are installed."""

_SENDABLE = re.compile(r"[\x21-\x7e]+")


class Token(msgspec.Struct, frozen=True):
    """An access token of the cloud; `expires_at` is in epoch seconds."""

    access: str
    refresh: str | None
    expires_at: float


def is_sendable(token: str) -> bool:
    """True for what a header can carry: visible ASCII characters, and not too many."""
    # A token that no header can carry would make each request fail in the client, which looks like an outage.
    return len(token) <= LONGEST_TOKEN and _SENDABLE.fullmatch(token) is not None
