"""Small durable facts: tokens, the installation's name, retained topics, schedules after a step of the clock."""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from bace_bridge.csv.links import SigningKeys, rotated
from bace_bridge.events.types import Announced, Token
from bace_bridge.retry import LONGEST_WAIT
from bace_bridge.store.sqlite import SqliteFile

T = TypeVar("T")


_SIGNING = "csv:signing-keys"


class Facts(NamedTuple):
    file: SqliteFile

    async def load_token(self, account: str) -> Token | None:
        return await self.file.read(lambda connection: decoded_fact(connection, f"token:{account}", Token))

    async def save_token(self, account: str, token: Token) -> None:
        value = msgspec.json.encode(token).decode()
        await self.file.write(lambda connection: write_fact(connection, f"token:{account}", value), side="facts")

    async def signing_keys(self, new: bytes) -> SigningKeys:
        """Those of CSV links: they were made once, with `new` where the store has none yet."""
        found = await self.file.read(lambda connection: decoded_fact(connection, _SIGNING, SigningKeys))
        return found or await self.rotate_signing_keys(new, now=0.0, life=0.0, only_first=True)

    async def rotate_signing_keys(
        self, new: bytes, *, now: float, life: float, revoke: bool = False, only_first: bool = False
    ) -> SigningKeys:
        """See `rotated`; `only_first` leaves those that there are. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> SigningKeys:
            found = decoded_fact(connection, _SIGNING, SigningKeys)
            if found is not None and only_first:
                return found
            keys = rotated(found, new, now=now, life=life, revoke=revoke)
            write_fact(connection, _SIGNING, msgspec.json.encode(keys).decode())
            return keys

        return await self.file.write(work, side="facts")

    async def installation(self, name: str) -> str:
        """The name of this installation: it was made once, and is `name` where the store has none yet."""

        def work(connection: sqlite3.Connection) -> str:
            # Read and written in one transaction: two commands that start at once must not make two names.
            found = read_fact(connection, "installation")
            if found is None:
                found = name
                write_fact(connection, "installation", found)
            return found

        return await self.file.write(work, side="facts")


def read_fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("select value from facts where name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def decoded_fact(connection: sqlite3.Connection, name: str, shape: type[T]) -> T | None:
    """For the store's thread: there a fact that cannot be decoded becomes a damaged store, not a traceback."""
    value = read_fact(connection, name)
    return None if value is None else msgspec.json.decode(value, type=shape)


def write_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("insert or replace into facts (name, value) values (?, ?)", (name, value))


_OURS = "(sink = ? or sink not in (select name from sinks where routed_through is null))"
_IS_CLEARED = """coalesce(json_extract(announced, '$.components') = '{}'
    and json_extract(announced, '$.removed') <> '{}', 0)"""


