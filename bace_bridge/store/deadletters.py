"""The deliveries that were given up or wait for their next attempt, for the people who handle them."""

import sqlite3
from typing import Literal

import msgspec

from bace_bridge.events.types import LETTER_LANE, FailedAttempt
from bace_bridge.store.lanes import retry_letters
from bace_bridge.store.sqlite import SqliteFile


class Which(msgspec.Struct, frozen=True):
    """Which deliveries are meant: those of a sink, of a data session, of these events; everything empty: all."""

    sink: str | None = None
    session: str | None = None
    events: tuple[str, ...] = ()


class StoredDelivery(msgspec.Struct, frozen=True):
    """A delivery that was given up at `at`, or whose next attempt is then (epoch seconds).

    `behind` is the number of later events of the lane that wait behind a parked one.
    """

    state: Literal["dead", "parked"]
    sink: str
    seq: int
    event_id: str
    event_type: str
    session_id: str | None
    device_id: str | None
    attempts: int
    at: float
    reason: str
    behind: int = 0


class DeadLetters:
    """Also beside a running bridge, which takes the rows as it finds them."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def disabled_reason(self, sink: str) -> str | None:
        """Why a sink is not called any more; None where it is."""
        query = "select disabled_reason from sinks where name = ?"
        row = await self._file.read(lambda connection: connection.execute(query, (sink,)).fetchone())
        return None if row is None else row[0]

    async def dead(self, which: Which, *, limit: int = -1) -> list[StoredDelivery]:
        """The dead letters, those given up last first."""
        query = f"""select 'dead', d.sink, d.seq, e.id, e.type, e.session_id, e.device_id, d.attempts, d.at, d.reason, 0
            from dead_letters d join events e using (seq) where {_MEANT} order by d.at desc, d.seq desc limit :limit"""  # noqa: S608  # fixed text
        return await self._file.read(
            lambda connection: [StoredDelivery(*row) for row in _execute(connection, query, which, limit)]
        )

    async def parked(self, which: Which, *, limit: int = -1) -> list[StoredDelivery]:
        """The deliveries that wait for their next attempt, the next one first."""
        # `session_id is`, not `=`: the bridge's own events have none, and NULL equals nothing.
        query = f"""select 'parked', d.sink, e.seq, e.id, e.type, e.session_id, e.device_id, d.attempts, d.due_at,
            d.reason, case when d.lane glob '{LETTER_LANE}*' then 0 else
            (select count(*) from events l where l.session_id is e.session_id and l.seq > e.seq) end
            from lanes d join events e on e.seq = d.seq
            where d.behind and d.attempts > 0 and {_MEANT} order by d.due_at, e.seq limit :limit"""  # noqa: S608  # fixed text
        return await self._file.read(
            lambda connection: [StoredDelivery(*row) for row in _execute(connection, query, which, limit)]
        )

    async def attempts(self, sink: str, seq: int) -> list[FailedAttempt]:
        """The last attempts at a delivery that failed, oldest first."""
        query = """select seq, number, at, seconds, reason, status, answer from attempts
            where sink = ? and seq = ? order by id"""
        return await self._file.read(
            lambda connection: [FailedAttempt(*row) for row in connection.execute(query, (sink, seq))]
        )

    async def retry(self, which: Which) -> int:
        """Tries dead letters once more, from the first attempt on; returns how many.

        Those of a sink that is disabled or not configured any more stay: no sink would take them.
        """

        def work(connection: sqlite3.Connection) -> int:
            # One transaction: a letter is either dead or a lane of its own, also where the command is killed.
            query = f"{_LETTERS} and d.sink in (select name from sinks where routed_through is null)"  # noqa: S608  # fixed text
            letters = _execute(connection, query, which).fetchall()
            retry_letters(connection, letters)
            connection.executemany("delete from dead_letters where sink = ? and seq = ?", letters)
            return len(letters)

        return await self._file.write(work)

    async def drop(self, which: Which) -> int:
        """Forgets dead letters; the events stay in the log until they are pruned. Returns how many."""
        query = f"delete from dead_letters where (sink, seq) in ({_LETTERS})"  # noqa: S608  # fixed text
        return await self._file.write(lambda connection: _execute(connection, query, which).rowcount)


_MEANT = """(:sink is null or d.sink = :sink) and (:session is null or e.session_id = :session)
    and (:events is null or e.id in (select value from json_each(:events)))"""


_LETTERS = f"select d.sink, d.seq from dead_letters d join events e using (seq) where {_MEANT}"  # noqa: S608  # fixed text


def _execute(connection: sqlite3.Connection, query: str, which: Which, limit: int = -1) -> sqlite3.Cursor:
    events = msgspec.json.encode(which.events).decode() if which.events else None
    given = {"sink": which.sink, "session": which.session, "events": events, "limit": limit}
    return connection.execute(query, given)
