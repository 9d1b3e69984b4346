"""The rows of lanes: made with the events, claimed, recorded, and moved by anybody. Functions within a transaction."""

import sqlite3
from collections.abc import Collection, Iterable
from itertools import zip_longest
from typing import Any

import msgspec
from msgspec.structs import replace

from bace_bridge.events.types import (
    BRIDGE_LANE,
    LETTER_LANE,
    Claim,
    Claimed,
    DeadLetter,
    Event,
    Filter,
    Lane,
    LaneRecord,
    LoggedEvent,
    Piece,
    Recorded,
    letter_lane,
    letter_seq,
    session_lane,
    wanted,
)
from bace_bridge.store.facts import read_fact, write_fact
from bace_bridge.store.sqlite import pack, unpack

COLUMNS = "seq, id, type, session_id, device_id, time, observed_at, data"

LEAST = 20
"""Events that are read of a lane at once, at least; of few lanes more, up to `MOST`."""

MOST = 500
MOST_BYTES = 256 * 1024
"""What one reading of a lane holds at most, give or take one event."""

LANES_COUNTED = 1000
"""Lanes whose waiting events are counted at once."""

ASKED_FOR = "asked for"

_MOVES = "moves"
_LANE = "lane, seq, attempts, due_at, reason, replay_through, behind, version"


def append_events(connection: sqlite3.Connection, events: Iterable[Event]) -> None:
    """Adds events to the log, and a row for each lane that a sink wants and that has none.

    An event whose id is in the log already is the same fact. A row's version is the seq of the event that made it.
    """
    filters = [
        (name, msgspec.json.decode(filter_, type=Filter))
        for name, filter_ in connection.execute("select name, filter from sinks where routed_through is null")
    ]
    made = set[tuple[str, str]]()
    # The event first and its rows after it, in one transaction: a row's version is the event's seq, which SQLite
    # gives, and a crash between the two leaves neither.
    for one in events:
        added = connection.execute(
            """insert into events (id, type, session_id, device_id, time, observed_at, data)
            values (?, ?, ?, ?, ?, ?, ?) on conflict (id) do nothing""",
            (one.id, one.type, one.session_id, one.device_id, one.time, one.observed_at, pack(one.data)),
        )
        if added.rowcount:
            lane, seq = session_lane(one), added.lastrowid
            sinks = [sink for sink, filter_ in filters if (sink, lane) not in made and wanted(one, filter_)]
            made.update((sink, lane) for sink in sinks)
            connection.executemany(
                "insert into lanes (sink, lane, seq, version) values (?, ?, ?, ?) on conflict (sink, lane) do nothing",
                [(sink, lane, seq, seq) for sink in sinks],
            )


def last_seq(connection: sqlite3.Connection) -> int:
    """The newest seq ever given, also where its event was pruned."""
    # `max(seq)` would fall back when the newest events are deleted; autoincrement remembers, so no seq comes twice.
    row = connection.execute("select seq from sqlite_sequence where name = 'events'").fetchone()
    return 0 if row is None else int(row[0])


# --- what a dispatcher does


