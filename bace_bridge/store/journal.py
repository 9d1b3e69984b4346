"""What polling keeps: known data sessions, windows, newest points, and the events that it emits."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from functools import partial

import msgspec

from bace_bridge.polling.rules.changes import Changes, CloudOutage, PollState, Stage, WindowRead
from bace_bridge.polling.rules.datapoints import Emitted, Series
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import Window, WindowState
from bace_bridge.store.device_states import WITH_DEVICES
from bace_bridge.store.facts import decoded_fact, write_fact
from bace_bridge.store.lanes import append_events
from bace_bridge.store.sqlite import SqliteFile, pack, unpack

WATCH = "watch"
OUTAGE = "trouble"


@dataclass(eq=False)
class Journal:
    """Polling's side of the store.

    `grew` is called after events were added to the log, `changed` with the devices whose state is another one now.
    `ensure_room` raises StoreAtCap while nothing more may be taken in.
    """

    file: SqliteFile
    _: KW_ONLY
    grew: Callable[[], None] = lambda: None
    changed: Callable[[Collection[str]], None] = lambda _: None
    ensure_room: Callable[[], None] = lambda: None

    async def commit(self, changes: Changes) -> None:
        """Everything in `changes`, in one transaction. An event whose id is in the log already is the same fact.

        At the store's cap only what the bridge says of itself is taken; the rest raises StoreAtCap.
        """
        # What the bridge says of itself is small, and a full store is the very thing that it has to report.
        if changes.known or changes.windows or changes.latest or any(one.session_id for one in changes.events):
            self.ensure_room()
        cut_off: asyncio.CancelledError | None = None
        try:
            await self.file.write(partial(_write, changes), side="known")
        except asyncio.CancelledError as error:
            # As by a reload: the store's thread goes on with what it has begun, and no other part would say so.
            cut_off = error
        if changes.events:
            self.grew()
        if devices := changes.devices:
            self.changed(devices)
        if cut_off is not None:
            raise cut_off

    async def poll_state(self) -> PollState | None:
        return await self.file.read(lambda connection: decoded_fact(connection, WATCH, PollState))

    async def outage(self) -> CloudOutage:
        """The cloud's outage that was reported last and is not over; an empty one where there is none."""
        found = await self.file.read(lambda connection: decoded_fact(connection, OUTAGE, CloudOutage))
        return found or CloudOutage()

    async def known(self, ids: Collection[str]) -> dict[str, KnownSession]:
        """The known sessions among `ids`."""
        query = f"select known from sessions where id in ({','.join('?' * len(ids))})"  # noqa: S608  # marks only
        return {one.session.id: one for one in await self._known(query, *ids)} if ids else {}

    async def known_after(self, stage: Stage, session_id: str, limit: int) -> list[KnownSession]:
        """The next sessions of one stage, by id."""
        # An active one is unfinished; said so, SQLite takes the index of the few that are.
        stages = {
            "unfinished": "unfinished",
            "active": "unfinished and active",
            "finished": "not unfinished and not removed",
        }
        query = f"select known from sessions where {stages[stage]} and id > ? order by id limit ?"  # noqa: S608  # our own text
        return await self._known(query, session_id, limit)

    async def device_labels(self) -> dict[str, str | None]:
        """The labels, by id, of the devices whose data sessions are known: each one's newest session has it."""
        query = f"""{WITH_DEVICES}
            select device, (select json_extract(known, '$.device_label') from sessions
              where group_id = device and removed = 0 order by active desc, start desc limit 1)
            from devices where device is not null"""  # noqa: S608  # our own text
        return await self.file.read(lambda connection: dict(connection.execute(query).fetchall()))

    async def overdue_ends(self, seen_before: float) -> list[KnownSession]:
        """The sessions whose end was seen before a time and has not been emitted yet."""
        query = "select known from sessions where end_waits_since < ? and not over_when_found"
        return await self._known(query, seen_before)

    async def due_fetches(self, now: float, limit: int, *, late: bool | None = None) -> list[KnownSession]:
        """The sessions whose datapoints are to be fetched now: those seen live first, newest history after them.

        `late` chooses between the two.
        """
        kinds = "0, 1" if late is None else str(int(late))
        query = f"""select known from sessions where over_when_found in ({kinds}) and fetch_at <= ?
            order by over_when_found, fetch_at, start desc limit ?"""  # noqa: S608  # our own text
        return await self._known(query, now, limit)

    async def next_fetch_at(self, *, without: Collection[str]) -> float | None:
        """When the next fetch is due, but of the sessions in `without`."""
        first = f"""select fetch_at from sessions where over_when_found = {{late}} and fetch_at is not null
            and id not in ({",".join("?" * len(without))}) order by fetch_at limit 1"""  # noqa: S608  # marks only
        # Two look-ups in the index that begins with `over_when_found`: for both at once SQLite would sort all of it.
        query = f"""select min(at) from (
            select ({first.format(late=0)}) as at union all select ({first.format(late=1)}))"""  # noqa: S608  # our own text
        (at,) = await self.file.read(lambda connection: connection.execute(query, (*without, *without)).fetchone())
        return None if at is None else float(at)

    async def windows(self, session_ids: Collection[str]) -> dict[str, dict[Window, WindowState]]:
        """The windows of each of these sessions, empty where it has none."""
        marks = ",".join("?" * len(session_ids))
        query = f"select session_id, state from windows where session_id in ({marks})"  # noqa: S608  # marks only
        stored = await self.file.read(
            lambda connection: [
                (session_id, msgspec.json.decode(text, type=WindowState))
                for session_id, text in connection.execute(query, tuple(session_ids))
            ]
        )
        found: dict[str, dict[Window, WindowState]] = {one: {} for one in session_ids}
        for session_id, state in stored:
            found[session_id][state.window] = state
        return found

    async def emitted(self, window: Window, session_ids: Collection[str]) -> dict[str, Emitted]:
        """What was emitted of this window, by data session; empty for those of which it was never read."""
        where = f'session_id in ({",".join("?" * len(session_ids))}) and start = ? and "end" = ? order by session_id'
        queries = (
            f"select session_id, emitted from windows where {where}, start",  # noqa: S608  # our own text, and marks
            f"select session_id, points from slices where {where}, minute",  # noqa: S608  # our own text, and marks
        )
        stored = await self.file.read(
            lambda connection: [
                (session_id, msgspec.msgpack.decode(unpack(blob), type=Emitted))
                for query in queries
                for session_id, blob in connection.execute(query, (*session_ids, window.start, window.end))
                if blob
            ]
        )
        found: dict[str, Emitted] = {one: {} for one in session_ids}
        for session_id, points in stored:
            for series, stamps in points.items():
                found[session_id].setdefault(series, {}).update(stamps)
        return found

    async def series(self, ids: Collection[str]) -> dict[str, Series]:
        """What these series are of, as far as that is known."""
        query = "select id, source_device, datatype from series where id = ?"
        return await self.file.read(
            lambda connection: {
                row[0]: Series(*row) for one in ids for row in connection.execute(query, (one,)).fetchall()
            }
        )

    async def _known(self, query: str, *given: object) -> list[KnownSession]:
        return await self.file.read(
            lambda connection: [
                msgspec.json.decode(text, type=KnownSession) for (text,) in connection.execute(query, given)
            ]
        )


