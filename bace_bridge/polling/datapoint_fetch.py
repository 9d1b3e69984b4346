"""A fetch of the datapoints of one data session: read its windows, emit what is new, then its end and its CSV."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import structlog

from bace_bridge.errors import CloudError, CloudRefused, CloudUnavailable
from bace_bridge.polling.needs import PointCloud, PointJournal
from bace_bridge.polling.point_endpoint import PointEndpoint, PointsForbidden
from bace_bridge.polling.points import PointReader, TooMuch
from bace_bridge.polling.reading import MOST_NARROWING, Unreadable
from bace_bridge.polling.rules.batches import are_samples
from bace_bridge.polling.rules.changes import Changes, WindowRead
from bace_bridge.polling.rules.datapoints import Datatype, Emitted, samples_per_day
from bace_bridge.polling.rules.fetches import Outcome, conclude, end_is_due, reads_short
from bace_bridge.polling.rules.readings import absorb, by_window, left_out, split
from bace_bridge.polling.rules.seen import PointsRead, Urgency
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import (
    DIRECT_WINDOWS,
    FINEST_SPAN,
    MOST_FAILURES,
    SPAN,
    Due,
    Window,
    WindowState,
    days_with_more,
    halves,
    leaf_at,
    left_out_windows,
    windows_due,
)

log = structlog.get_logger()

EVENTS_A_COMMIT = 50


class FetchSettings(msgspec.Struct, frozen=True):
    """What datapoints are fetched with. `interval` is in seconds; `csv_url` makes a session id into its CSV's URL."""

    interval: float
    resolution: Literal["as_served", "finest"]
    datatypes: Mapping[int, Datatype]
    csv_url: Callable[[str], str]


