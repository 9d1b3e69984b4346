"""The event log: claims for the dispatchers, the progress of all sinks in one transaction, and what was given up."""

import asyncio
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from bace_bridge.events.types import (
    LETTER_LANE,
    Claim,
    Claimed,
    Event,
    FailedAttempt,
    Filter,
    LoggedEvent,
    Progress,
    Recorded,
)
from bace_bridge.store import lanes
from bace_bridge.store.sqlite import SqliteFile

PAUSE = 0.02
"""Seconds between two records, so that many acknowledgements of many sinks share a transaction."""

ATTEMPTS_KEPT = 1000
"""Failed attempts that are kept, a sink."""

Outcome = tuple[Progress, Recorded]
_ATTEMPT = ("seq", "number", "at", "seconds", "status", "reason", "answer")


class _Asked(NamedTuple):
    sink: str
    progress: Callable[[], Progress]
    now: float
    outcome: asyncio.Future[Outcome]


def _record(taken: Iterable[tuple[_Asked, Progress]], connection: sqlite3.Connection) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for (sink, _, now, _), progress in taken:
        if progress.failed:
            # Not again where a record that was cut off is made once more.
            connection.executemany(
                """insert into attempts (sink, seq, number, at, seconds, status, reason, answer)
                select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 where not exists (
                  select 1 from attempts where sink = ?1 and seq = ?2 and number = ?3 and at = ?4)""",
                [(sink, *(getattr(one, name) for name in _ATTEMPT)) for one in progress.failed],
            )
            connection.execute(
                """delete from attempts where sink = ?1 and id <= (
                select id from attempts where sink = ?1 order by id desc limit 1 offset ?2)""",
                (sink, ATTEMPTS_KEPT),
            )
        outcomes.append((progress, lanes.record_lanes(connection, sink, progress.lanes, now=now)))
    return outcomes


MOST_BYTES = 2 * 1024 * 1024
"""What one reading of the log holds in memory at most, give or take one event."""

SESSIONS_AT_ONCE = 200
"""Data sessions that are gone back to in one transaction."""