def _write(changes: Changes, connection: sqlite3.Connection) -> None:
    # One transaction: what is known without its events would lose them, events without what is known
    # would come again with the next poll (with the same ids, so that at least the log keeps one of each).
    for one in changes.known:
        _write_session(connection, one)
    for read in changes.windows:
        _write_window(connection, read)
    # The newest point of a session that was removed since, moved to another device, or is over while a later one has
    # points, is none any more: a gateway's clock may have been ahead.
    connection.executemany(_WRITE_LATEST, [msgspec.structs.astuple(one) for one in changes.latest])
    connection.executemany(_WRITE_SERIES, changes.series)
    for session_id, summary in changes.summaries:
        packed = pack(msgspec.json.encode(summary))
        connection.execute("insert or replace into summaries values (?, ?)", (session_id, packed))
    append_events(connection, changes.events)
    if changes.watch is not None:
        write_fact(connection, WATCH, msgspec.json.encode(changes.watch).decode())
    if changes.outage is not None:
        write_fact(connection, OUTAGE, msgspec.json.encode(changes.outage).decode())


def _write_session(connection: sqlite3.Connection, one: KnownSession) -> None:
    session = one.session
    changing = (one.fetch_at, msgspec.json.encode(one).decode())
    where = (
        session.id,
        session.group_id,
        session.start,
        session.state == "active" and not one.removed,
        one.unfinished,
        one.removed,
        one.over_when_found,
        one.end_seen_at if one.end_emitted is None and not one.removed else None,
    )
    # SQLite writes an index for each column that an update names, even where its value stays. Most often only what
    # is known and when to fetch next have changed, then also when it was updated: so the narrowest update first.
    for query, given in (
        (_SAME_UPDATE, (*changing, *where, session.updated_at)),
        (_NEW_UPDATE, (*changing, session.updated_at, *where)),
        (_REPLACE, (*changing, session.updated_at, *where)),
    ):
        if connection.execute(query, given).rowcount:
            break


