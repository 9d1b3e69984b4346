"""What a dispatcher records, for tests of the store without one."""

import sqlite3
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from bace_bridge.events.types import DeadLetter, FailedAttempt, Lane, LaneRecord, Progress, Recorded
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.sqlite import SqliteFile


async def lanes_of(file: SqliteFile, sink: str) -> list[Lane]:
    """What a sink has still to deliver."""
    query = """select lane, seq, attempts, due_at, reason, replay_through, behind, version from lanes
        where sink = ? order by seq, lane"""

    def work(connection: sqlite3.Connection) -> list[Lane]:
        rows = connection.execute(query, (sink,)).fetchall()
        names = Lane.__struct_fields__
        return [msgspec.convert(dict(zip(names, row, strict=True)), Lane, strict=False) for row in rows]

    return await file.read(work)


async def deliver(
    file: SqliteFile,
    sink: str,
    *,
    through: int = 10**9,
    waits: Mapping[str, Lane] | None = None,
    dead: tuple[DeadLetter, ...] = (),
    failed: tuple[FailedAttempt, ...] = (),
    now: float = 0.0,
) -> Recorded:
    """Everything up to a place is delivered, but for the lanes that wait, each at the place that is given."""
    records = []
    for lane in await lanes_of(file, sink):
        mine = tuple(one for one in dead if one.key == lane.key)
        if waits is not None and lane.key in waits:
            records.append(LaneRecord(replace(waits[lane.key], version=lane.version), dead=mine))
        elif lane.seq <= through:
            done = replace(lane, seq=through + 1, attempts=0, reason="")
            records.append(LaneRecord(done, drained=True, dead=mine))
    _, recorded = await EventLog(file).record(sink, lambda: Progress(tuple(records), failed), now=now)
    return recorded


async def backlogs(log: EventLog) -> dict[str, int]:
    """The events that wait for each sink."""
    return {name: await log.backlog(name) for name in await log.sinks()}