def claim(connection: sqlite3.Connection, sink: str, filter_: Filter, asked: Claim, *, now: float) -> Claimed:
    """The sink's lanes that are due, each with its next events. It writes nothing: the dispatcher knows what it has."""
    begun: list[Piece] = []
    read_on: list[Piece] = []
    more: list[bool] = []
    for behind, share in ((False, asked.fresh), (True, asked.behind)):
        due = _due(connection, sink, share.lanes + 1, behind=behind, held=asked.held, now=now)
        on = [(lane, start) for lane, start in asked.read_on if lane.behind == behind]
        events, size = share.events, share.size
        # Of few lanes many events each, of many lanes a few: one long lane must not keep the others out of memory.
        limit = min(MOST, max(LEAST, events // max(1, len(due) + len(on))))
        wanted_now = [(lane, lane.seq, begun) for lane in due[: share.lanes]] + [(*one, read_on) for one in on]
        taken = 0
        for lane, start, pieces in wanted_now:
            if events > 0 and size > 0:
                read, complete = read_lane(connection, lane.key, start, limit)
                # The filter of now: what the sink wanted when the row was made may be another one. What it does not
                # want counts as read, so that a lane with nothing for it still comes to its end.
                found = tuple(one for one in read if wanted(one.event, filter_))
                pieces.append(Piece(lane, found, read[-1].seq if read else start - 1, complete))
                events -= len(found)
                size -= sum(len(one.event.data) for one in found)
                taken += pieces is begun
        more.append(taken < len(due))
    (next_due,) = connection.execute(
        "select min(due_at) from lanes where sink = ? and behind = 1 and due_at > ?", (sink, now)
    ).fetchone()
    return Claimed(tuple(begun), tuple(read_on), more[0], more[1], next_due)


def _due(
    connection: sqlite3.Connection, sink: str, limit: int, *, behind: bool, held: Collection[str], now: float
) -> list[Lane]:
    """Lanes of one kind that are not held, those that wait longest first.

    What was asked for is due at 0: it takes turns with what has failed, or a retry would wait for a whole replay.
    """
    found: list[list[Lane]] = []
    # Two ranges of one index, each already in order: `order by due_at` alone would put all that was asked for first.
    for when in ("due_at > 0 and due_at <= ?", "due_at <= min(0, ?)"):
        rows = connection.execute(
            f"select {_LANE} from lanes where sink = ? and behind = ? and {when} order by due_at, seq limit ?",  # noqa: S608  # our own text
            (sink, behind, now, len(held) + limit),
        )
        lanes = (Lane(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6]), row[7]) for row in rows)
        found.append([one for one in lanes if one.key not in held])
    return [one for pair in zip_longest(*found) for one in pair if one is not None][:limit]


def read_lane(connection: sqlite3.Connection, key: str, start: int, limit: int) -> tuple[list[LoggedEvent], bool]:
    """The events of a lane from a seq on, fewer where they are large; and whether these are all of them."""
    if (letter := letter_seq(key)) is not None:
        rows = connection.execute(f"select {COLUMNS} from events where seq = ?", (letter,))  # noqa: S608  # column names only
        return [replace(one, alone=True) for one in map(logged, rows) if letter >= start], True
    query = f"select {COLUMNS} from events where session_id is ? and seq >= ? order by seq limit ?"  # noqa: S608  # column names only
    rows = connection.execute(query, (None if key == BRIDGE_LANE else key, start, limit))
    found, cut = as_far_as(rows, MOST_BYTES)
    return found, not cut and len(found) < limit


def as_far_as(rows: Iterable[Any], most_bytes: int) -> tuple[list[LoggedEvent], bool]:
    """Events of so many bytes, give or take one event; and whether that is why they end."""
    # One at a time from the cursor: 500 events of 64 KiB each would be read before anybody could count them.
    found: list[LoggedEvent] = []
    for one in map(logged, rows):
        found.append(one)
        most_bytes -= len(one.event.data)
        if most_bytes <= 0:
            return found, True
    return found, False


def record_lanes(connection: sqlite3.Connection, sink: str, records: Iterable[LaneRecord], *, now: float) -> Recorded:
    """Moves lanes on. Where a row has another version it was moved by somebody else, and nothing happens to it."""
    moved, more, dead = set[str](), False, list[DeadLetter]()
    for record in records:
        lane = record.lane
        # Drained by what the dispatcher has read; the log itself decides, as more may have come since.
        if record.drained and _vanishes(connection, sink, lane):
            dead += record.dead
            continue
        # The version and not the seq: somebody may have moved the row away and back, and a row that was deleted
        # and made again looks like the old one. Versions are never given twice, so one that differs always counts.
        changed = connection.execute(
            """update lanes set seq = ?, attempts = ?, due_at = ?, reason = ?, behind = ?
            where sink = ? and lane = ? and version = ?""",
            (lane.seq, lane.attempts, lane.due_at, lane.reason, lane.behind, sink, lane.key, lane.version),
        ).rowcount
        if changed:
            more = more or record.drained
            dead += record.dead
        else:
            moved.add(lane.key)
    connection.executemany(
        "insert or replace into dead_letters (sink, seq, key, attempts, reason, at) values (?, ?, ?, ?, ?, ?)",
        [(sink, one.seq, one.key, one.attempts, one.reason, now) for one in dead],
    )
    if reports := [one.report for one in dead if one.report is not None]:
        (count,) = connection.execute("select count(*) from dead_letters where sink = ?", (sink,)).fetchone()
        append_events(connection, [report(count) for report in reports])
    return Recorded(frozenset(moved), more)