_SAME = """where id = ? and (group_id, start, active, unfinished, removed, over_when_found, end_waits_since)
    is (?, ?, ?, ?, ?, ?, ?)"""
_SAME_UPDATE = f"update sessions set fetch_at = ?, known = ? {_SAME} and updated_at is ?"  # noqa: S608  # our own text
_NEW_UPDATE = f"update sessions set fetch_at = ?, known = ?, updated_at = ? {_SAME}"  # noqa: S608  # our own text
_REPLACE = """insert or replace into sessions (fetch_at, known, updated_at, id,
    group_id, start, active, unfinished, removed, over_when_found, end_waits_since)
    values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


_WRITE_LATEST = """insert into latest (device_id, source_device, datatype, timestamp, payload, session_id)
    values (?, ?, ?, ?, ?, ?)
    on conflict (device_id, source_device, datatype) do update
    set timestamp = excluded.timestamp, payload = excluded.payload, session_id = excluded.session_id
    where excluded.timestamp >= latest.timestamp or exists (
      select 1 from sessions as before where id = latest.session_id and (removed or group_id <> latest.device_id
        or (not active and start < (select start from sessions where id = excluded.session_id)))
    )"""

_WRITE_SERIES = """insert into series (id, source_device, datatype) values (?, ?, ?)
    on conflict (id) do update set source_device = excluded.source_device, datatype = excluded.datatype
    where (source_device, datatype) <> (excluded.source_device, excluded.datatype)"""

SLICE = 60
"""Seconds: some hundred points of a few series at one a second, which is a page or two of SQLite's."""


def _write_window(connection: sqlite3.Connection, one: WindowRead) -> None:
    """Writes the slices that changed; what an earlier version kept in the window's own row becomes slices."""
    row = (one.session_id, one.state.start, one.state.end)
    # Where nothing changed nothing is written: a live window is read every few seconds, and memory cards wear.
    connection.execute(
        """insert into windows (session_id, start, "end", state) values (?, ?, ?, ?)
        on conflict (session_id, start, "end") do update
        set state = excluded.state where state <> excluded.state""",
        (*row, msgspec.json.encode(one.state).decode()),
    )
    if one.emitted is None:
        return
    where = 'session_id = ? and start = ? and "end" = ?'
    stored = dict(connection.execute(f"select minute, points from slices where {where}", row))  # noqa: S608  # our own text
    slices: dict[int, Emitted] = defaultdict(dict)
    for series, points in one.emitted.items():
        for stamp, point in points.items():
            slices[int(stamp // SLICE)].setdefault(series, {})[stamp] = point
    # A page of a live session changes its last minute only: the other slices of the window are not written again.
    after = {minute: pack(msgspec.msgpack.encode(points)) for minute, points in slices.items()}
    connection.execute(f"update windows set emitted = null where {where} and emitted is not null", row)  # noqa: S608  # our own text
    connection.executemany(
        'delete from slices where session_id = ? and start = ? and "end" = ? and minute = ?',
        [(*row, minute) for minute in stored.keys() - after.keys()],
    )
    connection.executemany(
        """insert into slices (session_id, start, "end", minute, points) values (?, ?, ?, ?, ?)
        on conflict (session_id, start, "end", minute) do update set points = excluded.points""",
        [(*row, minute, points) for minute, points in after.items() if stored.get(minute) != points],
    )
