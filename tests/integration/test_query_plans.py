"""What `run` asks of a store with many data sessions is found by an index, whatever is asked."""

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from bace_bridge.store.standing import Standing

NOON = 1_764_590_400.0
SESSIONS, DEVICES = 20_000, 10

Ask = Callable[[Journal, Standing], Any]

QUESTIONS: dict[str, Ask] = {
    "known": lambda journal, _: journal.known(["s00005", "s19999"]),
    "unfinished_after": lambda journal, _: journal.unfinished_after("s00100", 50),
    "active_after": lambda journal, _: journal.active_after("s00100", 50),
    "finished_after": lambda journal, _: journal.finished_after("s00100", 50),
    "overdue_ends": lambda journal, _: journal.overdue_ends(NOON),
    "due_fetches": lambda journal, _: journal.due_fetches(NOON, 400),
    "next_fetch_at": lambda journal, _: journal.next_fetch_at(without=["s19999"]),
    "device_labels": lambda journal, _: journal.device_labels(),
    "windows": lambda journal, _: journal.windows("s00001"),
    "devices": lambda _, standing: standing.devices(["g1", "g2"], available=True),
    "all devices": lambda _, standing: standing.devices(None, available=True),
    "stale": lambda _, standing: standing.stale(),
    "oldest_view": lambda _, standing: standing.oldest_view(),
}


def row(number: int) -> tuple[object, ...]:
    active = number >= SESSIONS - DEVICES
    end = None if active else NOON + number + 0.5
    session = DataSession(
        f"s{number:05}", f"g{number % DEVICES}", NOON + number, end=end, ingestion_finished=not active
    )
    known = KnownSession(session=session, device_label="BaceGo", fetched_at=NOON)
    return (session.id, session.group_id, session.start, active, active, msgspec.json.encode(known).decode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
async def file(folder: Path) -> AsyncIterator[SqliteFile]:
    def fill(connection: sqlite3.Connection) -> None:
        if not connection.execute("select count(*) from sessions").fetchone()[0]:
            connection.executemany(
                """insert into sessions (id, group_id, start, active, unfinished, removed, over_when_found, known)
                values (?, ?, ?, ?, ?, 0, 0, ?)""",
                map(row, range(SESSIONS)),
            )

    async with SqliteFile(folder / "b.db") as file:
        await file.write(fill)
        yield file


@pytest.mark.parametrize("name", QUESTIONS)
async def test_no_table_is_read_from_end_to_end(file: SqliteFile, name: str) -> None:
    journal = Journal(file)
    standing = Standing(file, csv_url=lambda session: session, clock=lambda: NOON)
    statements: list[str] = []
    await file.read(lambda connection: connection.set_trace_callback(statements.append))
    await QUESTIONS[name](journal, standing)
    await file.read(lambda connection: connection.set_trace_callback(None))
    asked = [one for one in statements if "select" in one.lower()]
    assert asked
    for one in asked:
        plan = await file.read(lambda connection, one=one: list(connection.execute(f"explain query plan {one}")))  # type: ignore[misc]  # binds now; our own text
        for *_, detail in plan:
            assert "SCAN sessions" not in detail or "sessions_unfinished" in detail, (one, detail)
            assert "USE TEMP B-TREE FOR ORDER BY" not in detail or "unfinished" in one, (one, detail)


async def test_the_devices_of_many_sessions_are_found_by_few_steps(file: SqliteFile) -> None:
    """The bench has the times; this is the work, which no slow machine changes."""
    standing = Standing(file, csv_url=lambda session: session, clock=lambda: NOON)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    await file.read(lambda connection: connection.set_progress_handler(count, 100))
    began = time.perf_counter()
    assert len(await standing.devices(None, available=True)) == DEVICES
    seconds = time.perf_counter() - began
    await file.read(lambda connection: connection.set_progress_handler(None, 100))
    assert steps < 50, f"{100 * steps} of SQLite's steps, {seconds:.4f} s"
