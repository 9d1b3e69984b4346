"""The times of schedules in the store, when the wall clock was set."""

import sqlite3

from bace_bridge.domain.retry import LONGEST_WAIT
from bace_bridge.store.sqlite import SqliteFile


class Schedules:
    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def move(self, seconds: float) -> None:
        """Every schedule so much later; negative: earlier.

        That is every fetch, the last one of an active session, the time since which an end waits, and every retry.
        """

        def work(connection: sqlite3.Connection) -> None:
            _set(
                connection,
                fetch="fetch_at + :by",
                waits="end_waits_since + :by",
                where="fetch_at is not null or end_waits_since is not null",
                by=seconds,
            )
            connection.execute(
                """update sessions set known = json_set(known, '$.fetched_at', json_extract(known, '$.fetched_at') + ?)
                where active and json_extract(known, '$.fetched_at') is not null""",
                (seconds,),
            )
            connection.execute("update lanes set due_at = due_at + ? where due_at > 0", (seconds,))

        await self._file.write(work)

    async def bound(self, *, now: float, furthest: float) -> int:
        """What no schedule allows (the clock was set back while nothing ran) is due now; returns how many sessions."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("update lanes set due_at = ? where due_at > ?", (now, now + LONGEST_WAIT))
            return _set(
                connection,
                fetch="iif(fetch_at > :upto, :now, fetch_at)",
                waits="min(end_waits_since, :now)",
                where="fetch_at > :upto or end_waits_since > :now",
                now=now,
                upto=now + furthest,
            )

        return await self._file.write(work)


def _set(connection: sqlite3.Connection, *, fetch: str, waits: str, where: str, **given: float) -> int:
    """A known session holds its times twice: in columns, and in its JSON."""
    changed = connection.execute(
        f"update sessions set fetch_at = {fetch}, end_waits_since = {waits} where {where}",  # noqa: S608  # our own text
        given,
    ).rowcount
    if not changed:
        return 0
    for column, name in (("fetch_at", "fetch_at"), ("end_waits_since", "end_seen_at")):
        connection.execute(
            f"""update sessions set known = json_set(known, '$.{name}', {column})
            where {column} is not null and json_extract(known, '$.{name}') is not {column}"""  # noqa: S608  # our own text
        )
    return changed
