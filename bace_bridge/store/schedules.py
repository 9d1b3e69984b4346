"""The times of schedules in the store, when the wall clock was set."""

import sqlite3

from bace_bridge.domain.retry import LONGEST_WAIT
from bace_bridge.store.sqlite import SqliteFile

TIMES = (("fetch_at", "fetch_at"), ("end_waits_since", "end_seen_at"))
"""The columns of a session that hold times to come, and their names in its JSON."""

LATER = "sink in (select name from sinks) and behind in (0, 1) and due_at >"
"""Each sink's lanes that wait for a time, by their index."""


class Schedules:
    def __init__(self, file: SqliteFile) -> None:
        self._file = file

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
            connection.execute(f"update lanes set due_at = due_at + ? where {LATER} 0", (seconds,))  # noqa: S608  # our own text

        await self._file.write(work)

    async def bound(self, *, now: float, furthest: float) -> int:
        """What no schedule allows (the clock was set back while nothing ran) is due now; returns how many sessions."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(f"update lanes set due_at = ? where {LATER} ?", (now, now + LONGEST_WAIT))  # noqa: S608  # our own text
            fetches, ends = (
                _set(connection, column, name, ":now", f"{column} > :upto", now=now, upto=upto)
                for (column, name), upto in zip(TIMES, (now + furthest, now), strict=True)
            )
            return max(fetches, ends)

        return await self._file.write(work)


def _set(connection: sqlite3.Connection, column: str, name: str, to: str, where: str, **given: float) -> int:
    """A known session holds its times twice: in columns, and in its JSON."""
    return connection.execute(
        f"""update sessions set {column} = {to}, known = json_set(known, '$.{name}', {to})
        where over_when_found in (0, 1) and {where}""",  # noqa: S608  # our own text
        given,
    ).rowcount
