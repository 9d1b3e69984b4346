"""What a poll or a fetch changes: everything in it becomes durable together, or not at all."""

from collections.abc import Iterable

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

    @classmethod
    def of_points(cls, parts: Iterable["Changes"], known: Iterable[KnownSession] = ()) -> "Changes":
        """What was found of datapoints in several readings, and what is known of their sessions after it."""
        every = [*parts]
        return cls(
            known=tuple(known),
            windows=tuple(read for one in every for read in one.windows),
            latest=tuple(point for one in every for point in one.latest),
            events=tuple(event for one in every for event in one.events),
        )


class PollState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the polling of the session list stands. Times of rows are the cloud's, those of attempts ours (epoch s).

    `start_from` is the time from which sessions are reported, and `joined` that of devices that were added to `groups`,
    the selection of the last poll, later. `active_found` says whether the sessions that were active then are found.

    `watermark` is the newest `updated_at` of a list that was read to its end, `news_at` when one showed anything new,
    and `settled` that they have shown nothing for long since. `ignored_at` is when the server was seen to ignore or
    refuse what delta rests on. `unstamped` says that there are rows without an `updated_at`, which no list of updates
    shows. `head_start` is the newest `start` that the head of the list showed, and `newest_first` that it is sorted.

    `groups_checked_at` is when it was checked last whether the filter for the watched devices is honoured, and
    `groups_honoured` the result.

    `backfill_page` is the next page of the backfill, `backfill_at` when that goes on, `catching_up` says that it does
    not wait: at a first start, or for devices that were added. `backfill_last` is the last id of the page before, and
    `timed_out` the page that last timed out.

    `rechecked_at` is when known sessions were last asked for by id; `recheck_after`, `recheck_finished_after` and
    `active_after` are the ids up to which they have been. Since `alone_since` each is asked for in its own request.
    """

    start_from: float
    watermark: float
    joined: dict[str, float] = {}
    groups: tuple[str, ...] | None = None
    active_found: bool = False
    news_at: float = 0.0
    settled: bool = False
    ignored_at: float | None = None
    unstamped: bool = False
    head_start: float = 0.0
    newest_first: bool = True
    groups_checked_at: float | None = None
    groups_honoured: bool = False
    backfill_page: int = 1
    backfill_at: float = 0.0
    backfill_last: str = ""
    catching_up: bool = False
    timed_out: int | None = None
    rechecked_at: float = 0.0
    recheck_after: str = ""
    recheck_finished_after: str = ""
    active_after: str = ""
    alone_since: float | None = None

    @property
    def without_what_moves(self) -> "PollState":
        """All but what moves at every poll: that it is a little behind in the store costs a few rows read again."""
        return msgspec.structs.replace(self, watermark=0.0, news_at=0.0, settled=False, head_start=0.0, active_after="")
