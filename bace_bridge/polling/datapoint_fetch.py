"""A visit to one data session: read its windows, tell what is new, then its end and its CSV."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudFault, CloudLoginFailed, CloudRefused, CloudUnavailable, UnexpectedReply
from bace_bridge.polling.needs import PointCloud, PointJournal
from bace_bridge.polling.rules.changes import Changes, WindowRead
from bace_bridge.polling.rules.datapoints import Datatype, Emitted, samples_per_day
from bace_bridge.polling.rules.fetches import Outcome, conclude, end_is_due
from bace_bridge.polling.rules.readings import absorb, after_failure, by_window, left_out, split
from bace_bridge.polling.rules.seen import PointsRead, Urgency
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import (
    DIRECT_WINDOWS,
    MOST_FAILURES,
    Due,
    Window,
    WindowState,
    days_with_more,
    halves,
    left_out_windows,
    windows_due,
)
from bace_bridge.polling.sure_points import SurePoints

log = structlog.get_logger()

EVENTS_A_COMMIT = 50


class FetchSettings(msgspec.Struct, frozen=True):
    """What a visit is made with. `interval` is in seconds; `csv_url` makes a session id into its CSV's URL."""

    interval: float
    resolution: Literal["as_served", "finest"]
    datatypes: Mapping[int, Datatype]
    csv_url: Callable[[str], str]