class DatapointFetch:
    """One fetch. What it finds is committed in order: datapoints, `session.ended`, late ones, `session.csv_ready`.

    After it `is_complete` says that everything due was read, and that the cloud kept to the data session and to the
    time; `series` are those of its rows, with the rows' groups, and `is_raw` that an hour of them came as samples.
    """

    def __init__(
        self,
        known: KnownSession,
        cloud: PointCloud,
        endpoint: PointEndpoint,
        journal: PointJournal,
        settings: FetchSettings,
        *,
        urgency: Urgency = Urgency.LIVE,
        deciding: asyncio.Lock,
        clock: Callable[[], float],
    ) -> None:
        self._known = known
        self._seen = known.session
        self._cloud = cloud
        self._endpoint = endpoint
        self._journal = journal
        self._settings = settings
        self._deciding = deciding
        self._clock = clock
        self._points = PointReader(cloud, endpoint, known.session, urgency)
        self.series: set[tuple[str, str | None]] = set()
        self.is_raw = False
        self.is_complete = False
        self._only_its_own = True
        self._states: dict[Window, WindowState] = {}
        self._pending = Changes()
        self._newest: float | None = None
        self._probed: dict[int, int] | None = None

    @property
    def known(self) -> KnownSession:
        return self._known

    @property
    def states(self) -> Mapping[Window, WindowState]:
        return self._states

    async def make(self) -> CloudError | None:
        """Raises StoreError only; what the cloud does ends up in the session's next fetch.

        Returns why the cloud as a whole gives no datapoints, where that is so.
        """
        outcome: Outcome
        retry_after = 0.0
        away: CloudError | None = None
        try:
            await self._endpoint.ensure_allowed()
            self._states = await self._journal.windows(self._known.session.id)
            outcome = await self._read_everything_due()
        except Unreadable as fault:
            outcome = "failed"
            self._log_failure(str(fault))
        except PointsForbidden:
            outcome, retry_after = "forbidden", self._endpoint.rest
        except CloudError as error:
            outcome, away = "unavailable", error
            retry_after = error.retry_after if isinstance(error, CloudUnavailable) else 0.0
            log.debug("datapoints.put_off", session=self._known.session.id, reason=str(error))
        else:
            if self._known.failed_fetches:
                log.info("datapoints.read_again", session=self._known.session.id)
        await self._commit(outcome, retry_after=retry_after)
        return away

    def _log_failure(self, reason: str) -> None:
        failures = self._known.failed_fetches
        say = log.debug if failures else log.warning
        say("datapoints.not_read", session=self._known.session.id, reason=reason, attempt=failures + 1)

    async def emit_end(self) -> None:
        """Emits the end without waiting for the datapoints before it."""
        await self._commit(None)

    async def _read_everything_due(self) -> Outcome:
        """Reads the windows; a probe only saves requests, so where it cannot be had they are read without it."""
        due = windows_due(self._known, self._states, now=self._cloud_now())
        if len(due) > DIRECT_WINDOWS:
            probe = await self._probe()
            if probe is None:
                await self._read_all(due)
                read = (self._states.get(one.window) for one in due)
                return "more" if any(state is not None and state.settled for state in read) else "read"
            due = windows_due(self._known, self._states, now=self._cloud_now(), days=frozenset(probe))
        await self._read_all(due)
        if self._known.unread:
            await self._try_left_out()
        if self._something_may_be_missing() and (probe := await self._probe()) is not None:
            days = days_with_more(probe, self._known, self._states)
            await self._read_all(windows_due(self._known, self._states, now=self._cloud_now(), days=days, missing=True))
        return "read"

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
            return self._samples() < count
        return self._newest is None and count != self._known.count_fetched

    def _samples(self) -> int:
        return sum(state.samples for state in self._states.values() if not state.split)

    async def _probe(self) -> dict[int, int] | None:
        """The samples on each day, asked for without a window: at day resolution even a long session is a small answer.

        None where that cannot be had.
        """
        if self._probed is None:
            try:
                read = await self._points.read(None, None)
            except Unreadable as fault:
                log.debug("datapoints.not_probed", session=self._known.session.id, reason=str(fault))
                return None
            if not read.own:
                return None
            self._probed = samples_per_day(read.points)
        return self._probed

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
        """Reads a window. What the cloud breaks on again and again, or cannot answer at once, is read in halves."""
        try:
            return await self._read_whole(due)
        except TooMuch as reason:
            await self._narrow(due.window, str(reason))
        except Unreadable as fault:
            if isinstance(fault.cause, CloudRefused) or not self._is_sure(due.window):
                raise
            await self._points.read(0, FINEST_SPAN)  # raises where the whole data session is broken, not one record
            await self._narrow(due.window, str(fault))
        return None

    def _is_sure(self, window: Window) -> bool:
        """True where a break is no hiccup."""
        state = self._states.get(window)
        return self._known.failed_fetches + 1 >= MOST_FAILURES or (state is not None and state.failures > 0)

    async def _narrow(self, window: Window, reason: str) -> None:
        """Reads a window in halves; those that cannot be read are left out, so that everything else goes on."""

        async def read(part: Window) -> None:
            await self._split_down_to(part)
            await self._read_whole(Due(part, part.start))

        def parts_of(part: Window) -> tuple[Window, ...]:
            return (halves(part) or ()) if self._points.parts_asked < MOST_NARROWING else ()

        parts = parts_of(window)
        broken = [] if parts else [(window, reason)]
        for part in parts:
            broken += await self._points.requests.bisect(part, read, parts_of)
        for part, why in broken:
            await self._split_down_to(part)
            state = left_out(self._known, self._states.get(part), part)
            self._add(Changes(windows=(WindowRead(self._known.session.id, state, None),)))
            if state.failures == 1:
                log.error(
                    "datapoints.window_left_out",
                    session=self._known.session.id,
                    start=part.start,
                    end=part.end,
                    reason=why,
                )

    async def _read_whole(self, due: Due) -> PointsRead | None:
        """Reads a window at once and, where a finer resolution is wanted and can be had, in halves."""
        read = await self._points.read(due.since, due.window.end)
        parts = halves(due.window)
        if self._settings.resolution == "finest" and read.held and parts and not await self._points.are_samples(read):
            for part in parts:
                await self._split_down_to(part)
                await self._read(Due(part, part.start))
            return None
        await self._absorb(due, read)
        return read

    async def _absorb(self, due: Due, read: PointsRead) -> None:
        self.series |= {(point.series_id, point.group_id) for point in read.points}
        self._only_its_own = self._only_its_own and read.held and read.own
        whole_hour = due.since == due.window.start and due.window.end - due.window.start == SPAN
        self.is_raw = self.is_raw or (whole_hour and are_samples(read.points))
        served = by_window(read.points, due, self._states, held=read.held)
        emitted = await self._emitted(list(served))
        changes = absorb(
            self._known,
            self._states,
            due,
            served,
            emitted,
            self._settings.datatypes,
            pages=read.pages,
            now=self._clock(),
            cloud_now=self._cloud_now(),
        )
        if changes.events:
            self._newest = max([*(point.timestamp for point in read.points), self._newest or 0.0])
        self._add(changes)

    async def _emitted(self, windows: list[Window]) -> dict[Window, Emitted]:
        """What was emitted of these windows. What this fetch has found in one of them is made durable first."""
        if any(read.state.window in windows for read in self._pending.windows):
            await self._commit(None)
        return await self._journal.emitted(self._known.session.id, windows)

    async def _split_down_to(self, part: Window) -> None:
        """Has the window of the grid read in halves from now on, and those in halves, until `part` is one of them."""
        while (window := leaf_at(part.start, self._states)) != part and (parts := halves(window)) is not None:
            emitted = (await self._emitted([window]))[window]
            self._add(Changes(windows=split(self._known, window, parts, emitted)))
            await self._commit(None)

    def _add(self, changes: Changes) -> None:
        self._states.update({read.state.window: read.state for read in changes.windows})
        before = self._pending
        self._pending = Changes(
            windows=before.windows + changes.windows,
            latest=before.latest + changes.latest,
            events=before.events + changes.events,
        )

    async def _commit(self, outcome: Outcome | None, *, retry_after: float = 0.0) -> None:
        """Makes durable what was found so far and, with an outcome, what follows from the fetch."""
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
                elif not left_out_windows(self._states) and reads_short(
                    fresh, samples=self._samples(), cloud_now=self._cloud_now()
                ):
                    outcome = "short"
            concluded = conclude(
                fresh,
                outcome,
                csv_url=self._settings.csv_url(fresh.session.id),
                interval=self._settings.interval,
                left_out=bool(left_out_windows(self._states)),
                retry_after=retry_after,
                now=self._clock(),
            )
            events = self._pending.events + concluded.events
            self._known = msgspec.structs.replace(concluded.known, reading=self._known.reading)
            await self._journal.commit(msgspec.structs.replace(self._pending, known=(concluded.known,), events=events))
            self._pending = Changes()
        self.is_complete = outcome == "read" and self._only_its_own
        for event in concluded.events:
            log.info(event.type, session=event.session_id, device=event.device_id, id=event.id)

    def _outdated_by(self, fresh: KnownSession) -> bool:
        """True where the session list has shown meanwhile that there is something else to read."""
        if (fresh.reading, fresh.session.end) != (self._known.reading, self._seen.end):
            return True
        return fresh.csv_due and fresh.session.datapoint_count != self._seen.datapoint_count

    def _cloud_now(self) -> float:
        return self._clock() + self._cloud.clock_ahead
