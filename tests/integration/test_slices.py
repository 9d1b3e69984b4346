"""What was emitted of a window is kept in slices of a minute, and of an earlier version's store nothing is lost."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from bace_bridge.polling.rules.changes import Changes, WindowRead
from bace_bridge.polling.rules.datapoints import Emitted, EmittedPoint
from bace_bridge.polling.rules.windows import Window, WindowState
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile

HOUR = Window(3600, 7200)


def emitted(*stamps: float, revision: int = 0) -> Emitted:
    return {series: {stamp: EmittedPoint(stamp, stamp, stamp, 1, revision) for stamp in stamps} for series in "xy"}


def read(points: Emitted, session: str = "s") -> Changes:
    return Changes(windows=(WindowRead(session, WindowState(HOUR.start, HOUR.end, 1), points),))


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    async with SqliteFile(tmp_path / "b.db") as file:
        yield file


async def written(file: SqliteFile, changes: Changes) -> int:
    """How many slices a commit writes or deletes."""
    statements: list[str] = []
    await file.read(lambda connection: connection.set_trace_callback(statements.append))
    await Journal(file).commit(changes)
    await file.read(lambda connection: connection.set_trace_callback(None))
    return sum("into slices" in one or ("from slices where" in one and one.startswith("delete")) for one in statements)


async def test_only_the_slices_that_changed_are_written(file: SqliteFile) -> None:
    stamps = [3600.0 + 10 * one for one in range(30)]
    assert await written(file, read(emitted(*stamps))) == 5
    assert await written(file, read(emitted(*stamps, 3905.0))) == 1
    corrected = emitted(*stamps, 3905.0)
    corrected["x"][3600.0] = EmittedPoint(9.0, 9.0, 9.0, 1, 1)
    assert await written(file, read(corrected)) == 1
    assert await Journal(file).emitted(HOUR, ["s"]) == {"s": corrected}
    assert await Journal(file).emitted(HOUR, ["s", "other"]) == {"s": corrected, "other": {}}


async def test_what_is_emitted_no_more_goes(file: SqliteFile) -> None:
    await Journal(file).commit(read(emitted(3600.0, 3700.0)))
    await Journal(file).commit(read(emitted(3700.0)))
    assert await Journal(file).emitted(HOUR, ["s"]) == {"s": emitted(3700.0)}


async def test_what_an_earlier_version_kept_is_read_and_becomes_slices(file: SqliteFile) -> None:
    await Journal(file).commit(read(emitted()))

    def as_before(connection: sqlite3.Connection) -> None:
        connection.execute("update windows set emitted = ?", (msgspec.msgpack.encode(emitted(3600.0, 3700.0)),))

    await file.write(as_before)
    assert await Journal(file).emitted(HOUR, ["s"]) == {"s": emitted(3600.0, 3700.0)}
    await Journal(file).commit(read(emitted(3600.0, 3700.0, 3800.0)))
    assert await Journal(file).emitted(HOUR, ["s"]) == {"s": emitted(3600.0, 3700.0, 3800.0)}
    told = await file.read(lambda connection: connection.execute("select emitted from windows").fetchall())
    assert told == [(None,)]


async def test_slices_go_with_their_window(file: SqliteFile) -> None:
    for session in ("s", "other"):
        await Journal(file).commit(read(emitted(3600.0), session))
    await file.write(lambda connection: connection.execute("delete from windows where session_id = 's'"))
    left = await file.read(lambda connection: connection.execute("select session_id from slices").fetchall())
    assert left == [("other",)]
