"""Batches: which data sessions are fetched in one request, how many, and what their answer shows of each."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.datapoints import Datapoint, Datatype, Emitted
from bace_bridge.polling.rules.fetches import PointQuery, absorb
from bace_bridge.polling.rules.followed import Followed, Read, after_batch
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import (
    AHEAD,
    FINEST_SPAN,
    LATE_EVERY,
    MARGIN,
    OVER_FOR,
    SETTLING,
    Window,
    WindowState,
    is_late_round,
    window_at,
)

MOST_IDS = 20
FIRST_SIZE = 7
"""Ids with which the answer's `Link` header, which repeats the query up to five times, passes a stock nginx."""

GOOD_BEFORE_GROWTH = 3
"""Full batches that have to pass before more ids are tried."""

FAILURE_COUNTS_FOR = 3600.0
"""Seconds after which a size that failed is tried again."""


class BatchSize(msgspec.Struct, frozen=True):
    """How many ids, of data sessions or of datatypes, go into one request: `ids`, at `most` so many.

    `passed` is the largest number that has passed, `failed` the smallest one that failed lately.
    """

    ids: int = FIRST_SIZE
    most: int = MOST_IDS
    passed: int = 0
    failed: int | None = None
    failed_at: float = 0.0
    good: int = 0

    def after_success(self, ids: int, *, now: float) -> "BatchSize":
        """So many ids have passed."""
        # A proxy's limit on headers decides, and it is documented nowhere: so it is found by trying. Only what
        # fills the size says that there is room for more.
        passed = max(self.passed, ids)
        if ids < self.ids:
            return msgspec.structs.replace(self, passed=passed)
        good = self.good + 1
        failed = self.failed if 0 <= now - self.failed_at < FAILURE_COUNTS_FOR else None
        most = self.most if failed is None else min(self.most, failed - 1)
        if good < GOOD_BEFORE_GROWTH or self.ids >= most:
            return msgspec.structs.replace(self, passed=passed, failed=failed, good=good)
        # By half while nothing has failed lately, for batches that are planned ahead grow slowly; else by one.
        ids = min(most, self.ids + (max(1, self.ids // 2) if failed is None else 1))
        return msgspec.structs.replace(self, ids=ids, passed=passed, failed=failed, good=0)

    def after_failure(self, ids: int, *, now: float) -> "BatchSize":
        """So many ids were too many, while the cloud answers: back to what passed, else to a half."""
        # Where as many have passed, it is the answer that was longer this time: a quarter less.
        failed = ids if self.failed is None else min(ids, self.failed)
        smaller = ids * 3 // 4 if self.passed >= ids else self.passed or ids // 2
        ids, passed = min(self.ids, max(1, smaller)), min(self.passed, smaller)
        return msgspec.structs.replace(self, ids=ids, passed=passed, failed=failed, failed_at=now, good=0)


LEAST_IDS = 5
"""Fewer sessions are fetched one by one: that costs little, and each time all of their windows are read as a whole."""

MOST_SERIES, USUAL_SERIES = 95, 13
"""Known series in one request (BACE serves 100, and there may be new ones), and of a session where nothing else says:
so many pass with the first batches."""

BACK, MOST_BACK = FINEST_SPAN, 300
"""Seconds before its newest sample from which a window is read on, at least and at most: some samples come late."""

WAITING = 30
"""Seconds for which a batch may wait for its turn."""

FURTHER_BACK, FURTHER_PARTS = 360, 3
"""Those of which something is missing are read from so many seconds before it, at once and in every fourth round, in
smaller batches: these are about as many requests as pages, and an answer of several pages has longer headers."""

LATELY = 300.0
"""Seconds: what is to be read from before is in batches of its own, so that the others' answers stay small."""

FORGOTTEN_AFTER = 600.0
"""Seconds without a fetch after which a session is not followed any more."""


class Member(NamedTuple):
    """A data session in a batch."""

    known: KnownSession
    followed: Followed

    @property
    def id(self) -> str:
        return self.known.session.id

    def since(self, window: Window, back: int = BACK) -> int:
        """Samples do not change with the interval, so a window of them is continued a little before where it ended."""
        newest = self.followed.newest.get(window)
        if not self.followed.raw or newest is None:
            return window.start
        return max(window.start, int(newest) - back)

    @property
    def rate(self) -> float:
        """Rows a second in the window of the newest one."""
        if not self.followed.newest:
            return 0.0
        window, newest = max(self.followed.newest.items())
        begun = max(window.start, self.known.session.start)
        return self.followed.windows[window].samples / max(newest - begun, 1.0)


class Batch(NamedTuple):
    """Data sessions, one a group, of which the same windows are due; `back` is how far samples are read again."""

    members: tuple[Member, ...]
    windows: tuple[Window, ...]
    back: int = BACK

    def query(self, window: Window) -> PointQuery:
        since = min(member.since(window, self.back) for member in self.members)
        return PointQuery(tuple(member.id for member in self.members), since, window.end)


class Plan(NamedTuple):
    """What is to be fetched: together, alone, and alone when there is room for it."""

    batches: tuple[Batch, ...] = ()
    singles: tuple[KnownSession, ...] = ()
    checks: tuple[KnownSession, ...] = ()


def plan(
    sessions: Sequence[KnownSession],
    followed: Mapping[str, Followed],
    *,
    alone: Collection[str],
    size: int,
    rows: int,
    checks: int,
    now: float,
    cloud_now: float,
    interval: float,
) -> Plan:
    """Sorts the live sessions, those first that are due first, into batches and fetches of their own.

    Those that are due only within the next `interval` seconds fill up the batches of those that are due now. At most
    so many fetches are `checks`, of sessions that might be in a batch as well. A page of an answer has so many `rows`.
    """
    groups = Counter(one.group_id for one in followed.values())
    groups.update(one.session.group_id for one in sessions if one.session.id not in followed)
    together: dict[str, Member] = {}
    for known in sessions:
        one = followed.get(known.session.id)
        # Rows name their group and not their session, so with two sessions of a group it is unknown whose they are.
        mixed = one is None or one.alone or groups[one.group_id] > 1
        if one is not None and not mixed and one.is_about(known) and known.session.id not in alone:
            together[known.session.id] = Member(known, one)
    if len(together) < LEAST_IDS:
        together = {}
    singles = tuple(one for one in sessions if one.session.id not in together and is_due(one, now))
    to_check = [one for one in together.values() if one.followed.is_to_be_checked(one.known, cloud_now=cloud_now)]
    # Those first that have waited longest: others may have to be checked again before it is their turn.
    to_check.sort(key=lambda one: (one.followed.over_since(cloud_now), -one.followed.silent))
    for member in to_check[:checks]:
        del together[member.id]
    late = is_late_round(now, interval)
    packed = _packed([*together.values()], size=size, rows=rows, late=late, now=now, cloud_now=cloud_now)
    return Plan(tuple(packed), singles, tuple(one.known for one in to_check[:checks]))


def is_due(known: KnownSession, now: float) -> bool:
    return known.fetch_at is not None and known.fetch_at <= now


def _packed(
    members: Sequence[Member], *, size: int, rows: int, late: bool, now: float, cloud_now: float
) -> Iterator[Batch]:
    """Batches of sessions of which the same windows are due, and about as much of them."""
    known = sorted(len(one.followed.series) for one in members if one.followed.series) or [USUAL_SERIES]
    usual = known[len(known) // 2]
    alike: dict[tuple[tuple[Window, ...], bool, bool, bool], list[list[Member]]] = defaultdict(list)
    left: dict[tuple[tuple[Window, ...], bool, bool, bool], int] = {}
    for member in members:
        windows = windows_due(member, cloud_now=cloud_now, over=late or member.followed.is_new)
        lately = all(member.since(window) >= cloud_now - LATELY for window in windows)
        further = member.followed.lacking % LATE_EVERY == 1
        unseen = member.followed.is_unseen
        key, series = (windows, lately, further, unseen), 0 if unseen else len(member.followed.series) or usual
        most = min(size, MOST_IDS) // (FURTHER_PARTS if further else 1)
        if not alike[key] or len(alike[key][-1]) >= most or series > left[key]:
            alike[key].append([])
            left[key] = MOST_SERIES
        alike[key][-1].append(member)
        left[key] -= series
    for (windows, _, further, _), chunks in alike.items():
        for chunk in chunks:
            if is_due(chunk[0].known, now):
                back = FURTHER_BACK if further else _back(chunk, rows, cloud_now=cloud_now)
                yield Batch(tuple(chunk), windows, back)


def _back(members: Sequence[Member], rows: int, *, cloud_now: float) -> int:
    """How far samples are read again: as far as the rows fit into a page, with those that are new by its turn."""
    rate = sum(member.rate for member in members)
    if not rate:
        return BACK
    newest = min(max(one.followed.newest.values()) for one in members if one.followed.newest)
    new = max(0.0, cloud_now - newest) + WAITING
    return int(max(BACK, min(MOST_BACK, rows / rate - new)))


def windows_due(member: Member, *, cloud_now: float, over: bool) -> tuple[Window, ...]:
    """The windows of the present, and those that are over but not settled, from time to time.

    What lies further ahead is read for a device whose clock is ahead; else it waits for its time.
    """
    newest = member.known.newest_point_at
    due = {window_at(cloud_now)}
    if newest is not None and newest > cloud_now:
        due |= {window_at(newest), window_at(newest + AHEAD)}
    for window in member.followed.windows:
        if window.start <= cloud_now < window.end + (SETTLING if over else OVER_FOR):
            due.add(window)
    return tuple(sorted(due))


def attribute(rows: Sequence[Datapoint], members: Sequence[Member]) -> dict[str, list[Datapoint]] | None:
    """Each data session's rows, by its id; None where a row can be of none that was requested."""
    # Rows have no session, only a group. From long before its session one may be of an earlier session of that group.
    shares: dict[str, list[Datapoint]] = {member.id: [] for member in members}
    by_group = {member.followed.group_id: member for member in members}
    for row in rows:
        member = by_group.get(row.group_id or "")
        if member is None or row.timestamp < member.known.session.start - MARGIN:
            return None
        shares[member.id].append(row)
    return shares


def not_proven(members: Sequence[Member], reads: Mapping[str, Sequence[Read]]) -> list[Member]:
    """The sessions that were never fetched of which fewer samples came than theirs counts.

    The others may be of another group: of a session that was moved, and then they seem to be those of another one.
    """
    samples = {one: sum(row.count for read in each for row in read.rows) for one, each in reads.items()}
    new = [one for one in members if one.followed.is_new]
    return [one for one in new if samples[one.id] < (one.known.session.datapoint_count or 1)]


def absorb_batch(
    member: Member,
    reads: Sequence[Read],
    emitted: Mapping[Window, Emitted],
    datatypes: Mapping[int, Datatype],
    *,
    now: float,
    cloud_now: float,
) -> tuple[Changes, Followed] | None:
    """What a batch has shown of a session; None where it has to be fetched on its own."""
    # It settles no window, and a fetch of its own reads all anew. Only that shows whose a series is that was not
    # published before.
    followed, known = member.followed, member.known
    if not followed.is_new and any(row.series_id not in followed.series for read in reads for row in read.rows):
        return None
    parts: list[Changes] = []
    for window, rows, whole in reads:
        before = followed.windows.get(window)
        found = absorb(
            known,
            window,
            rows,
            before=before,
            emitted=emitted[window],
            datatypes=datatypes,
            in_part=not whole,
            complete=False,
            now=now,
            cloud_now=cloud_now,
        )
        windows = [
            msgspec.structs.replace(read, state=as_partial(read.state, before, whole=whole)) for read in found.windows
        ]
        parts.append(msgspec.structs.replace(found, windows=tuple(windows)))
    changes = Changes.of_points(parts)
    states_after = [read.state for read in changes.windows]
    return changes, after_batch(followed, reads, states_after, session=known.session, now=now)


def as_partial(state: WindowState, before: WindowState | None, *, whole: bool) -> WindowState:
    """A window's state as a batch may leave it. What did not come may be there, too."""
    most = max(state.samples, before.samples) if before is not None and whole else state.samples
    return msgspec.structs.replace(
        state, settled=False, samples=most, raw_until=before.raw_until if before is not None else None
    )