def _vanishes(connection: sqlite3.Connection, sink: str, lane: Lane) -> bool:
    """A letter is one event; a data session may have got more meanwhile."""
    given = (sink, lane.key, lane.version)
    # Deleted by the same condition as it is updated: a row that was moved meanwhile stays.
    query = "delete from lanes where sink = ? and lane = ? and version = ?"
    if letter_seq(lane.key) is not None:
        return connection.execute(query, given).rowcount > 0
    query += " and not exists (select 1 from events where session_id is ? and seq >= ?)"
    return connection.execute(query, (*given, None if lane.key == BRIDGE_LANE else lane.key, lane.seq)).rowcount > 0


# --- what anybody does


def replay(connection: sqlite3.Connection, sink: str, sessions: Iterable[str | None], *, since: float | None) -> int:
    """Goes back to recorded events of these data sessions, or to those observed since a time; returns how many.

    None is the bridge itself. A lane that waits there or before it is tried at once. What was not delivered yet
    is no replay.
    """
    last = last_seq(connection)
    # A sink that has never run has no row yet: with one that is routed to the end it finds its lanes when it does.
    connection.execute("insert or ignore into sinks (name, routed_through) values (?, ?)", (sink, last))
    (routed,) = connection.execute("select routed_through from sinks where name = ?", (sink,)).fetchone()
    given = {
        "sink": sink,
        "reason": ASKED_FOR,
        "delivered": last if routed is None else min(last, routed),
        "version": next_version(connection),
        "since": since,
    }
    where = "session_id is :session" + ("" if since is None else " and observed_at >= :since")
    count = 0
    for session in sessions:
        found = {**given, "session": session}
        (events,) = connection.execute(f"select count(*) from events where {where}", found).fetchone()  # noqa: S608  # our own text
        if events:
            connection.execute(_GO_BACK.format(where=where), found)
            count += events
    return count


def sessions_after(connection: sqlite3.Connection, session: str, limit: int) -> list[str]:
    """The next data sessions of which events are recorded: one step in an index each."""
    rows = connection.execute(
        """with recursive next (id) as (
          select min(session_id) from events where session_id > ?
          union all select (select min(session_id) from events where session_id > next.id) from next
          where next.id is not null limit ?)
        select id from next where id is not null""",
        (session, limit),
    )
    return [row[0] for row in rows]


def catch_up(connection: sqlite3.Connection, sink: str, *, after: int) -> None:
    """Makes rows for all that came while none were made for the sink."""
    given = {"sink": sink, "reason": "", "delivered": after, "version": next_version(connection)}
    connection.execute(_GO_BACK.format(where="seq > :delivered"), given)


# The lane may have a row that waits. It is only ever moved back: forward would skip what waits between. From the old
# seq on nothing is a replay, since it was never delivered.
_GO_BACK = f"""insert into lanes (sink, lane, seq, reason, replay_through, behind, version)
    select :sink, coalesce(session_id, '{BRIDGE_LANE}'), min(seq), :reason,
    iif(min(seq) <= :delivered, :delivered, 0), 1, :version from events where {{where}} group by session_id
    on conflict (sink, lane) do update set
      due_at = 0,
      behind = 1,
      version = excluded.version,
      attempts = iif(excluded.seq < seq, 0, attempts),
      reason = iif(excluded.seq < seq, excluded.reason, reason),
      replay_through = iif(excluded.seq < seq and :reason <> '', max(replay_through, seq - 1), replay_through),
      seq = min(seq, excluded.seq)"""  # noqa: S608  # our own text


