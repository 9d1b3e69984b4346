"""How far many sinks have come becomes durable in one transaction."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from bace_bridge.errors import StoreError
from bace_bridge.events.types import Event, LaneRecord, Progress
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import lanes_of

SINKS = [f"s{number}" for number in range(50)]
EVENT = Event("evt_1", "session.started", "a", "g", 1.0, 1.0, b"{}")


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    """A store in which each of 50 sinks has one lane."""
    async with SqliteFile(tmp_path / "bridge.db") as file:
        for sink in SINKS:
            await EventLog(file).open_sink(sink, target="")
        await Journal(file).commit(Changes(events=(EVENT,)))
        yield file


async def done_at(file: SqliteFile, sink: str) -> Progress:
    """All of the sink's lanes are delivered."""
    lanes = [replace(one, seq=one.seq + 1) for one in await lanes_of(file, sink)]
    return Progress(tuple(LaneRecord(one, drained=True) for one in lanes))


async def transactions(file: SqliteFile) -> list[str]:
    """The statements that begin one, from now on."""
    seen: list[str] = []

    def note(statement: str) -> None:
        if statement.startswith("begin"):
            seen.append(statement)

    await file.read(lambda connection: connection.set_trace_callback(note))
    return seen


async def test_what_many_sinks_have_delivered_is_one_transaction(file: SqliteFile) -> None:
    log = EventLog(file)
    progress = {sink: await done_at(file, sink) for sink in SINKS}
    seen = await transactions(file)
    await asyncio.gather(*(log.record(sink, partial(progress.__getitem__, sink), now=0.0) for sink in SINKS))
    assert len(seen) == 1
    assert [await lanes_of(file, sink) for sink in SINKS] == [[] for _ in SINKS]


async def test_progress_is_asked_for_when_it_is_written(file: SqliteFile) -> None:
    log = EventLog(file)
    first, second = await done_at(file, "s0"), await done_at(file, "s1")
    later = Progress()
    recording = [
        asyncio.create_task(log.record("s0", lambda: first, now=0.0)),
        asyncio.create_task(log.record("s1", lambda: later, now=0.0)),
    ]
    await asyncio.sleep(0)
    later = second
    assert [progress for progress, _ in await asyncio.gather(*recording)] == [first, second]
    assert await lanes_of(file, "s1") == []


async def test_where_it_fails_nothing_is_recorded_of_any_and_all_get_the_error(file: SqliteFile) -> None:
    log = EventLog(file)
    progress = {sink: await done_at(file, sink) for sink in SINKS}
    refuse = "create trigger no before delete on lanes when old.sink = 's7' begin select raise(abort, 'refused'); end"
    await file.read(lambda connection: connection.execute(refuse))
    outcomes = await asyncio.gather(
        *(log.record(sink, partial(progress.__getitem__, sink), now=0.0) for sink in SINKS), return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [StoreError] * len(SINKS)
    assert all([len(await lanes_of(file, sink)) == 1 for sink in SINKS])


async def test_who_is_cut_off_does_not_hold_up_the_others(file: SqliteFile) -> None:
    log = EventLog(file)
    progress = {sink: await done_at(file, sink) for sink in SINKS[:3]}
    recording = [
        asyncio.create_task(log.record(sink, partial(progress.__getitem__, sink), now=0.0)) for sink in progress
    ]
    await asyncio.sleep(0)
    recording[0].cancel()
    await asyncio.gather(*recording[1:])
    assert [len(await lanes_of(file, sink)) for sink in progress] == [1, 0, 0]
    await log.record("s0", partial(progress.__getitem__, "s0"), now=0.0)
    assert await lanes_of(file, "s0") == []
