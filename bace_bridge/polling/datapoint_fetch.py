"""A fetch of the datapoints of one data session: read its windows, emit what is new, then its end and its CSV."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Literal

import msgspec
import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudError, CloudGone, CloudRefused, CloudUnavailable
from bace_bridge.polling.points import PointEndpoint, PointReader, PointsForbidden, TooMuch
from bace_bridge.polling.reading import MOST_NARROWING, Unreadable
from bace_bridge.polling.rules.changes import Changes, PointCloud, PointJournal, PointsRead, Urgency
from bace_bridge.polling.rules.datapoints import Datatype
from bace_bridge.polling.rules.fetches import (
    MOST_FAILURES,
    Conclusion,
    Outcome,
    absorb,
    conclude,
    judge,
    left_out,
    split,
)
from bace_bridge.polling.rules.followed import own_group
from bace_bridge.polling.rules.sessions import KnownSession, in_the_log
from bace_bridge.polling.rules.summaries import EMPTY, Summary, Tally
from bace_bridge.polling.rules.windows import (
    DAY,
    DIRECT_WINDOWS,
    FINEST_SPAN,
    SETTLING,
    SPAN,
    Window,
    WindowState,
    halves,
    is_late_round,
    left_out_windows,
    likely_news,
    read_from,
    summed,
    window_at,
    windows_due,
    windows_with_more,
)

log = structlog.get_logger()

NOTHING = Changes()


class FetchSettings(msgspec.Struct, frozen=True):
    """What datapoints are fetched with. `interval` is in seconds; `csv_url` makes a session id into its CSV's URL."""

    interval: float
    resolution: Literal["as_served", "finest"]
    datatypes: Mapping[int, Datatype]
    csv_url: Callable[[str], str]


