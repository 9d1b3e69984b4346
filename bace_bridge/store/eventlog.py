"""The event log and the sinks' places in it."""

import math
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from bace_bridge.domain.events import Event, LoggedEvent
from bace_bridge.domain.lanes import BRIDGE_LANE, LETTER_LANE, UNDER_WAY, FailedAttempt, Parked, Progress, letter_place
from bace_bridge.store.asked import ask, asked, lanes_for_replay, park, seen_to, take
from bace_bridge.store.journal import append_events
from bace_bridge.store.sqlite import SqliteFile

MOST_BYTES = 2 * 1024 * 1024
"""What one reading of the log holds in memory at most, give or take one event."""

MOST_BYTES_OF_A_LANE = 256 * 1024

ATTEMPTS_KEPT = 1000
"""Failed attempts that are kept, a sink."""

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
        """A sink's place. A new one starts at the log's end; a changed target takes a disabled one up again.

        What was asked for while the bridge was not running is parked with the rest.
        """

        def work(connection: sqlite3.Connection) -> SinkPlace:
            connection.execute(
                "insert or ignore into sinks (name, cursor, target) values (?, ?, ?)",
                (name, _last_seq(connection), target),
            )
            take(connection, name)
            row = connection.execute(
                "select cursor, target, disabled_reason from sinks where name = ?", (name,)
            ).fetchone()
            reason = row[2]
            if row[1] != target:
                reason = None
                connection.execute(
                    "update sinks set target = ?, disabled_at = null, disabled_reason = null where name = ?",
                    (target, name),
                )
            lanes = connection.execute(
                "select key, seq, attempts, at, reason, replay_upto from parked where sink = ?", (name,)
            )
            return SinkPlace(row[0], tuple(Parked(*lane) for lane in lanes), reason)

        return await self._file.write(work)

    async def read(self, *, after: int, limit: int, most_bytes: int = MOST_BYTES) -> list[LoggedEvent]:
        """The next events after a place; fewer where they are large."""
        query = f"select {_COLUMNS} from events where seq > ? order by seq limit ?"  # noqa: S608  # column names only

        return await self._file.read(
            lambda connection: _as_far_as(connection.execute(query, (after, limit)), most_bytes=most_bytes)
        )

    async def read_lane(self, key: str, *, start: int, upto: int, limit: int) -> list[LoggedEvent]:
        """The events of a lane in the log from `start` to `upto`, both included; fewer where they are large."""
        if (letter := letter_place(key)) is not None:
            return await self._read_letter(letter) if start <= letter <= upto else []
        condition = "session_id is null" if key == BRIDGE_LANE else "session_id = :key"
        query = f"""select {_COLUMNS} from events where {condition} and seq between :start and :upto
            order by seq limit :limit"""  # noqa: S608  # column names only
        given = {"key": key, "start": start, "upto": upto, "limit": limit}
        return await self._file.read(
            lambda connection: _as_far_as(connection.execute(query, given), most_bytes=MOST_BYTES_OF_A_LANE)
        )

    async def _read_letter(self, seq: int) -> list[LoggedEvent]:
        query = f"select {_COLUMNS} from events where seq = ?"  # noqa: S608  # column names only
        found = await self._file.read(lambda connection: _logged(connection.execute(query, (seq,))))
        return [msgspec.structs.replace(one, alone=True) for one in found]

    async def record(self, sink: str, progress: Progress, *, now: float) -> None:
        """A sink's progress, in one transaction."""

        def work(connection: sqlite3.Connection) -> None:
            append_events(connection, progress.told)
            if progress.failed:
                _keep_attempts(connection, sink, progress.failed)
            connection.execute("update sinks set cursor = ? where name = ?", (progress.cursor, sink))
            connection.executemany(
                "delete from parked where sink = ? and key = ?", [(sink, key) for key in progress.released]
            )
            park(connection, sink, progress.parked)
            seen_to(connection, sink, progress.taken)
            connection.executemany(
                "insert or replace into dead_letters (sink, seq, key, attempts, reason, at) values (?, ?, ?, ?, ?, ?)",
                [(sink, one.seq, one.key, one.attempts, one.reason, now) for one in progress.dead],
            )

        await self._file.write(work)

    async def disable(self, sink: str, reason: str, told: Event, *, now: float) -> None:
        """The sink is not called any more; `told` says so to the others, in the same transaction."""

        def work(connection: sqlite3.Connection) -> None:
            query = "update sinks set disabled_at = ?, disabled_reason = ? where name = ?"
            connection.execute(query, (now, reason, sink))
            append_events(connection, (told,))

        await self._file.write(work)

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

    async def ask_replay(self, sink: str, *, session: str | None, since: float | None) -> int:
        """Asks for recorded events again, of a data session or those observed since a time (epoch seconds).

        Returns how many there are. The sink's dispatcher takes what was asked for, at once or when it starts.
        """

        def work(connection: sqlite3.Connection) -> int:
            lanes, count = lanes_for_replay(connection, session=session, since=since)
            ask(connection, sink, lanes)
            return count

        return await self._file.write(work)

    async def asked(self, sink: str) -> list[Parked]:
        """What was asked for of a sink; it stays so until the progress that it led to is recorded as `taken`."""
        return await self._file.read(lambda connection: asked(connection, sink))

    async def asked_sinks(self) -> set[str]:
        """The sinks of which somebody asked for something."""
        query = "select distinct sink from asked"
        return await self._file.read(lambda connection: {row[0] for row in connection.execute(query)})

    async def deliveries_waiting(self) -> dict[str, tuple[int, int]]:
        """Per sink the numbers of its parked lanes, without those under way, and of its dead letters, if any."""
        query = """select sink, sum(parked), sum(dead) from (
            select sink, 1 as parked, 0 as dead from parked where reason <> ?
            union all select sink, 0, 1 from dead_letters) group by sink"""
        given = (UNDER_WAY,)
        return await self._file.read(
            lambda connection: {row[0]: (row[1], row[2]) for row in connection.execute(query, given)}
        )

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
                union all select seq from parked where sink in (select name from waiting) and key not glob ?
                union all select seq from asked where sink in (select name from waiting) and key not glob ?)""",
                (f"{LETTER_LANE}*", f"{LETTER_LANE}*"),
            ).fetchone()
            upto = needed if needed is not None else _last_seq(connection) + 1
            oldest = connection.execute(
                """select seq, observed_at, length(data) from events where seq < ?
                and seq not in (select seq from dead_letters union all select seq from parked where key glob ?
                union all select seq from asked where key glob ?) order by seq limit ?""",
                (upto, f"{LETTER_LANE}*", f"{LETTER_LANE}*", limit),
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


def _as_far_as(rows: Iterable[Any], *, most_bytes: int) -> list[LoggedEvent]:
    """Events of so many bytes, give or take one event."""
    found: list[LoggedEvent] = []
    size = 0
    for row in rows:
        found.append(LoggedEvent(row[0], Event(*row[1:])))
        size += len(row[7])
        if size >= most_bytes:
            break
    return found


def _keep_attempts(connection: sqlite3.Connection, sink: str, failed: Iterable[FailedAttempt]) -> None:
    connection.executemany(
        "insert into attempts (sink, seq, number, at, seconds, status, reason, answer) values (?, ?, ?, ?, ?, ?, ?, ?)",
        [(sink, one.seq, one.number, one.at, one.seconds, one.status, one.reason, one.answer) for one in failed],
    )
    connection.execute(
        """delete from attempts where sink = ?1 and id <= (
        select id from attempts where sink = ?1 order by id desc limit 1 offset ?2)""",
        (sink, ATTEMPTS_KEPT),
    )


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