def retry_letters(connection: sqlite3.Connection, letters: Collection[tuple[str, int]]) -> int:
    """Each dead letter, a sink and a seq, becomes a lane of its own with one event; returns how many."""
    version = next_version(connection)
    connection.executemany(
        """insert into lanes (sink, lane, seq, reason, behind, version) values (?, ?, ?, ?, 1, ?)
        on conflict (sink, lane) do update set due_at = 0, version = excluded.version""",
        [(sink, letter_lane(seq), seq, ASKED_FOR, version) for sink, seq in letters],
    )
    # One transaction: a letter is either dead or a lane of its own, also where the command is killed.
    connection.executemany("delete from dead_letters where sink = ? and seq = ?", letters)
    return len(letters)


def next_version(connection: sqlite3.Connection) -> int:
    """Never given before, and no seq of an event."""
    # Negative, since rows that come with an event have its seq for a version: the two never meet.
    last = int(read_fact(connection, _MOVES) or 0) + 1
    write_fact(connection, _MOVES, str(last))
    return -last


# --- what is still needed


def prune(connection: sqlite3.Connection, *, observed_before: float, limit: int, most_bytes: float) -> int:
    """Deletes the oldest events that no sink needs any more, but those of dead letters; returns how many."""
    # The first seq that a sink has still to come to; letters hold only their own event.
    # Each part is the first entry of an index of its sink: `min(seq)` over all lanes would read millions of rows.
    (needed,) = connection.execute(
        """select min(needed) from (
          select (select seq from lanes where sink = name and behind = 0 and due_at = 0 order by seq limit 1) as needed
          from sinks where routed_through is null
          union all
          select (select min(seq) from lanes where sink = name and behind = 0 and due_at > 0)
          from sinks where routed_through is null
          union all
          select (select seq from lanes where sink = name and behind = 1 and lane not glob ? order by seq limit 1)
          from sinks where routed_through is null)""",
        (f"{LETTER_LANE}*",),
    ).fetchone()
    # Of the beginning of the log alone: what follows is younger, and there may be a million of it.
    # `cross join` fixes the order of the loops in SQLite: each event looks into an index once a sink.
    oldest = connection.execute(
        """select seq, observed_at, length(data) from events where seq < ?
        and not exists (select 1 from sinks cross join dead_letters on sink = name and dead_letters.seq = events.seq)
        and not exists (select 1 from sinks cross join lanes on sink = name and lane = ? || events.seq
          where routed_through is null)
        order by seq limit ?""",
        (last_seq(connection) + 1 if needed is None else needed, LETTER_LANE, limit),
    ).fetchall()
    # Up to the last old one: one before it that claims to be younger was written while the clock was ahead.
    old = max((index for index, (_, at, _) in enumerate(oldest) if at < observed_before), default=-1)
    pruned = 0
    for seq, _, size in oldest[: old + 1]:
        if most_bytes <= 0:
            break
        pruned += connection.execute("delete from events where seq = ?", (seq,)).rowcount
        most_bytes -= size
    return pruned


def count_waiting(connection: sqlite3.Connection, sink: str, after: str) -> tuple[int, str | None]:
    """The events that wait on the sink's next lanes, by name; and the lane to go on after, None at the end."""
    # On after a name and not after a number of rows: lanes come and go between two pieces.
    rows = connection.execute(
        """select lane, iif(lane glob ?, 1, (select count(*) from events where seq >= lanes.seq
        and session_id is nullif(lane, ?))) from lanes where sink = ? and lane > ? order by lane limit ?""",
        (f"{LETTER_LANE}*", BRIDGE_LANE, sink, after, LANES_COUNTED),
    ).fetchall()
    return sum(row[1] for row in rows), rows[-1][0] if len(rows) == LANES_COUNTED else None


def logged(row: Any) -> LoggedEvent:
    """From a row with `COLUMNS`."""
    seq, id_, type_, session_id, device_id, time, observed_at, data = row
    return LoggedEvent(seq, Event(id_, type_, session_id, device_id, time, observed_at, unpack(data)))