class DatapointFetch:
    """One fetch. What it finds is committed in order: datapoints, `session.ended`, late ones, `session.csv_ready`.

    `deciding` is held from reading what is known of the session to the commit.
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
        self.session_id = known.session.id
        self._known = known
        self._seen = known.session
        self._cloud = cloud
        self._endpoint = endpoint
        self._journal = journal
        self._settings = settings
        self._deciding = deciding
        self._clock = clock
        # The reading, and up to where a probe that is made in this fetch shows all that there is.
        self._searched = (known.reading, window_at(cloud.now() - SETTLING).start)
        self._points = PointReader(cloud, endpoint, known.session, urgency)
        self._states: dict[Window, WindowState] = {}
        self._breaks = 0
        self._groups: set[str | None] = set()
        self._own = True
        # What was read and is not durable yet: it becomes so with the outcome, events before the next request.
        self._found = NOTHING

    async def make(self) -> CloudError | None:
        """Raises StoreError only; what the cloud does ends up in the session's next fetch.

        Returns why the cloud as a whole gives no datapoints, where that is so.
        """
        outcome: Outcome
        retry_after = 0.0
        away: CloudError | None = None
        failures = self._known.failed_fetches
        try:
            await self._endpoint.ensure_allowed()
            self._states = (await self._journal.windows([self.session_id]))[self.session_id]
            outcome = await self._read_everything_due()
            if self._known.csv_due and self._seen.datapoint_count and not self._samples():
                empty, self._found = self._found, NOTHING  # unread, where the cloud denies to have the session
                await self._points.ensure_there()
                self._found = empty
        except Unreadable as fault:
            outcome = "failed"
            say = log.debug if failures else log.warning
            say("datapoints.not_read", session=self.session_id, reason=str(fault), attempt=failures + 1)
        except CloudGone as denial:
            outcome = "unavailable"  # in maintenance; or it was removed, which polling the list finds out
            log.debug("datapoints.put_off", session=self.session_id, reason=str(denial))
        except PointsForbidden:
            outcome, retry_after = "forbidden", self._endpoint.rest
        except CloudError as error:
            outcome, away = "unavailable", error
            retry_after = error.retry_after if isinstance(error, CloudUnavailable) else 0.0
            log.debug("datapoints.put_off", session=self.session_id, reason=str(error))
        else:
            if failures:
                log.info("datapoints.read_again", session=self.session_id)
        await self._commit(outcome, retry_after=retry_after)
        return away

    async def emit_end(self) -> None:
        """Emits the end without waiting for the datapoints before it."""
        await self._commit()

    async def _read_everything_due(self) -> Outcome:
        """Reads the windows that are due, the left-out ones once more, and those in which something may be missing."""
        samples = self._samples()
        due = windows_due(self._known, self._states, now=self._cloud.now())
        if self._known.session.end is None and not is_late_round(self._clock(), self._settings.interval):
            due = likely_news(due, self._known, self._states, now=self._cloud.now())
        # A session of a month has 720 windows, most of them empty: a probe shows in one request which are not. It only
        # saves requests, so where it cannot be had the windows are read without it, some in each fetch.
        if len(due) > DIRECT_WINDOWS:
            hours = await self._points.probe()
            if hours is None:
                await self._read_all(due)
                return "more" if any(one in self._states and self._states[one].settled for one in due) else "read"
            # Also those of which everything may have been deleted: the probe shows nothing of these.
            seen = {state.start for state in self._states.values() if state.samples}
            due = windows_due(self._known, self._states, now=self._cloud.now(), hours={*hours, *seen})
        await self._read_all(due)
        for window in left_out_windows(self._states) if self._known.unread else ():
            await self._read(window)
            if window in left_out_windows(self._states):
                break  # one that still breaks is enough
        if self._something_may_be_missing(found=self._samples() > samples) and (hours := await self._points.probe()):
            for span in (SPAN, DAY):
                for window in windows_with_more(hours, self._known, self._states, span=span):
                    await self._read(window)
        return "read"

    def _something_may_be_missing(self, *, found: bool) -> bool:
        """True when the session says that it has datapoints which the windows did not show."""
        # `datapoint_count` need not count what is served. Where new points are found all the time, or it
        # never fits, it is searched once an hour and holds up nothing else.
        count = self._seen.datapoint_count
        if self._points.hours is not None or count is None:
            return self._points.hours is not None
        lacks = self._samples() < count
        if self._known.csv_due:
            return lacks
        lately = self._known.searched == self._searched
        return (not found and count != self._known.count_fetched) or (lacks and self._own and not lately)

    def _samples(self) -> int:
        return sum(state.samples for state in self._states.values())

    async def _read_all(self, due: Iterable[Window]) -> None:
        """Reads these windows, which are in order."""
        for day, windows in groupby(due, key=lambda window: window.start // DAY * DAY):
            await self._keep()
            of_day = [*windows]
            shown = await self._points.read_day(Window(day, day + DAY), of_day)
            for window in of_day:
                if window in shown:
                    await self._absorb(window, PointsRead(shown[window], 1))
                else:
                    await self._read(window)

    async def _read(self, window: Window, *, breaks: bool = False) -> None:
        """Reads a window; its halves where it cannot be had at once, or not as finely as is wanted.

        What `breaks`, again and again, is halved in this fetch, down to a minute, and left out there.
        """
        await self._keep()
        self._journal.ensure_room()
        since = read_from(window, self._states.get(window), self._known, now=self._cloud.now())
        parts = halves(window)
        try:
            read = await self._points.read(since, window.end)
            self._groups |= {row.group_id for row in read.points}
            self._own = self._own and read.own
            if not read.points and window in self._states and self._states[window].samples:
                await self._points.ensure_there()
            as_served = self._settings.resolution == "as_served" or not parts or not read.own
            if as_served or await self._points.are_samples(read.points):
                await self._absorb(window, read, in_part=since > window.start)
                return
        except Unreadable as fault:
            breaks = breaks or await self._breaks_for_good(window, fault)
            if not breaks:
                raise
            if not parts or self._breaks >= MOST_NARROWING:
                self._leave_out(window, str(fault))
                return
            self._breaks += 1
        # The fan-out of a split: what was emitted of the window is shared out to its halves by time, in one commit, so
        # that a point which a half shows again is known there and not published twice. The halves are windows of their
        # own from then on, also after a crash; and they may be split in turn.
        emitted = await self._journal.emitted(window, [self.session_id])
        self._add(split(self._known, window, emitted[self.session_id]))
        await self._commit()  # the halves' own points are read from the store
        for part in parts:
            await self._read(part, breaks=breaks)

    def _leave_out(self, window: Window, reason: str) -> None:
        if window not in left_out_windows(self._states):
            span = {"start": window.start, "end": window.end}
            log.error("datapoints.window_left_out", session=self.session_id, **span, reason=reason)
        self._add(left_out(self._known, self._states.get(window), window))

    async def _breaks_for_good(self, window: Window, fault: Unreadable) -> bool:
        """False where it may be a hiccup. Raises where the whole data session is broken, not one record of it."""
        if isinstance(fault, TooMuch):
            return True
        often = self._known.failed_fetches + 1 >= MOST_FAILURES or window in left_out_windows(self._states)
        if isinstance(fault.cause, CloudRefused) or not often:
            return False
        # A minute of 1970 holds hardly a row, so no bad one: where that breaks, too, no halving will find it.
        await self._points.read(0, FINEST_SPAN)
        return True

    async def _absorb(self, window: Window, read: PointsRead, *, in_part: bool = False) -> None:
        await self._keep()
        emitted = await self._journal.emitted(window, [self.session_id])
        changes = absorb(
            self._known,
            window,
            read.points,
            before=self._states.get(window),
            emitted=emitted[self.session_id],
            datatypes=self._settings.datatypes,
            in_part=in_part,
            complete=read.complete,
            every_series=read.every_series,
            pages=read.pages,
            now=self._clock(),
            cloud_now=self._cloud.now(),
        )
        self._add(changes)

    def _add(self, found: Changes) -> None:
        self._found = Changes.of_points([self._found, found])
        self._states.update({read.state.window: read.state for read in found.windows})

    async def _keep(self) -> None:
        # Before the next request, which may take long: points are published as they come.
        if self._found.events:
            await self._commit()

    async def _commit(self, outcome: Outcome | None = None, *, retry_after: float = 0.0) -> None:
        """Makes durable what was found and, with an outcome, what follows from the fetch."""
        summary, made_of = EMPTY, None
        while True:
            # The session may have moved on while its points were read, for minutes perhaps: what follows is decided on
            # what is known by now, and nothing else decides on it before this is durable.
            async with self._deciding:
                fresh = (await self._journal.known([self.session_id])).get(self.session_id)
                if fresh is None:
                    return  # pruned meanwhile: nothing more is expected of it
                concluded = self._concluded(fresh, outcome, summary, retry_after)
                states = (await self._journal.windows([self.session_id])) if concluded.events else None
                if states is None or states == made_of:
                    await self._commit_all(concluded)
                    break
            # All that was published of a month takes seconds to read: nobody else has to wait for that. A batch that
            # was under way may have published more meanwhile: then it is read once more.
            summary, made_of = await self._summary(states[self.session_id]), states
        for event in concluded.events:
            log.info(event.type, **in_the_log(event, concluded.known))

    def _concluded(
        self, fresh: KnownSession, outcome: Outcome | None, summary: Summary, retry_after: float
    ) -> Conclusion:
        if self._found.events:
            newest = max(event.time for event in self._found.events)
            newest = newest if fresh.newest_point_at is None else max(newest, fresh.newest_point_at)
            fresh = replace(fresh, newest_point_at=newest, points_since_csv=True)
        incomplete = bool(left_out_windows(self._states))
        if outcome == "read":
            of_group = own_group(fresh, self._groups, own=self._own)
            fresh = replace(fresh, count_fetched=self._seen.datapoint_count, own_group=of_group)
            if (hours := self._points.hours) is not None:
                fresh = replace(fresh, probed=dict(summed(hours.items(), DAY)), searched=self._searched)
            found_samples = None if incomplete else self._samples()
            reading, cloud_now = self._known.reading, self._cloud.now()
            outcome = judge(fresh, self._seen, reading=reading, samples=found_samples, cloud_now=cloud_now)
        url, interval = self._settings.csv_url(self.session_id), max(self._settings.interval, retry_after)
        times = {"interval": interval, "now": self._clock()}
        return conclude(fresh, outcome, summary=summary, csv_url=url, left_out=incomplete, **times)

    async def _commit_all(self, concluded: Conclusion) -> None:
        # This fetch goes on in the reading that it began: its windows count for no later one.
        self._known = replace(concluded.known, reading=self._known.reading)
        summaries = () if concluded.summary is None else ((self.session_id, concluded.summary),)
        events = self._found.events + concluded.events
        found = replace(self._found, known=(concluded.known,), summaries=summaries, events=events)
        await self._journal.commit(found)
        self._found = NOTHING

    async def _summary(self, states: Iterable[Window]) -> Summary:
        """Of what the store holds and what was found; a window at a time, which may be a month of them."""
        tally = Tally()
        found = {read.state.window: read.emitted for read in self._found.windows if read.emitted is not None}
        names = {one.id: one for one in self._found.series}
        for window in sorted({*states, *found}):
            if (emitted := found.get(window)) is None:
                emitted = (await self._journal.emitted(window, [self.session_id]))[self.session_id]
            tally.add(emitted)
        names |= await self._journal.series([one for one in tally.series if one not in names])
        return tally.summary(names, self._settings.datatypes)
