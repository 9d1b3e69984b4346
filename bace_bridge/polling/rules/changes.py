"""What polling is handed (pages, rows), what it makes of them (`Changes`), and what it remembers.

With that, when an outage of the cloud is reported: once; and the Protocols of the cloud and of the store, which the
composition root brings.
"""

from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

from bace_bridge.events.types import CLOUD_AUTH_FAILED, CLOUD_RECOVERED, CLOUD_UNREACHABLE, Event, bridge_event
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.datapoints import Datapoint, Emitted, Series
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.summaries import Summary
from bace_bridge.polling.rules.windows import Window, WindowState
from bace_bridge.retry import FAILURES_UNTIL_REPORTED

Kind = Literal["unreachable", "auth_failed"]

Stage = Literal["unfinished", "active", "finished"]
"""Of a known session; an active one is unfinished, too."""


class CloudOutage(msgspec.Struct, frozen=True, rename={"reported": "told"}):  # its name in stores of earlier versions
    """How the cloud has behaved: `since` is the time of the first failure in a row, `reported` the last event of it."""

    failures: int = 0
    since: float | None = None
    kind: Kind | None = None
    reported: Kind | None = None
    reason: str = ""


def after_failure(outage: CloudOutage, kind: Kind, reason: str, *, now: float) -> tuple[CloudOutage, list[Event]]:
    since = outage.since if outage.since is not None else now
    after = CloudOutage(outage.failures + 1, since, kind, outage.reported, reason)
    if outage.reported == kind or (kind == "unreachable" and after.failures < FAILURES_UNTIL_REPORTED):
        return after, []
    event_type = CLOUD_AUTH_FAILED if kind == "auth_failed" else CLOUD_UNREACHABLE
    data = {"reason": reason, "since": iso_utc(since), "observed_at": iso_utc(now)}
    reported = msgspec.structs.replace(after, reported=kind)
    return reported, [bridge_event(event_type, at=since, facts=(since,), data=data)]


def after_success(outage: CloudOutage, *, now: float) -> tuple[CloudOutage, list[Event]]:
    if outage.reported is None or outage.since is None:
        return CloudOutage(), []
    data = {
        "since": iso_utc(outage.since),
        "seconds": round(now - outage.since, 3),
        "observed_at": iso_utc(now),
    }
    return CloudOutage(), [bridge_event(CLOUD_RECOVERED, at=now, facts=(outage.since, now), data=data)]


T = TypeVar("T")


class Urgency(IntEnum):
    """Who goes first when requests have to wait: a session's start and end, then live datapoints, then the rest."""

    SESSIONS = 0
    LIVE = 1
    BACKLOG = 2


class LostRow(msgspec.Struct, frozen=True):
    """A data session's row that could not be read, with what is known of it."""

    reason: str
    id: str | None = None
    updated_at: float | None = None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a collection. `unreadable` names the rows that could not be read; `count` includes them.

    Of data sessions `lost` are these rows, and `odd` the fields that were read as if they were not there, with reasons.

    `per_page` is the size of the pages that were served, which may be less than was requested.
    """

    items: tuple[T, ...]
    count: int
    page: int | None
    page_count: int | None
    total: int | None
    unreadable: tuple[str, ...] = ()
    per_page: int | None = None
    lost: tuple[LostRow, ...] = ()
    odd: tuple[tuple[str, str], ...] = ()


class SeenSession(msgspec.Struct, frozen=True):
    """A data session and, where the reply was expanded with it, its group's label."""

    session: DataSession
    device_label: str | None = None


class PointsRead(msgspec.Struct, frozen=True):
    """A reading of datapoints, each (series, timestamp) once.

    `own` is false where the cloud served rows of other data sessions, too: these can be no other's. With `complete`
    these are all points that there are: of `every_series`, else of those that are shown.
    """

    points: tuple[Datapoint, ...]
    pages: int
    own: bool = True
    complete: bool = True
    every_series: bool = True


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

    `series` are those of which points were served. `summaries` are the last ones of sessions, by their ids. `left` are
    devices whose data session belongs to another one now. `outage` is the cloud's, where it is reported.
    """

    known: tuple[KnownSession, ...] = ()
    windows: tuple[WindowRead, ...] = ()
    latest: tuple[LatestSeen, ...] = ()
    series: tuple[Series, ...] = ()
    summaries: tuple[tuple[str, Summary], ...] = ()
    events: tuple[Event, ...] = ()
    watch: "PollState | None" = None
    left: tuple[str, ...] = ()
    outage: CloudOutage | None = None

    @property
    def devices(self) -> frozenset[str]:
        """The devices whose state is another one now."""
        sessions = {one.session.group_id for one in self.known}
        return frozenset(sessions | {one.device_id for one in self.latest} | set(self.left))

    @classmethod
    def of_points(cls, parts: Iterable["Changes"], known: Iterable[KnownSession] = ()) -> "Changes":
        """What was found of datapoints in several readings, and what is known of their sessions after it."""
        every = [*parts]
        return cls(
            known=tuple(known),
            windows=tuple(read for one in every for read in one.windows),
            latest=tuple(point for one in every for point in one.latest),
            series=tuple(series for one in every for series in one.series),
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

    `rechecked_at` is when known sessions were last requested by id; `recheck_after`, `recheck_finished_after` and
    `active_after` are the ids up to which they have been. Since `alone_since` each is requested on its own.
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


class SessionCloud(Protocol):
    """What polling asks the cloud: data sessions and groups. Every method raises CloudErrors only."""

    def now(self) -> float:
        """Epoch seconds by the cloud's clock, as far as its answers show."""

    async def session_page(
        self, params: Sequence[tuple[str, str]], page: int, *, per_page: int = ..., expand: bool = ...
    ) -> Page[SeenSession]: ...
    async def session(self, session_id: str) -> SeenSession: ...
    async def group_page(self, page: int) -> Page[tuple[str, str | None]]:
        """Ids and labels of the groups that the account sees."""


class PointCloud(SessionCloud, Protocol):
    """Downsampled datapoints, too."""

    async def point_page(
        self, params: Sequence[tuple[str, str]], page: int, *, urgency: Urgency
    ) -> Page[Datapoint]: ...
    async def series_axes(self, session_id: str, *, urgency: Urgency) -> tuple[tuple[int, ...], tuple[str, ...]]: ...


class Journal(Protocol):
    """What polling needs of the store. Every method raises StoreErrors only."""

    def ensure_room(self) -> None:
        """Raises StoreAtCap while nothing more may be taken in, so nothing needs to be requested."""

    async def known(self, ids: Collection[str]) -> dict[str, KnownSession]: ...
    async def commit(self, changes: Changes) -> None: ...


class SessionJournal(Journal, Protocol):
    async def poll_state(self) -> PollState | None: ...
    async def outage(self) -> CloudOutage: ...
    async def known_after(self, stage: Stage, session_id: str, limit: int) -> list[KnownSession]: ...
    async def device_labels(self) -> dict[str, str | None]: ...


class PointJournal(Journal, Protocol):
    async def overdue_ends(self, seen_before: float) -> list[KnownSession]: ...
    async def due_fetches(self, now: float, limit: int, *, late: bool | None = None) -> list[KnownSession]: ...
    async def next_fetch_at(self, *, without: Collection[str]) -> float | None: ...
    async def windows(self, session_ids: Collection[str]) -> dict[str, dict[Window, WindowState]]: ...
    async def emitted(self, window: Window, session_ids: Collection[str]) -> dict[str, Emitted]: ...
    async def series(self, ids: Collection[str]) -> dict[str, Series]: ...
