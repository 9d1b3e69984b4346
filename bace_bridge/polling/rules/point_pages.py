"""How datapoints are requested, and what the pages of an answer hold."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from bace_bridge.polling.rules.changes import Page
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.sessions import DataSession
from bace_bridge.polling.rules.windows import LATEST_FILTER, NO_SUCH_SESSION, Window

Params = tuple[tuple[str, str], ...]


class PointQuery(NamedTuple):
    """The datapoints of a data session, or of several, in [start, end)."""

    sessions: str | tuple[str, ...]
    start: int = -LATEST_FILTER
    end: int = LATEST_FILTER
    datatypes: tuple[int, ...] = ()
    source_device: str | None = None

    @property
    def as_canary(self) -> "PointQuery":
        """The same for no data session: a cloud that honours the filter shows nothing."""
        return self._replace(sessions=NO_SUCH_SESSION if isinstance(self.sessions, str) else (NO_SUCH_SESSION,))

    @property
    def of_one_series(self) -> bool:
        return len(self.datatypes) == 1 and self.source_device is not None

    def divided(self, at: int) -> list["PointQuery"]:
        """The same for some of the datatypes each: those from index `at` on, and those before it."""
        return [self._replace(datatypes=some) for some in (self.datatypes[at:], self.datatypes[:at])]

    @property
    def params(self) -> Params:
        # Sorted, since the pages of an answer without an order need not be cut from the same one. Short names and few
        # of them: a server may repeat all this five times in a `Link` header.
        session = "filter[id_data_session]"
        sessions = [(session, self.sessions)]
        if not isinstance(self.sessions, str):
            sessions = [(f"{session}[in][]", one) for one in self.sessions]
        name = "filter[datatype]" if len(self.datatypes) == 1 else "filter[datatype][in][]"
        wanted = (
            *sessions,
            ("filter[timestamp_seconds][gte]", max(-LATEST_FILTER, min(self.start, LATEST_FILTER))),
            ("filter[timestamp_seconds][lt]", max(-LATEST_FILTER, min(self.end, LATEST_FILTER))),
            *((name, datatype) for datatype in self.datatypes),
            ("filter[source_device]", self.source_device),
            ("sort", "timestamp_seconds"),
        )
        return tuple((name, str(value)) for name, value in wanted if value is not None)


def fit_together(pages: Sequence[Page[Datapoint]], *, one_series: bool) -> bool:
    """True where no row can be missing from the pages of an answer."""
    # A row that is on two pages stands for another one that is on none: the order changed between them. Only where the
    # query was for one series, whose rows are sorted all the same, it is one that the cloud has twice. The total says
    # nothing, for it counts those.
    if not pages or len(pages) < (pages[-1].page_count or 1):
        return False
    keys = [{(row.series_id, row.timestamp) for row in page.items} for page in pages]
    if sum(map(len, keys)) == len(set().union(*keys)):
        return (pages[-1].total or 0) >= (pages[0].total or 0)
    rows = [row for page in pages for row in page.items]
    ordered = all(one.timestamp <= other.timestamp for one, other in pairwise(rows))
    return one_series and ordered and len({row.series_id for row in rows}) == 1


def within(rows: Iterable[Datapoint], session: DataSession) -> tuple[Datapoint, ...]:
    """The rows that can only be the session's, of a cloud that serves those of all sessions."""
    end = float("inf") if session.end is None else session.end
    return tuple(row for row in rows if row.group_id == session.group_id and session.start <= row.timestamp <= end)


def shown_by_day(
    points: Sequence[Datapoint], windows: Iterable[Window], probe: Mapping[int, int]
) -> dict[Window, tuple[Datapoint, ...]]:
    """What an answer for a day surely shows of windows: lone samples, as many as a probe found there."""
    shown: dict[Window, tuple[Datapoint, ...]] = {}
    for window in windows:
        rows = tuple(one for one in points if window.start <= one.timestamp < window.end)
        if all(one.count == 1 for one in rows) and len(rows) >= max(1, probe.get(window.start, 1)):
            shown[window] = rows
    return shown
