"""The ledger of retained topics: what each sink's broker may keep of this bridge."""

import sqlite3
from collections.abc import Iterable

from bace_bridge.store.sqlite import SqliteFile

_OURS = "(sink = ? or sink not in (select name from sinks where routed_through is null))"


class RetainedLedger:
    """Of one sink at one broker (`host:port`). It knows topics and not their payloads, so it is rarely written.

    What a sink has left that is not configured any more, such as one that was renamed, belongs to every sink there.
    """

    def __init__(self, file: SqliteFile, *, sink: str, broker: str) -> None:
        self._file = file
        self._sink = sink
        self._broker = broker

    async def topics(self) -> set[str]:
        """Raises StoreError, as all methods do."""
        query = f"select topic from retained where broker = ? and {_OURS}"  # noqa: S608  # a constant

        def work(connection: sqlite3.Connection) -> set[str]:
            return {topic for (topic,) in connection.execute(query, (self._broker, self._sink))}

        return await self._file.read(work)

    async def note(self, topics: Iterable[str]) -> None:
        """Before they are published first."""
        rows = [(self._broker, self._sink, topic) for topic in topics]
        query = "insert or ignore into retained (broker, sink, topic) values (?, ?, ?)"
        await self._file.write(lambda connection: connection.executemany(query, rows), side="facts")

    async def forget(self, topics: Iterable[str]) -> None:
        """After the broker has acknowledged that they are cleared, or where they belong to another bridge now."""
        query = f"delete from retained where broker = ? and topic = ? and {_OURS}"  # noqa: S608  # a constant
        rows = [(self._broker, topic, self._sink) for topic in topics]
        await self._file.write(lambda connection: connection.executemany(query, rows), side="facts")
