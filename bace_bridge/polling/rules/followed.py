"""What is known of an active data session that may be fetched together with others, and what a batch makes of it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from bace_bridge.polling.rules.datapoints import Datapoint, Emitted
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import FINEST_SPAN, SETTLING, SPAN, States, Window, WindowState, windows_due

SILENT_ROUNDS = 5
"""Batches without a row of a session after which it is fetched on its own."""

FIRST_PATIENCE, MOST_PATIENCE = 8, 256
"""Batches after which a session is fetched on its own because something is missing that they looked for."""


class Shown(msgspec.Struct, frozen=True):
    """What a fetch has shown of a data session's rows: their series, with the rows' groups, and their newest times.

    `rate` is in rows a second. `raw` says that an hour of them came as samples, `own` that the cloud kept to the data
    session and to the time.
    """

    series: frozenset[tuple[str, str | None]] = frozenset()
    newest: dict[Window, float] = {}
    rate: float = 0.0
    raw: bool = False
    own: bool = True

    def own_group(self, known: KnownSession) -> str | None:
        """The group of the data session, where it is that of all its rows; without rows what it was before."""
        groups = {group for _, group in self.series}
        if not groups:
            return known.own_group
        return known.session.group_id if self.own and groups == {known.session.group_id} else None

    def with_rows(self, served: Mapping[Window, Sequence[Datapoint]], *, since: int, own: bool) -> "Shown":
        """And these rows, of windows of which the first one was asked for from `since` on."""
        (window, rows), *others = served.items()
        whole = since == window.start and window.end - window.start == SPAN
        newest = max((row.timestamp for row in rows), default=None)
        return Shown(
            series=self.series | {(row.series_id, row.group_id) for row in rows},
            newest=self.newest if newest is None else {**self.newest, window: newest},
            rate=self.rate if newest is None else len(rows) / max(newest - since, 1.0),
            raw=self.raw or (whole and are_samples(rows)),
            own=self.own and own and not others,
        )


class Followed(msgspec.Struct, frozen=True):
    """What an active data session was like when it was fetched on its own, and in the batches since then.

    `windows` are those that are not settled, `samples` counts those of the others. `missing` is by how much its row's
    `datapoint_count` exceeded all samples at the end, `owed` what it was after that fetch; `count` is the row's when a
    row of it came last. `silent` counts the batches in a row that showed nothing of it, `lacking` those after which
    something was missing; after so many as its `patience` it is fetched on its own.
    `doubts` counts the rows of a series that no such fetch had shown: then the next one is its own (`alone`).
    """

    group_id: str
    reading: int
    series: frozenset[str]
    rate: float
    raw: bool
    windows: dict[Window, WindowState]
    newest: dict[Window, float]
    samples: int
    count: int | None
    at: float
    owed: int = 0
    missing: int = 0
    silent: int = 0
    lacking: int = 0
    patience: int = FIRST_PATIENCE
    doubts: int = 0
    alone: bool = False

    def is_about(self, known: KnownSession) -> bool:
        """False where the session has become another one, so to speak, since it was fetched."""
        session = known.session
        same = session.group_id == self.group_id and known.reading == self.reading and session.end is None
        return same and not (known.removed or known.failed_fetches or known.csv_due or known.unread)

    def lacks(self, count: int | None) -> int:
        """How many samples there are, by this `datapoint_count`, that were not seen."""
        return max(0, (count or 0) - self.samples - sum(state.samples for state in self.windows.values()))

    @property
    def misses_something(self) -> bool:
        """True where the row says that samples have come which no batch has shown."""
        return self.missing > self.owed

    def is_to_be_checked(self, known: KnownSession, *, cloud_now: float) -> bool:
        """True where only a fetch of its own can tell what is true: a batch proves no silence and settles no window."""
        return (
            any(cloud_now >= window.end + SETTLING for window in self.windows)
            or self.silent >= SILENT_ROUNDS
            or (self.silent > 0 and known.session.datapoint_count != self.count)
            or self.lacking >= self.patience
        )


def follow(
    known: KnownSession, states: States, shown: Shown, before: Followed | None, *, now: float
) -> Followed | None:
    """What a fetch that has read everything due of a data session leaves behind; None where it cannot be in a batch.

    That needs rows, all of its own group, and whole hours as windows.
    """
    group_id, count = known.session.group_id, known.session.datapoint_count
    if known.session.end is not None or not shown.own or any(group != group_id for _, group in shown.series):
        return None
    unsettled = {window: state for window, state in states.items() if not state.settled}
    if before is not None and not before.is_about(known):
        before = None
    series = frozenset(name for name, _ in shown.series) | (before.series if before is not None else frozenset())
    if not series or any(window.end - window.start != SPAN for window in unsettled):
        return None
    made = Followed(
        group_id=group_id,
        reading=known.reading,
        series=series,
        rate=shown.rate,
        raw=shown.raw or (before is not None and before.raw),
        windows=unsettled,
        newest={window: at for window, at in shown.newest.items() if window in unsettled},
        samples=sum(state.samples for state in states.values() if state.settled),
        count=count,
        at=now,
        doubts=before.doubts if before is not None and before.series == series else 0,
    )
    owed = made.lacks(count)
    # Where a count never fits, its sessions are not fetched again and again.
    vain = before is not None and owed > before.owed
    patience = min(MOST_PATIENCE, 2 * before.patience) if before is not None and vain else FIRST_PATIENCE
    return msgspec.structs.replace(made, owed=owed, patience=patience)


def remembered(
    known: KnownSession, states: States, emitted: Mapping[Window, Emitted], *, now: float, cloud_now: float
) -> Followed | None:
    """What the store tells of a data session after a restart; None where it has to be fetched on its own first.

    `emitted` is what was published of its windows that are not settled.
    """
    group_id = known.session.group_id
    due = windows_due(known, states, now=cloud_now)
    gap = any(one not in states and one.end <= cloud_now for one in due)
    if known.own_group != group_id or gap:
        return None
    shown = Shown()
    for window, points in emitted.items():
        rows = [
            Datapoint(series, "", 0, at, None, None, None, point.count, group_id)
            for series, found in points.items()
            for at, point in found.items()
        ]
        shown = shown.with_rows({window: rows}, since=window.start, own=True)
    return follow(known, states, shown, None, now=now)


def are_samples(rows: Sequence[Datapoint]) -> bool:
    """True where two rows of a series lie in one minute: of a window of an hour no bucket would be so short."""
    minutes = Counter((row.series_id, row.timestamp // FINEST_SPAN) for row in rows)
    return any(many > 1 for many in minutes.values()) and all(row.count == 1 for row in rows)


def after_batch(
    followed: Followed, states: Mapping[Window, WindowState], shown: Shown, *, count: int | None, now: float
) -> Followed:
    """What is known of a session after a batch; `count` is its row's `datapoint_count` from before it."""
    after = msgspec.structs.replace(
        followed,
        rate=shown.rate or followed.rate,
        raw=followed.raw or shown.raw,
        windows={**followed.windows, **states},
        newest={**followed.newest, **shown.newest},
        count=count if shown.newest else followed.count,
        silent=0 if shown.newest else followed.silent + 1,
        at=now,
    )
    after = msgspec.structs.replace(after, missing=after.lacks(count))
    return msgspec.structs.replace(after, lacking=after.lacking + 1 if after.misses_something else 0)


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
        fetch_at=now + interval,
        fetched_at=now if after.silent <= SILENT_ROUNDS else fresh.fetched_at,
        count_fetched=fresh.count_fetched if after.missing else after.count,
    )
