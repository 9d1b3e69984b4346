"""What is known of an active data session that may be fetched together with others, and what a batch makes of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import msgspec

from bace_bridge.polling.rules.datapoints import Datapoint, Emitted, are_samples
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import SETTLING, SPAN, States, Window, WindowState, windows_due

SILENT_ROUNDS = 5
"""Batches without a row of a session after which it is fetched on its own."""

FIRST_PATIENCE, MOST_PATIENCE = 8, 256
"""Batches after which a session is fetched on its own because something is missing that they should have shown."""


class Followed(msgspec.Struct, frozen=True):
    """What the store had of an active data session after its last fetch of its own, and the batches since then.

    `windows` are those that are not settled, and `newest` is the time of their newest points. `raw` says that an hour
    came as samples. `count` is the row's `datapoint_count` when a row of it came last, `elsewhere` by how much that
    exceeded the samples of the `windows` at first. `silent` counts the batches in a row that showed nothing of it,
    `lacking` those after which it has more than was seen; after so many as its `patience` it is fetched on its own.
    It is `alone` where only such a fetch shows whose its rows are.

    Of one that is not `proven` it is still to be seen whether all of its rows are of its group.
    """

    group_id: str
    reading: int
    series: frozenset[str]
    raw: bool
    windows: dict[Window, WindowState]
    newest: dict[Window, float]
    count: int | None
    at: float
    elsewhere: int = 0
    silent: int = 0
    lacking: int = 0
    patience: int = FIRST_PATIENCE
    alone: bool = False
    proven: bool = True

    def is_about(self, known: KnownSession) -> bool:
        """False where the session has become another one, so to speak, since it was fetched."""
        same = known.session.group_id == self.group_id and known.reading == self.reading
        return same and is_plain(known)

    @property
    def is_new(self) -> bool:
        """True where it was never fetched, and a batch has to show all that its row counts."""
        return not (self.proven or self.silent)

    @property
    def is_unseen(self) -> bool:
        """True where nothing of it was ever seen: whose its first rows are only a fetch of its own shows."""
        return self.silent > 0 and not self.proven

    @property
    def seen(self) -> int:
        """The samples in its windows."""
        return sum(state.samples for state in self.windows.values())

    def is_to_be_checked(self, known: KnownSession, *, cloud_now: float) -> bool:
        """True where only a fetch of its own can show what is true: a batch proves no silence and settles no window."""
        return (
            self.over_since(cloud_now) < inf
            or self.silent >= SILENT_ROUNDS
            or (self.silent > 0 and known.session.datapoint_count != self.count)
            or self.lacking >= self.patience
        )

    def over_since(self, cloud_now: float) -> float:
        """The end of the oldest window that is to be settled."""
        return min((window.end for window in self.windows if cloud_now >= window.end + SETTLING), default=inf)


def own_group(known: KnownSession, shown: Collection[str | None], *, own: bool) -> str | None:
    """The group of the data session, where all rows are of it that a fetch of its own has shown; else None.

    `own` says that the cloud kept to session and time in it. Without rows it is what it was before.
    """
    if not shown:
        return known.own_group
    return known.session.group_id if own and {*shown} == {known.session.group_id} else None


def is_plain(known: KnownSession) -> bool:
    """True for an active session of which nothing is to be done but to read what is new."""
    special = known.removed or known.failed_fetches or known.csv_due or known.unread
    return known.session.end is None and not special


def follow(
    known: KnownSession,
    states: States,
    emitted: Mapping[Window, Emitted],
    before: Followed | None,
    *,
    now: float,
    cloud_now: float,
) -> Followed | None:
    """What the store has of a data session; None where it has to be fetched on its own first.

    `emitted` is what was published of its windows that are not settled; `before` is from before its last fetch.
    """
    made = _of_store(known, states, emitted, now=now, cloud_now=cloud_now)
    if not is_plain(known) or any(window.end - window.start != SPAN for window in made.windows):
        return None
    # A batch is divided by the rows' groups, so a session's rows must be known to be of its own: it has shown that in a
    # fetch; or it was never fetched, and a batch can show all that its row counts; or it has shown nothing so far.
    if not made.proven:
        is_young = not states and made.over_since(cloud_now) == inf
        if is_young and known.session.datapoint_count:
            return None if known.updates or known.reopenings or known.own_group is not None else made
        if not (is_young or states) or any(state.samples for state in states.values()):
            return None
        made = msgspec.structs.replace(made, silent=1)
    settled = sum(state.samples for state in states.values() if state.settled)
    elsewhere = max(settled, (known.count_fetched or 0) - made.seen)
    patience = FIRST_PATIENCE
    # Where a count never fits, it is fetched ever more rarely.
    if before is not None and elsewhere > settled:
        patience = min(MOST_PATIENCE, before.patience * (2 if before.lacking >= before.patience else 1))
    return msgspec.structs.replace(made, elsewhere=elsewhere, patience=patience)


def _of_store(
    known: KnownSession, states: States, emitted: Mapping[Window, Emitted], *, now: float, cloud_now: float
) -> Followed:
    """What the store has of it, whether it may be in a batch or not."""
    windows = {window: WindowState(*window, known.reading) for window in windows_due(known, states, now=cloud_now)}
    windows |= {window: state for window, state in states.items() if not state.settled}
    rows = {
        window: [
            Datapoint(series, "", 0, at, None, None, None, point.count)
            for series, points in published.items()
            for at, point in points.items()
        ]
        for window, published in emitted.items()
    }
    return Followed(
        group_id=known.session.group_id,
        reading=known.reading,
        series=frozenset(series for points in emitted.values() for series in points),
        raw=any(map(are_samples, rows.values())),
        windows=windows,
        newest={window: max(row.timestamp for row in found) for window, found in rows.items() if found},
        count=known.session.datapoint_count,
        at=now,
        proven=known.own_group == known.session.group_id,
    )


class Read(NamedTuple):
    """What a batch has shown of a window of one session, from its start on where it is `whole`."""

    window: Window
    rows: Sequence[Datapoint]
    whole: bool


def after_batch(
    followed: Followed, reads: Sequence[Read], states: Iterable[WindowState], *, session: DataSession, now: float
) -> Followed:
    """What is known of a session after a batch; `session` is its row from before it."""
    count, counted_at = session.datapoint_count, session.updated_at or now
    rows = [row for read in reads for row in read.rows]
    newest = {read.window: max(row.timestamp for row in read.rows) for read in reads if read.rows}
    after = msgspec.structs.replace(
        followed,
        series=followed.series | {row.series_id for row in rows},
        raw=followed.raw or any(read.whole and are_samples(read.rows) for read in reads),
        windows={**followed.windows, **{state.window: state for state in states}},
        newest={**followed.newest, **newest},
        count=count if newest else followed.count,
        silent=0 if newest else followed.silent + 1,
        at=now,
        proven=not followed.is_unseen,
    )
    # The row is older than the batch and counts none of the newer samples; where it counts more than the others, some
    # came late, into a part of a window that batches do not read again.
    newer = sum(row.count for row in rows if row.timestamp > counted_at + 1)
    lacks = (count or 0) > after.elsewhere + after.seen - newer
    return msgspec.structs.replace(after, lacking=followed.lacking + 1 if lacks else 0)


def conclude_batch(
    fresh: KnownSession, after: Followed, *, newest: float | None, interval: float, now: float
) -> KnownSession:
    """The known session after a batch; `newest` is the timestamp of the newest of its new points.

    One that was seen to end meanwhile, or to be read again, keeps the fetch that was called for.
    """
    fresh = msgspec.structs.replace(
        fresh,
        newest_point_at=max(newest or 0.0, fresh.newest_point_at or 0.0) or None,
        points_since_csv=fresh.points_since_csv or newest is not None,
    )
    if not after.is_about(fresh):
        return fresh
    return msgspec.structs.replace(
        fresh,
        own_group=after.group_id if after.proven else fresh.own_group,
        fetch_at=now + interval,
        fetched_at=now if after.silent <= SILENT_ROUNDS else fresh.fetched_at,
        count_fetched=fresh.count_fetched if after.lacking else after.count,
    )