class RetainedLedger(NamedTuple):
    """Of one sink at one broker (`host:port`). It knows topics and not their payloads, so it is rarely written.

    What a sink has left that is not configured any more, such as one that was renamed, belongs to every sink there.
    """

    file: SqliteFile
    sink: str
    broker: str

    async def topics(self) -> set[str]:
        """Raises StoreError, as all methods do."""
        query = f"select topic from retained where broker = ? and {_OURS} and not {_IS_CLEARED}"  # noqa: S608  # constants
        given = (self.broker, self.sink)
        return await self.file.read(lambda connection: {topic for (topic,) in connection.execute(query, given)})

    async def note(self, topics: Iterable[str]) -> None:
        """Before they are published first."""
        # In this order a crash leaves a name too many, which is cleared in vain; the other one leaves a topic that
        # is unknown, and that a broker would retain for ever.
        rows = [(self.broker, self.sink, topic) for topic in topics]
        query = "insert or ignore into retained (broker, sink, topic) values (?, ?, ?)"
        await self.file.write(lambda connection: connection.executemany(query, rows), side="facts")

    async def announced(self) -> dict[str, Announced]:
        """By discovery topic."""
        # Those of this sink's own name come last, and count: of a former one they may be old.
        query = f"""select sink = ?, topic, announced from retained
            where broker = ? and announced is not null and {_OURS}"""  # noqa: S608  # a constant
        given = (self.sink, self.broker, self.sink)
        return await self.file.read(
            lambda connection: {
                topic: msgspec.json.decode(text, type=Announced)
                for _, topic, text in sorted(connection.execute(query, given))
            }
        )

    async def note_announced(self, announced: Mapping[str, Announced]) -> None:
        """What was announced on each of these topics; before it is, and after something was removed."""
        query = """insert into retained (broker, sink, topic, announced) values (?, ?, ?, ?)
            on conflict (broker, sink, topic) do update set announced = excluded.announced"""
        rows = [(self.broker, self.sink, topic, msgspec.json.encode(one).decode()) for topic, one in announced.items()]
        of_former = f"delete from retained where broker = ? and topic = ? and {_OURS} and sink <> ?"  # noqa: S608  # a constant
        former = [(self.broker, topic, self.sink, self.sink) for topic in announced]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(query, rows)
            connection.executemany(of_former, former)

        await self.file.write(work, side="facts")

    async def forget(self, topics: Iterable[str]) -> None:
        """After the broker has acknowledged that they are cleared, or where they belong to another bridge now.

        What they have announced is kept where it was noted as removed.
        """
        query = f"delete from retained where broker = ? and topic = ? and {_OURS} and not {_IS_CLEARED}"  # noqa: S608  # constants
        rows = [(self.broker, topic, self.sink) for topic in topics]
        await self.file.write(lambda connection: connection.executemany(query, rows), side="facts")


TIMES = (("fetch_at", "fetch_at"), ("end_waits_since", "end_seen_at"))
"""The columns of a session that hold times to come, and their names in its JSON."""

LATER = "sink in (select name from sinks) and behind in (0, 1) and due_at >"
"""Each sink's lanes that wait for a time, by their index."""


class Schedules(NamedTuple):
    file: SqliteFile

    async def move(self, seconds: float) -> None:
        """Every schedule so much later; negative: earlier.

        That is every fetch, the last one of an active session, the time since which an end waits, and every retry.
        """

        def work(connection: sqlite3.Connection) -> None:
            for column, name in TIMES:
                _set(connection, column, name, f"{column} + :by", f"{column} is not null", by=seconds)
            connection.execute(
                """update sessions set known = json_set(known, '$.fetched_at', json_extract(known, '$.fetched_at') + ?)
                where unfinished and active and json_extract(known, '$.fetched_at') is not null""",
                (seconds,),
            )
            # Without another version: no request has moved anything, and what is in flight may be recorded.
            connection.execute(f"update lanes set due_at = due_at + ? where {LATER} 0", (seconds,))  # noqa: S608  # our own text

        await self.file.write(work)

    async def bound(self, *, now: float, furthest: float) -> int:
        """What no schedule allows (the clock was set back while nothing ran) is due now; returns how many sessions."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(f"update lanes set due_at = ? where {LATER} ?", (now, now + LONGEST_WAIT))  # noqa: S608  # our own text
            fetches, ends = (
                _set(connection, column, name, ":now", f"{column} > :through", now=now, through=through)
                for (column, name), through in zip(TIMES, (now + furthest, now), strict=True)
            )
            return max(fetches, ends)

        return await self.file.write(work)


def _set(connection: sqlite3.Connection, column: str, name: str, to: str, where: str, **given: float) -> int:
    """A known session holds its times twice: in columns, and in its JSON."""
    return connection.execute(
        f"""update sessions set {column} = {to}, known = json_set(known, '$.{name}', {to})
        where over_when_found in (0, 1) and {where}""",  # noqa: S608  # our own text
        given,
    ).rowcount
