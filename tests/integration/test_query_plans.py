"""What `run` asks of a store with many data sessions is found by an index, whatever is asked."""

import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import receiver, until
from tests.integration.brokers import Mosquitto, listening
from tests.integration.test_bridge_requests import ask
from tests.integration.whole_bridge import SOON, bridge_file, whole_bridge

VERBS = ("select", "with", "insert", "update", "delete")

SMALL = {"sinks", "facts", "sqlite_sequence", "next", "devices", "seen", "kinds"}
"""A row a sink, or what a query itself has made."""

FEW = ("sessions_unfinished", "sessions_with_an_end_to_tell", "lanes_failed", "lanes_behind")
"""Indexes of a few rows of their table."""

NOON = 1_764_590_400.0
SESSIONS, DEVICES = 20_000, 10

Ask = Callable[[Journal, DeviceStates], Any]

QUESTIONS: dict[str, Ask] = {
    "known": lambda journal, _: journal.known(["s00005", "s19999"]),
    "unfinished_after": lambda journal, _: journal.known_after("unfinished", "s00100", 50),
    "active_after": lambda journal, _: journal.known_after("active", "s00100", 50),
    "finished_after": lambda journal, _: journal.known_after("finished", "s00100", 50),
    "overdue_ends": lambda journal, _: journal.overdue_ends(NOON),
    "due_fetches": lambda journal, _: journal.due_fetches(NOON, 400),
    "next_fetch_at": lambda journal, _: journal.next_fetch_at(without=["s19999"]),
    "device_labels": lambda journal, _: journal.device_labels(),
    "windows": lambda journal, _: journal.windows("s00001"),
    "devices": lambda _, device_states: device_states.devices(["g1", "g2"], available=True),
    "all devices": lambda _, device_states: device_states.devices(None, available=True),
    "known devices": lambda _, device_states: device_states.known_devices(),
    "stale": lambda _, device_states: device_states.stale(),
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


async def plans(file: SqliteFile, statements: Iterable[str]) -> dict[str, list[str]]:
    """How SQLite goes about each statement that reads or writes rows."""

    def work(connection: sqlite3.Connection) -> dict[str, list[str]]:
        asked = [one for one in statements if one.lstrip().lower().startswith(VERBS)]
        return {one: [row[3] for row in connection.execute(f"explain query plan {_finite(one)}")] for one in asked}

    return await file.read(work)


def _finite(statement: str) -> str:
    """SQLite shows an infinite number that was bound as no number that it reads."""
    return re.sub(r"\bInf\b", "9e999", statement)


def walks(plan: Iterable[str]) -> list[str]:
    """The steps that go through a whole table, or sort it."""
    scans = [
        one for one in plan if one.startswith("SCAN") and one.split()[1] not in SMALL and "CONSTANT ROW" not in one
    ]
    sorts = [
        one for one in plan if one.startswith("USE TEMP B-TREE") and "RIGHT PART" not in one and "LAST TERM" not in one
    ]
    return [one for one in (*scans, *sorts) if not any(index in one for index in FEW)]


@pytest.mark.parametrize("name", QUESTIONS)
async def test_no_table_is_read_from_end_to_end(file: SqliteFile, name: str) -> None:
    journal = Journal(file)
    device_states = DeviceStates(file, csv_url=lambda session: session, clock=lambda: NOON)
    statements: list[str] = []
    await file.read(lambda connection: connection.set_trace_callback(statements.append))
    await QUESTIONS[name](journal, device_states)
    await file.read(lambda connection: connection.set_trace_callback(None))
    found = await plans(file, statements)
    assert found
    assert not (long := [f"{one}: {walks(plan)}" for one, plan in found.items() if walks(plan)]), "\n".join(long)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every statement that is run on a store from here on."""
    found: set[str] = set()
    opened = SqliteFile._open

    def traced(file: SqliteFile) -> sqlite3.Connection:
        connection = opened(file)
        connection.set_trace_callback(found.add)
        return connection

    monkeypatch.setattr(SqliteFile, "_open", traced)
    return found


async def test_the_running_bridge_reads_no_table_from_end_to_end(
    tmp_path: Path, statements: set[str], new_mosquitto: Callable[..., Mosquitto]
) -> None:
    """A bridge that does everything: deliveries that fail, are refused and replayed, a clock that is set, upkeep."""
    cloud, broker = SimulatedCloud(), new_mosquitto()
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    async with SimulatedServer(cloud) as server, receiver() as hook, receiver() as failing, receiver() as gone:
        failing.refuse_with, gone.refuse_with = 500, 410
        hooks = {"hook": {"url": hook.url}, "failing": {"url": failing.url}, "gone": {"url": gone.url}}
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port, hooks=hooks)
        for _ in range(2):  # the second one finds everything there
            with listening(broker.port, "bace/#") as listener:
                async with whole_bridge(path) as bridge:
                    await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                    before = len(hook.arrivals)
                    session = cloud.open_session(device.id_group)
                    cloud.add_points(session, series, [(cloud.session(session).start, 1.0)])
                    await until(lambda at=before: len(hook.arrivals) >= at + 2, within=SOON, what="its points")  # type: ignore[misc]  # binds now
                    cloud.end_session(session)
                    await bridge.has_said("session.ended")
                    await bridge.has_said("delivery.retry_scheduled")
                    await bridge.has_ticked(2)
                    assert (await ask(listener, "replay", session=session))["status"] == "ok"
                    assert (await ask(listener, "replay", since="2020-01-01T00:00:00Z"))["status"] == "ok"
    async with SqliteFile(tmp_path / "bridge.db") as file:
        log = EventLog(file)
        await log.backlog("hook")
        await log.retire_others(["hook"])
        for size in (2**30, 1):
            upkeep = Upkeep(file, log, Cap(file, size), retention=1.0, session_retention=1.0)
            for _ in range(3):
                await upkeep.piece(time.time() + 10**8)
        found = await plans(file, statements)
    for part in ("insert into events", "insert into lanes", "update lanes", "delete from events", "attempts", "slices"):
        assert any(part in one for one in found), f"{part} was not run"
    assert not (long := [f"{one}: {walks(plan)}" for one, plan in found.items() if walks(plan)]), "\n".join(long)


async def test_the_devices_of_many_sessions_are_found_by_few_steps(file: SqliteFile) -> None:
    """The bench has the times; this is the work, which no slow machine changes."""
    device_states = DeviceStates(file, csv_url=lambda session: session, clock=lambda: NOON)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    await file.read(lambda connection: connection.set_progress_handler(count, 100))
    began = time.perf_counter()
    assert len(await device_states.devices(None, available=True)) == DEVICES
    assert len(await device_states.known_devices()) == DEVICES
    seconds = time.perf_counter() - began
    await file.read(lambda connection: connection.set_progress_handler(None, 100))
    assert steps < 100, f"{100 * steps} of SQLite's steps, {seconds:.4f} s"