class EventLog:
    """The dispatcher's side of the store."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._waiting: list[_Asked] = []
        self._writing: asyncio.Task[None] | None = None
        self._after = 0.0

    async def open_sink(self, name: str, *, target: str, filter_: Filter | None = None) -> str | None:
        """Has what the sink wants kept for it from now on; returns why it is disabled, if it is.

        A new one starts at the log's end; a changed target takes a disabled one up again. One that comes back gets what
        came meanwhile and is still recorded.
        """

        def work(connection: sqlite3.Connection) -> str | None:
            wanted = msgspec.json.encode(filter_ or Filter(sink=name)).decode()
            connection.execute("insert or ignore into sinks (name, target) values (?, ?)", (name, target))
            # In this transaction and before polling: a first event must not come before the sink has a row.
            before, routed_through, reason = connection.execute(
                "select target, routed_through, disabled_reason from sinks where name = ?", (name,)
            ).fetchone()
            connection.execute("update sinks set target = ?, filter = ? where name = ?", (target, wanted, name))
            if reason is not None and before == target:
                return str(reason)
            if routed_through is not None:
                lanes.catch_up(connection, name, after=routed_through)
                query = "update sinks set routed_through = null, disabled_reason = null where name = ?"
                connection.execute(query, (name,))
            return None

        return await self._file.write(work)

    async def read(self, *, after: int, limit: int, most_bytes: int = MOST_BYTES) -> list[LoggedEvent]:
        """The next events after a seq; fewer where they are large."""
        query = f"select {lanes.COLUMNS} from events where seq > ? order by seq limit ?"  # noqa: S608  # column names only
        return await self._file.read(
            lambda connection: lanes.as_far_as(connection.execute(query, (after, limit)), most_bytes)[0]
        )

    async def end(self) -> int:
        """The highest place that was ever given, though its event may be pruned; 0: none was."""
        return await self._file.read(lanes.last_seq)

    async def claim(self, sink: str, filter_: Filter, asked: Claim, *, now: float) -> Claimed:
        """The sink's lanes that are due, with their next events."""
        return await self._file.read(lambda connection: lanes.claim(connection, sink, filter_, asked, now=now))

    async def record(self, sink: str, progress: Callable[[], Progress], *, now: float) -> Outcome:
        """What was recorded, and what came of it; `progress` is called when the sink's turn has come.

        Raises StoreError; then nothing was recorded, of no sink. Who is cut off here does not hold up the others.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append(_Asked(sink, progress, now, outcome))
        # A task of its own: were it the first caller's, its being cut off would leave the others waiting for ever.
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_all())
        return await outcome

    async def _write_all(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting:
            # Each transaction waits for the disk. The pause makes one of them out of the acknowledgements of 20 ms.
            await asyncio.sleep(self._after - clock())
            # Who was cut off (a reload, the end) has nothing written for it: its lanes are claimed again.
            asked, self._waiting = [one for one in self._waiting if not one.outcome.done()], []
            try:
                taken = [(one, one.progress()) for one in asked]
                outcomes = await self._file.write(partial(_record, taken))
            except Exception as error:  # noqa: BLE001  # whoever asked raises it
                for one in asked:
                    if not one.outcome.done():
                        one.outcome.set_exception(error)
            else:
                for one, outcome in zip(asked, outcomes, strict=True):
                    if not one.outcome.done():
                        one.outcome.set_result(outcome)
            self._after = clock() + PAUSE

    async def disable(self, sink: str, reason: str, announcement: Event) -> None:
        """The sink is not called any more; `announcement` says so to the others, in the same transaction."""

        def work(connection: sqlite3.Connection) -> None:
            query = "update sinks set routed_through = coalesce(routed_through, ?), disabled_reason = ? where name = ?"
            connection.execute(query, (lanes.last_seq(connection), reason, sink))
            lanes.append_events(connection, (announcement,))

        await self._file.write(work)

    async def retire_others(self, names: Collection[str]) -> None:
        """Sinks that left the configuration keep their lanes, but nothing waits for them any more."""
        # Their rows stay, so that they miss nothing that is still kept when they come back; pruning leaves them out.
        marks = ",".join("?" * len(names))
        query = f"update sinks set routed_through = ? where routed_through is null and name not in ({marks})"  # noqa: S608  # marks only
        await self._file.write(lambda connection: connection.execute(query, (lanes.last_seq(connection), *names)))

    async def backlog(self, sink: str) -> int:
        """The events that wait for a sink; where it does not want all of a lane, those are counted too.

        In pieces, since many events take a while: deliveries go on in between.
        """
        waiting, after = 0, ""
        while True:
            count, last = await self._file.read(partial(lanes.count_waiting, sink=sink, after=after))
            waiting += count
            if last is None:
                return waiting
            after = last

    async def replay(self, sink: str, *, session: str | None, since: float | None) -> int:
        """Goes back to recorded events of a data session, or to those observed since a time (epoch seconds).

        Returns how many there are. A sink that has never run gets them when it does. All data sessions are gone back to
        in several transactions.
        """
        if session is not None:
            return await self._file.write(partial(lanes.replay, sink=sink, sessions=[session], since=since))
        count, after = 0, ""
        while True:
            found = await self._file.read(partial(lanes.sessions_after, session=after, limit=SESSIONS_AT_ONCE))
            sessions = found if after else [None, *found]
            count += await self._file.write(partial(lanes.replay, sink=sink, sessions=sessions, since=since))
            if len(found) < SESSIONS_AT_ONCE:
                return count
            after = found[-1]

    async def knows_session(self, session: str) -> bool:
        """True for a data session that is known, or has events that are still recorded."""
        query = """select exists (select 1 from sessions where id = ?1)
            or exists (select 1 from events where session_id = ?1)"""
        return bool(await self._file.read(lambda connection: connection.execute(query, (session,)).fetchone()[0]))

    async def sinks(self) -> list[str]:
        """The names of all that were ever delivered to, or asked for."""
        query = "select name from sinks order by name"
        return await self._file.read(lambda connection: [name for (name,) in connection.execute(query)])

    async def waiting(self, sink: str) -> tuple[int, int]:
        """The numbers of a sink's parked lanes and of its dead letters."""
        # The index by name: without statistics SQLite may take the primary key, and read all lanes of the sink.
        query = """select (select count(*) from lanes indexed by lanes_failed where sink = ?1 and attempts > 0),
            (select count(*) from dead_letters where sink = ?1)"""
        return await self._file.read(lambda connection: tuple(connection.execute(query, (sink,)).fetchone()))

    async def prune(self, *, observed_before: float, limit: int = 200, most_bytes: float = math.inf) -> int:
        """Deletes the oldest events that every sink is past, of at most so many bytes; returns how many.

        A sink that is disabled or not configured holds nothing up, and a dead letter, which may lie for long, only its
        own event.
        """
        work = partial(lanes.prune, observed_before=observed_before, limit=limit, most_bytes=most_bytes)
        return await self._file.write(work, side="upkeep")

    async def search(
        self, *, after: int = 0, type_glob: str | None = None, session: str | None = None, limit: int = -1
    ) -> list[LoggedEvent]:
        """The log for people: the newest `limit` events after `after`, oldest first."""
        query = f"""select * from (select {lanes.COLUMNS} from events where seq > :after
            and (:glob is null or type glob :glob) and (:session is null or session_id = :session)
            order by seq desc limit :limit) order by seq"""  # noqa: S608  # column names only
        given = {"after": after, "glob": type_glob, "session": session, "limit": limit}
        return await self._file.read(lambda connection: [*map(lanes.logged, connection.execute(query, given))])


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