class DatapointFetch:
    """One visit. What it finds is committed in order: datapoints, `session.ended`, late ones, `session.csv_ready`."""

    def __init__(
        self,
        known: KnownSession,
        cloud: PointCloud,
        journal: PointJournal,
        settings: FetchSettings,
        *,
        deciding: asyncio.Lock,
        clock: Callable[[], float],
    ) -> None:
        self._known = known
        self._seen = known.session
        self._cloud = cloud
        self._journal = journal
        self._settings = settings
        self._deciding = deciding
        self._clock = clock
        late = known.over_when_found or known.unread
        self._points = SurePoints(cloud, known.session.id, Urgency.BACKLOG if late else Urgency.LIVE)
        self._states: dict[Window, WindowState] = {}
        self._pending = Changes()
        self._found_news = False
        self._retry_after = 0.0
        self._newest = known.newest_point_at
        self._probed: dict[int, int] | None = None

    async def make(self) -> CloudError | None:
        """Raises StoreError only; what the cloud does ends up in the session's next visit.

        Returns why the cloud as a whole gives no datapoints, where that is so.
        """
        session = self._known.session
        outcome: Outcome = "read"
        away: CloudError | None = None
        try:
            self._states = await self._journal.windows(session.id)
            await self._read_everything_due()
        except (CloudUnavailable, CloudLoginFailed) as error:
            outcome, away = "unavailable", error
            self._retry_after = error.retry_after if isinstance(error, CloudUnavailable) else 0.0
            log.debug("datapoints.put_off", session=session.id, reason=str(error))
        except (CloudRefused, CloudFault, UnexpectedReply) as error:
            outcome = "failed"
            self._say_not_read(str(error))
        else:
            if self._known.failed_fetches:
                log.info("datapoints.read_again", session=session.id)
        await self._commit(outcome)
        return away

    def _say_not_read(self, reason: str) -> None:
        failures = self._known.failed_fetches
        say = log.debug if failures else log.warning
        say("datapoints.not_read", session=self._known.session.id, reason=reason, attempt=failures + 1)

    async def emit_end(self) -> None:
        """Tells the end without waiting for the datapoints before it."""
        await self._commit(None)

    async def _read_everything_due(self) -> None:
        due = windows_due(self._known, self._states, now=self._cloud_now())
        if len(due) > DIRECT_WINDOWS:
            days = await self._days_with_points()
            due = windows_due(self._known, self._states, now=self._cloud_now(), days=days)
        await self._read_all(due)
        if self._known.unread:
            await self._try_left_out()
        if self._something_may_be_missing():
            await self._days_with_points()
            days = days_with_more(self._probed or {}, self._known, self._states)
            again = not self._known.csv_due
            await self._read_all(windows_due(self._known, self._states, now=self._cloud_now(), days=days, again=again))

    async def _try_left_out(self) -> None:
        """What was left out, those windows first that were tried least; one that still breaks is enough."""
        for window in left_out_windows(self._states):
            failures = self._states[window].failures
            await self._read_all([Due(window, window.start)])
            if self._states[window].failures > failures:
                return

    def _something_may_be_missing(self) -> bool:
        """True when the session says that it has datapoints which the windows did not show."""
        if self._probed is not None:
            return True
        count = self._seen.datapoint_count
        if count is None:
            return False
        if self._known.csv_due:
            return sum(state.samples for state in self._states.values() if not state.split) < count
        return not self._found_news and count != self._known.count_fetched

    async def _days_with_points(self) -> frozenset[int]:
        """Looks without a window: at day resolution even a long session is a small answer."""
        if self._probed is None:
            read = await self._points.read(None, None)
            self._probed = samples_per_day(read.points)
        return frozenset(self._probed)

    async def _read_all(self, due: list[Due]) -> None:
        """Reads the windows, oldest first, but those that an answer which ran past its bounds has brought along."""
        covered = 0.0
        for one in due:
            if one.window.end <= covered:
                continue
            self._journal.ensure_room()
            read = await self._read(one)
            if (
                end_is_due(self._known, read=False, failed=False, now=self._clock())
                or len(self._pending.events) > EVENTS_A_COMMIT
            ):
                await self._commit(None)
            if read is not None and not read.held:
                log.debug("cloud.time_filter_not_honoured", session=self._known.session.id)
                covered = max(covered, *(point.timestamp for point in read.points))

    async def _read(self, due: Due) -> PointsRead | None:
        """Reads a window; where a finer resolution is wanted, or the cloud breaks on it, in halves."""
        window = due.window
        try:
            read = await self._points.read(due.since, window.end)
        except CloudFault as fault:
            if not await self._narrowed(window, fault):
                raise
            return None
        for name in read.unreadable:
            log.warning("cloud.datapoint_unreadable", session=self._known.session.id, row=name)
        coarse = self._settings.resolution == "finest" and any(point.count > 1 for point in read.points)
        if coarse and read.held and (parts := halves(window)) is not None:
            await self._read_halves(window, parts)
            return None
        await self._absorb(due, read)
        return read

    async def _absorb(self, due: Due, read: PointsRead) -> None:
        served = by_window(read.points, due, self._states, held=read.held)
        told = await self._told(list(served))
        changes = absorb(
            self._known,
            self._states,
            due,
            served,
            told,
            self._settings.datatypes,
            pages=read.pages,
            now=self._clock(),
            cloud_now=self._cloud_now(),
        )
        if changes.events:
            self._found_news = True
            stamps = [point.timestamp for point in read.points]
            self._newest = max([*stamps, self._newest] if self._newest is not None else stamps)
        self._add(changes)

    async def _told(self, windows: list[Window]) -> dict[Window, Emitted]:
        """What was told of these windows. What this visit has found in one of them is made durable first."""
        if any(read.state.window in windows for read in self._pending.windows):
            await self._commit(None)
        return await self._journal.told(self._known.session.id, windows)

    async def _read_halves(self, window: Window, parts: tuple[Window, Window]) -> None:
        await self._split(window, parts)
        for part in parts:
            await self._read(Due(part, part.start))

    async def _split(self, window: Window, parts: tuple[Window, Window]) -> None:
        told = (await self._told([window]))[window]
        self._add(Changes(windows=split(self._known, window, parts, told)))
        await self._commit(None)

    async def _narrowed(self, window: Window, fault: CloudFault) -> bool:
        """One bad row can make its page fail for ever: after some failures the window is halved, then left out."""
        state = after_failure(self._known, self._states.get(window), window)
        if state.failures < MOST_FAILURES:
            self._add(Changes(windows=(WindowRead(self._known.session.id, state, None),)))
            return False
        if (parts := halves(window)) is not None:
            await self._split(window, parts)
            return False
        if state.failures == MOST_FAILURES:
            log.error(
                "datapoints.window_left_out",
                session=self._known.session.id,
                start=window.start,
                end=window.end,
                reason=str(fault),
            )
        after = left_out(self._known, state)
        self._add(Changes(windows=(WindowRead(self._known.session.id, after, None),)))
        return True

    def _add(self, changes: Changes) -> None:
        self._states.update({read.state.window: read.state for read in changes.windows})
        before = self._pending
        self._pending = Changes(
            windows=before.windows + changes.windows,
            latest=before.latest + changes.latest,
            events=before.events + changes.events,
        )

    async def _commit(self, outcome: Outcome | None) -> None:
        """Makes durable what was found so far and, with an outcome, what follows from the visit."""
        async with self._deciding:
            fresh = (await self._journal.known([self._known.session.id])).get(self._known.session.id)
            if fresh is None:
                return
            fresh = msgspec.structs.replace(
                fresh,
                newest_point_at=max(self._newest or 0.0, fresh.newest_point_at or 0.0) or None,
                points_since_csv=fresh.points_since_csv or bool(self._pending.events),
            )
            if outcome == "read":
                fresh = msgspec.structs.replace(
                    fresh, count_fetched=self._seen.datapoint_count, probed=self._probed or fresh.probed
                )
                if self._outdated_by(fresh):
                    outcome = "more"
            concluded = conclude(
                fresh,
                outcome,
                csv_url=self._settings.csv_url(fresh.session.id),
                interval=self._settings.interval,
                left_out=bool(left_out_windows(self._states)),
                retry_after=self._retry_after,
                now=self._clock(),
            )
            events = self._pending.events + concluded.events
            self._known = msgspec.structs.replace(concluded.known, reading=self._known.reading)
            await self._journal.commit(msgspec.structs.replace(self._pending, known=(concluded.known,), events=events))
            self._pending = Changes()
        for event in concluded.events:
            log.info(event.type, session=event.session_id, device=event.device_id, id=event.id)

    def _outdated_by(self, fresh: KnownSession) -> bool:
        """True where the session list has shown meanwhile that there is something else to read."""
        if (fresh.reading, fresh.session.end) != (self._known.reading, self._seen.end):
            return True
        return fresh.csv_due and fresh.session.datapoint_count != self._seen.datapoint_count

    def _cloud_now(self) -> float:
        return self._clock() + self._cloud.clock_ahead
