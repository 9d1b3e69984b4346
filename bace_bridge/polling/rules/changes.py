"""What a poll or a fetch changes: everything in it becomes durable together, or not at all."""

import msgspec

from bace_bridge.domain.events import Event
from bace_bridge.polling.rules.datapoints import Emitted
from bace_bridge.polling.rules.outages import CloudOutage
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import WindowState


class WindowRead(msgspec.Struct, frozen=True):
    """A window of a data session after a reading of it."""

    session_id: str
    state: WindowState
    emitted: Emitted | None


class LatestSeen(msgspec.Struct, frozen=True):
    """The newest datapoint of a series of a device; `payload` is the contract's datapoint object as JSON.

    `session_id` is the data session that it is of.
    """

    device_id: str
    source_device: str
    datatype: int
    timestamp: float
    payload: bytes
    session_id: str | None = None


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions, windows and newest points after a poll or a fetch, and the events that it led to, in their order.

    `left` are devices whose data session belongs to another one now. `outage` is the cloud's, where it is reported.
    """

    known: tuple[KnownSession, ...] = ()
    windows: tuple[WindowRead, ...] = ()
    latest: tuple[LatestSeen, ...] = ()
    events: tuple[Event, ...] = ()
    watch: "PollState | None" = None
    left: tuple[str, ...] = ()
    outage: CloudOutage | None = None

    @property
    def devices(self) -> frozenset[str]:
        """The devices whose state is another one now."""
        sessions = {one.session.group_id for one in self.known}
        return frozenset(sessions | {one.device_id for one in self.latest} | set(self.left))

    @property
    def of_sessions(self) -> bool:
        """False where it is only about the bridge itself."""
        return bool(self.known or self.windows or self.latest or any(one.session_id for one in self.events))

    def __bool__(self) -> bool:
        return bool(self.known or self.windows or self.latest or self.events or self.watch)


class PollState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the polling of the session list stands. Times of rows are the cloud's, those of attempts ours.

    `start_from` is the time (epoch seconds) from which sessions are reported, and `joined` that of devices that were
    added to `groups`, the selection of the last poll, later. `watermark` is the newest `updated_at` of a list that was
    read to its end. `active_found` says whether the sessions that were active at the first start have been found,
    `active_tried_at` when that was tried last. `unstamped` says that there are rows without an `updated_at`, which no
    list of updates shows.
    `backfill_page` is the next page of the backfill, `backfill_at` when that goes on, and `catching_up`
    says that it does not wait: at a first start, or for devices that were added.
    `rechecked_at` is when known sessions were last asked for by id, `recheck_after` and `recheck_finished_after` the
    ids up to which they have been.
    """

    start_from: float
    watermark: float
    joined: dict[str, float] = {}
    groups: tuple[str, ...] | None = None
    active_found: bool = False
    active_tried_at: float = 0.0
    unstamped: bool = False
    backfill_page: int = 1
    backfill_at: float = 0.0
    catching_up: bool = False
    rechecked_at: float = 0.0
    recheck_after: str = ""
    recheck_finished_after: str = ""