class DeadLetters(NamedTuple):
    """The deliveries that were given up or wait for their next attempt, for the people who handle them.

    Also beside a running bridge, which takes the rows as it finds them.
    """

    file: SqliteFile

    async def disabled_reason(self, sink: str) -> str | None:
        """Why a sink is not called any more; None where it is."""
        query = "select disabled_reason from sinks where name = ?"
        row = await self.file.read(lambda connection: connection.execute(query, (sink,)).fetchone())
        return None if row is None else row[0]

    async def dead(self, which: Which, *, limit: int = -1) -> list[StoredDelivery]:
        """The dead letters, those given up last first."""
        query = f"""select 'dead', d.sink, d.seq, e.id, e.type, e.session_id, e.device_id, d.attempts, d.at, d.reason, 0
            from dead_letters d join events e using (seq) where {_MEANT} order by d.at desc, d.seq desc limit :limit"""  # noqa: S608  # fixed text
        return await self.file.read(
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
        return await self.file.read(
            lambda connection: [StoredDelivery(*row) for row in _execute(connection, query, which, limit)]
        )

    async def attempts(self, sink: str, seq: int) -> list[FailedAttempt]:
        """The last attempts at a delivery that failed, oldest first."""
        query = """select seq, number, at, seconds, reason, status, answer from attempts
            where sink = ? and seq = ? order by id"""
        return await self.file.read(
            lambda connection: [FailedAttempt(*row) for row in connection.execute(query, (sink, seq))]
        )

    async def retry(self, which: Which) -> int:
        """Tries dead letters once more, from the first attempt on; returns how many.

        Those of a sink that is disabled or not configured any more stay: no sink would take them.
        """
        query = f"{_LETTERS} and d.sink in (select name from sinks where routed_through is null)"  # noqa: S608  # fixed text
        return await self.file.write(
            lambda connection: lanes.retry_letters(connection, _execute(connection, query, which).fetchall())
        )

    async def drop(self, which: Which) -> int:
        """Forgets dead letters; the events stay in the log until they are pruned. Returns how many."""
        query = f"delete from dead_letters where (sink, seq) in ({_LETTERS})"  # noqa: S608  # fixed text
        return await self.file.write(lambda connection: _execute(connection, query, which).rowcount)


_MEANT = """(:sink is null or d.sink = :sink) and (:session is null or e.session_id = :session)
    and (:events is null or e.id in (select value from json_each(:events)))"""


_LETTERS = f"select d.sink, d.seq from dead_letters d join events e using (seq) where {_MEANT}"  # noqa: S608  # fixed text


def _execute(connection: sqlite3.Connection, query: str, which: Which, limit: int = -1) -> sqlite3.Cursor:
    events = msgspec.json.encode(which.events).decode() if which.events else None
    given = {"sink": which.sink, "session": which.session, "events": events, "limit": limit}
    return connection.execute(query, given)
