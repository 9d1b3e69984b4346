"""The event log and the sinks' places in it."""

import math
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from bace_bridge.domain.delivery import BRIDGE_LANE, Parked, Progress
from bace_bridge.domain.events import Event, LoggedEvent
from bace_bridge.store.sqlite import SqliteFile

MOST_BYTES = 2 * 1024 * 1024
"""What one reading of the log holds in memory at most, give or take one event."""

_COLUMNS = "seq, id, type, session_id, device_id, time, observed_at, data"


class SinkPlace(msgspec.Struct, frozen=True):
    """Where a sink stands: its cursor, its parked data sessions, and why it is disabled, if it is."""

    cursor: int
    parked: tuple[Parked, ...]
    disabled_reason: str | None


class EventLog:
    """The dispatcher's side of the store."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def open_sink(self, name: str, *, target: str) -> SinkPlace:
        """A sink's place. A new one starts at the log's end; a changed target takes a disabled one up again."""

        def work(connection: sqlite3.Connection) -> SinkPlace:
            row = connection.execute(
                "select cursor, target, disabled_reason from sinks where name = ?", (name,)
            ).fetchone()
            if row is None:
                cursor = _last_seq(connection)
                connection.execute("insert into sinks (name, cursor, target) values (?, ?, ?)", (name, cursor, target))
                return SinkPlace(cursor, (), None)
            reason = row[2]
            if row[1] != target:
                reason = None
                connection.execute(
                    "update sinks set target = ?, disabled_at = null, disabled_reason = null where name = ?",
                    (target, name),
                )
            lanes = connection.execute("select key, seq, attempts, at, reason from parked where sink = ?", (name,))
            return SinkPlace(row[0], tuple(Parked(*lane) for lane in lanes), reason)

        return await self._file.write(work)

    async def read(self, *, after: int, limit: int, most_bytes: int = MOST_BYTES) -> list[LoggedEvent]:
        """The next events after a place; fewer where they are large."""
        query = f"select {_COLUMNS} from events where seq > ? order by seq limit ?"  # noqa: S608  # column names only

        def work(connection: sqlite3.Connection) -> list[LoggedEvent]:
            found: list[LoggedEvent] = []
            size = 0
            for row in connection.execute(query, (after, limit)):
                found.append(LoggedEvent(row[0], Event(*row[1:])))
                size += len(row[7])
                if size >= most_bytes:
                    break
            return found

        return await self._file.read(work)

    async def read_lane(self, key: str, *, start: int, upto: int, limit: int) -> list[LoggedEvent]:
        """The events of a data session in the log from `start` to `upto`, both included."""
        condition = "session_id is null" if key == BRIDGE_LANE else "session_id = :key"
        query = f"""select {_COLUMNS} from events where {condition} and seq between :start and :upto
            order by seq limit :limit"""  # noqa: S608  # column names only
        given = {"key": key, "start": start, "upto": upto, "limit": limit}
        return await self._file.read(lambda connection: _logged(connection.execute(query, given)))

    async def record(self, sink: str, progress: Progress, *, now: float) -> None:
        """A sink's progress, in one transaction."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("update sinks set cursor = ? where name = ?", (progress.cursor, sink))
            connection.executemany(
                "delete from parked where sink = ? and key = ?", [(sink, key) for key in progress.released]
            )
            connection.executemany(
                "insert or replace into parked (sink, key, seq, attempts, at, reason) values (?, ?, ?, ?, ?, ?)",
                [(sink, one.key, one.seq, one.attempts, one.at, one.reason) for one in progress.parked],
            )
            connection.executemany(
                "insert or replace into dead_letters (sink, seq, key, attempts, reason, at) values (?, ?, ?, ?, ?, ?)",
                [(sink, one.seq, one.key, one.attempts, one.reason, now) for one in progress.dead],
            )

        await self._file.write(work)

    async def disable(self, sink: str, reason: str, *, now: float) -> None:
        query = "update sinks set disabled_at = ?, disabled_reason = ? where name = ?"
        await self._file.write(lambda connection: connection.execute(query, (now, reason, sink)))

    async def retire_others(self, names: Collection[str]) -> None:
        """Sinks that left the configuration keep their place, but nothing waits for them any more."""
        marks = ",".join("?" * len(names))
        query = f"update sinks set retired = name not in ({marks})"  # noqa: S608  # marks only
        await self._file.write(lambda connection: connection.execute(query, tuple(names)))

    async def backlogs(self) -> dict[str, int]:
        """Events after each sink's cursor, wanted or not; a cheap figure for the health answer."""

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            (last,) = connection.execute("select coalesce(max(seq), 0) from events").fetchone()
            return {
                name: max(0, last - cursor)
                for name, cursor in connection.execute("select name, cursor from sinks where not retired")
            }

        return await self._file.read(work)

    async def lanes_for_replay(
        self, *, upto: int, session: str | None, since: float | None
    ) -> tuple[list[Parked], int]:
        """Where the recorded events of a data session, or those observed since a time (epoch seconds), begin.

        Returns a place per data session and the number of events from there to `upto`.
        """

        def work(connection: sqlite3.Connection) -> tuple[list[Parked], int]:
            rows = connection.execute(
                """select coalesce(session_id, :bridge), min(seq), count(*) from events
                where (:session is null or session_id = :session) and (:since is null or observed_at >= :since)
                and seq <= :upto group by session_id""",
                {"bridge": BRIDGE_LANE, "session": session, "since": since, "upto": upto},
            ).fetchall()
            return [Parked(key, seq, 0, 0.0, "replay") for key, seq, _ in rows], sum(row[2] for row in rows)

        return await self._file.read(work)

    async def prune(self, *, observed_before: float, limit: int = 200, most_bytes: float = math.inf) -> int:
        """Deletes the oldest events that every sink is past, of at most so many bytes; returns how many.

        A disabled or retired sink holds nothing up, and a dead letter, which may lie for long, only its own event.
        Only the beginning of the log is looked at: what follows is younger, and there may be a million of it.
        """

        def work(connection: sqlite3.Connection) -> int:
            changes = connection.total_changes
            (needed,) = connection.execute(
                """with waiting as (select name, cursor from sinks where disabled_at is null and not retired)
                select min(seq) from (select cursor + 1 as seq from waiting
                union all select seq from parked where sink in (select name from waiting))"""
            ).fetchone()
            upto = needed if needed is not None else _last_seq(connection) + 1
            oldest = connection.execute(
                """select seq, observed_at, length(data) from events where seq < ?
                and seq not in (select seq from dead_letters) order by seq limit ?""",
                (upto, limit),
            ).fetchall()
            connection.executemany("delete from events where seq = ?", _to_prune(oldest, observed_before, most_bytes))
            return connection.total_changes - changes

        return await self._file.write(work, side="upkeep")

    async def search(
        self, *, after: int = 0, type_glob: str | None = None, session: str | None = None, limit: int = -1
    ) -> list[LoggedEvent]:
        """The log for people: the newest `limit` events after `after`, oldest first."""
        query = f"""select * from (select {_COLUMNS} from events where seq > :after
            and (:glob is null or type glob :glob) and (:session is null or session_id = :session)
            order by seq desc limit :limit) order by seq"""  # noqa: S608  # column names only
        given = {"after": after, "glob": type_glob, "session": session, "limit": limit}
        return await self._file.read(lambda connection: _logged(connection.execute(query, given)))


def _last_seq(connection: sqlite3.Connection) -> int:
    """The newest place ever given, also where its event was pruned."""
    row = connection.execute("select seq from sqlite_sequence where name = 'events'").fetchone()
    return 0 if row is None else int(row[0])


def _to_prune(oldest: Sequence[tuple[int, float, int]], before: float, most_bytes: float) -> list[tuple[int]]:
    """Up to the last old one: one before it that claims to be younger was written while the clock was ahead."""
    old = max((index for index, (_, at, _) in enumerate(oldest) if at < before), default=-1)
    found: list[tuple[int]] = []
    for seq, _, size in oldest[: old + 1]:
        if most_bytes <= 0:
            break
        found.append((seq,))
        most_bytes -= size
    return found


def _logged(rows: Iterable[Any]) -> list[LoggedEvent]:
    return [LoggedEvent(row[0], Event(*row[1:])) for row in rows]
