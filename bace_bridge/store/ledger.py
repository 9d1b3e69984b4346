"""The ledger of retained topics: what each sink's broker may keep of this bridge."""

import sqlite3
from collections.abc import Callable, Collection, Iterable

from bace_bridge.store.sqlite import SqliteFile


class RetainedLedger:
    """Of one sink at one broker (`host:port`). It knows topics and not their payloads, so it is rarely written.

    What a sink has left that is not `configured` any more, such as one that was renamed, belongs to every sink there.
    """

    def __init__(self, file: SqliteFile, *, sink: str, broker: str, configured: Callable[[], Collection[str]]) -> None:
        self._file = file
        self._sink = sink
        self._broker = broker
        self._configured = configured

    async def topics(self) -> set[str]:
        """Raises StoreError, as all methods do."""
        query = "select sink, topic from retained where broker = ?"

        def work(connection: sqlite3.Connection) -> set[str]:
            return {topic for sink, topic in connection.execute(query, (self._broker,)) if sink not in others}

        others = self._others()
        return await self._file.read(work)

    async def note(self, topics: Iterable[str]) -> None:
        """Before they are published first."""
        rows = [(self._broker, self._sink, topic) for topic in topics]
        query = "insert or ignore into retained (broker, sink, topic) values (?, ?, ?)"
        await self._file.write(lambda connection: connection.executemany(query, rows), side="facts")

    async def forget(self, topics: Iterable[str]) -> None:
        """After the broker has acknowledged that they are cleared, or where they belong to another bridge now."""
        others = self._others()
        marks = ",".join("?" * len(others))
        query = f"delete from retained where broker = ? and topic = ? and sink not in ({marks})"  # noqa: S608  # marks only
        rows = [(self._broker, topic, *others) for topic in topics]
        await self._file.write(lambda connection: connection.executemany(query, rows), side="facts")

    def _others(self) -> list[str]:
        return sorted(set(self._configured()) - {self._sink})
