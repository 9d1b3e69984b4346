"""Makes durable how far the sinks have come: one transaction for all of them."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from bace_bridge.domain.lanes import FailedAttempt, Progress, Recorded
from bace_bridge.store import lanes
from bace_bridge.store.sqlite import SqliteFile

PAUSE = 0.02
"""Seconds between two records, so that many acknowledgements of many sinks share a transaction."""

ATTEMPTS_KEPT = 1000
"""Failed attempts that are kept, a sink."""

Outcome = tuple[Progress, Recorded]


class _Asked(NamedTuple):
    sink: str
    progress: Callable[[], Progress]
    now: float
    outcome: asyncio.Future[Outcome]


class Records:
    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._waiting: list[_Asked] = []
        self._writing: asyncio.Task[None] | None = None
        self._after = 0.0

    async def record(self, sink: str, progress: Callable[[], Progress], *, now: float) -> Outcome:
        """What was recorded, and what came of it; `progress` is called when the sink's turn has come.

        Raises StoreError; then nothing was recorded, of no sink. Who is cut off here does not hold up the others.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append(_Asked(sink, progress, now, outcome))
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_all())
        return await outcome

    async def _write_all(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._waiting:
            await asyncio.sleep(self._after - clock())
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


def _record(taken: Iterable[tuple[_Asked, Progress]], connection: sqlite3.Connection) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for (sink, _, now, _), progress in taken:
        if progress.failed:
            _keep_attempts(connection, sink, progress.failed)
        outcomes.append((progress, lanes.record_lanes(connection, sink, progress.lanes, now=now)))
    return outcomes


def _keep_attempts(connection: sqlite3.Connection, sink: str, failed: Iterable[FailedAttempt]) -> None:
    # Not again where a record that was cut off is made once more.
    connection.executemany(
        """insert into attempts (sink, seq, number, at, seconds, status, reason, answer)
        select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 where not exists (
          select 1 from attempts where sink = ?1 and seq = ?2 and number = ?3 and at = ?4)""",
        [(sink, one.seq, one.number, one.at, one.seconds, one.status, one.reason, one.answer) for one in failed],
    )
    connection.execute(
        """delete from attempts where sink = ?1 and id <= (
        select id from attempts where sink = ?1 order by id desc limit 1 offset ?2)""",
        (sink, ATTEMPTS_KEPT),
    )
