import asyncio
import contextlib
import signal
import sqlite3
import stat
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from bace_bridge.errors import StoreError, StoreLocked, StoreUnusable
from bace_bridge.events.types import Announced
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import RetainedLedger
from bace_bridge.store.journal import Journal
from bace_bridge.store.migrations import migrate
from bace_bridge.store.ownership import APPLICATION_ID
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import lanes_of

SCRIPTS = sorted(one.name for one in (files("bace_bridge") / "store" / "schema").iterdir() if one.name.endswith(".sql"))
KNOWN = KnownSession(session=DataSession("s1", "g1", 5.0))


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("pragma user_version").fetchone()[0])
    finally:
        connection.close()


def set_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"pragma user_version = {version}")
    connection.close()


async def opened(path: Path, *, read_only: bool = False) -> int:
    """Opens and closes it; returns how many sessions it holds."""
    async with SqliteFile(path, read_only=read_only) as file:
        return len(await Journal(file).known_after("unfinished", "", 1000))


async def filled(path: Path) -> None:
    async with SqliteFile(path) as file:
        await Journal(file).commit(Changes(known=(KNOWN,)))


def test_migrations_are_numbered_without_gaps() -> None:
    assert [int(name[:4]) for name in SCRIPTS] == list(range(1, len(SCRIPTS) + 1))


async def test_a_new_store_has_the_newest_schema(tmp_path: Path) -> None:
    assert await opened(tmp_path / "b.db") == 0
    assert version_of(tmp_path / "b.db") == len(SCRIPTS)


async def test_opening_again_migrates_nothing(tmp_path: Path) -> None:
    await filled(tmp_path / "b.db")
    assert await opened(tmp_path / "b.db") == 1
    assert version_of(tmp_path / "b.db") == len(SCRIPTS)


def test_a_step_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
    connection.execute("create table events (in_the_way)")
    with pytest.raises(sqlite3.OperationalError, match="events"):
        migrate(connection, tmp_path / "b.db")
    connection.close()
    assert version_of(tmp_path / "b.db") == 0
    connection = sqlite3.connect(tmp_path / "b.db")
    assert connection.execute("select name from sqlite_master where type = 'table'").fetchall() == [("events",)]
    connection.close()


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "b.db"
    await filled(path)
    set_version(path, 99)
    with pytest.raises(StoreUnusable, match=r"newer bace-bridge \(schema 99, this one knows"):
        await opened(path, read_only=read_only)
    assert version_of(path) == 99
    set_version(path, len(SCRIPTS))
    assert await opened(path) == 1


async def test_a_second_instance_is_kept_out_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    await filled(path)
    async with SqliteFile(path) as held:
        with pytest.raises(StoreLocked, match="another running bace-bridge"):
            await opened(path)
        assert await opened(path, read_only=True) == 1
        assert len(await Journal(held).known_after("unfinished", "", 1000)) == 1
    assert await opened(path) == 1


async def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    await filled(path)
    async with SqliteFile(path, read_only=True) as file:
        with pytest.raises(StoreError, match="readonly"):
            await Journal(file).commit(Changes(known=(KNOWN,)))
    with pytest.raises(StoreError):
        await opened(tmp_path / "none.db", read_only=True)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    "content", [b"this is no database, but a long text " * 200, b"SQLite format 3\x00" + b"\xff" * 5000]
)
async def test_a_file_that_is_no_store_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.db"
    path.write_bytes(content)
    with pytest.raises(StoreUnusable, match=r"b\.db is not a usable database"):
        await opened(path)
    assert path.read_bytes() == content


async def test_the_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "b.db"
    path.parent.mkdir()
    path.write_bytes(b"")
    path.chmod(0o644)
    assert await opened(path) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnusable, match="not writable"):
        await opened(tmp_path / "file" / "b.db")


async def test_a_full_disk_refuses_a_write_and_takes_it_later(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    many = Changes(known=tuple(KnownSession(session=DataSession(f"s{one}", "g1", 5.0)) for one in range(500)))
    async with SqliteFile(path) as file:
        await file.read(lambda connection: connection.execute("pragma max_page_count = 30").fetchall())
        with pytest.raises(StoreError, match="disk is full") as caught:
            await Journal(file).commit(many)
        assert not isinstance(caught.value, StoreUnusable)
        assert await Journal(file).known_after("unfinished", "", 1000) == []
        await file.read(lambda connection: connection.execute("pragma max_page_count = 100000").fetchall())
        await Journal(file).commit(many)
        assert len(await Journal(file).known_after("unfinished", "", 1000)) == 500


async def test_what_failed_midway_does_not_hold_up_what_follows(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:

        def break_down(connection: sqlite3.Connection) -> None:
            connection.execute("insert into facts values ('half', 'done')")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await file.write(break_down)
        await Journal(file).commit(Changes(known=(KNOWN,)))
        assert await file.read(lambda connection: connection.execute("select * from facts").fetchall()) == []


async def test_a_write_whose_caller_is_gone_does_not_hold_up_what_follows(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        writing = asyncio.ensure_future(Journal(file).commit(Changes(known=(KNOWN,))))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        other = KnownSession(session=DataSession("s2", "g1", 6.0))
        await Journal(file).commit(Changes(known=(other,)))
        assert other in await Journal(file).known_after("unfinished", "", 1000)


# --- migrations of what is already there

SCHEMA_1 = Path(__file__).with_name("schema1.sql")

KILLED_AT = """
import os, signal, sqlite3, sys
from pathlib import Path
from bace_bridge.store.migrations import migrate
from tests.delivered import lanes_of
left = int(sys.argv[2])
def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.set_trace_callback(count)
migrate(connection, Path(sys.argv[1]))
"""
"""Ends as a power cut does, before the n-th statement of the migrations."""


def store_of_schema_1(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA_1.read_text("utf-8"))
    connection.close()


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """What a store of schema 1 holds, in the columns that it has."""
    tables = ("sessions", "windows", "latest", "events", "dead_letters", "facts")
    old = sqlite3.connect(":memory:")
    old.executescript(SCHEMA_1.read_text("utf-8"))
    connection = sqlite3.connect(path)
    found = {}
    for table in tables:
        width = len(old.execute(f"pragma table_info({table})").fetchall())
        rows = connection.execute(f"select * from {table}").fetchall()  # noqa: S608  # names of the schema
        found[table] = [tuple(as_named_in_schema_1(value) for value in row[:width]) for row in rows]
    connection.close()
    old.close()
    return found


def as_named_in_schema_1(value: object) -> object:
    """JSON of a known session, with the names that its fields had then."""
    if not isinstance(value, str):
        return value
    for then, now in (
        ("visit_at", "fetch_at"),
        ("end_told", "end_emitted"),
        ("failed_visits", "failed_fetches"),
        ("count_visited", "count_fetched"),
    ):
        value = value.replace(f'"{now}":', f'"{then}":')
    return value


async def test_a_store_of_schema_1_opens_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    store_of_schema_1(path)
    before = content(path)
    assert version_of(path) == 1
    await opened(path)
    assert version_of(path) == len(SCRIPTS)
    assert content(path) == before
    async with SqliteFile(path) as file:
        log = EventLog(file)
        assert await log.open_sink("hook", target="t") is None
        lanes = {one.key: (one.seq, one.attempts, one.due_at, one.behind) for one in await lanes_of(file, "hook")}
        assert lanes == {"s1": (4, 0, 0.0, False), "s2": (2, 3, 1764590400.0, True)}
        assert await log.open_sink("gone", target="t") == "HTTP 410"
        assert await lanes_of(file, "gone") == []
        assert await log.open_sink("gone", target="another") is None
        assert [one.seq for one in await lanes_of(file, "gone")] == [1, 2, 3]
        assert [one.seq for one in await log.read(after=3, limit=9)] == [4, 5, 6, 7, 8]
        known = await Journal(file).known(["s1", "s2", "s3"])
        assert {one.session.state for one in known.values()} == {"ingested"}
        assert {one.end_emitted for one in known.values()} == {1764590460.0}
        assert len((await Journal(file).windows(["s1"]))["s1"]) == 1


SCHEMA_3_HOLDS = """
insert into sinks (name, cursor, target, retired, disabled_at, disabled_reason) values
  ('hook', 6, 't', 0, null, null), ('off', 4, 't', 0, 1.0, 'HTTP 410'), ('left', 2, 't', 1, null, null);
insert into events (id, type, session_id, device_id, time, observed_at, data)
  select 'evt_' || value, 'session.updated', nullif('s' || (value % 4), 's0'), 'g1', 1.0, 2.0, cast('{}' as blob)
  from json_each('[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]');
insert into parked (sink, key, seq, attempts, at, reason, replay_upto) values
  ('hook', 's1', 5, 2, 90.0, 'HTTP 500', 3), ('hook', 's2', 6, 0, 0.0, 'under way', 0),
  ('hook', 's3', 7, 0, 50.0, 'HTTP 500', 0), ('hook', 'letter:3', 3, 1, 70.0, 'HTTP 500', 0),
  ('off', 's2', 2, 1, 80.0, 'HTTP 500', 0);
insert into dead_letters values ('hook', 2, 's2', 10, 'gave up', 60.0);
insert into asked values ('hook', ':bridge', 4), ('hook', 's1', 1), ('hook', 's2', 10), ('hook', 'letter:1', 1),
  ('hook', 's3', 11), ('new', 's2', 6);
"""
"""Ten events of three data sessions and the bridge itself, which are 4 and 8; deliveries of every kind."""

IN_ROWS = {
    "hook": {
        # lane: (place, attempts, due, reason, replay through, behind)
        ":bridge": (4, 0, 0.0, "asked for", 7, True),
        "letter:1": (1, 0, 0.0, "asked for", 0, True),
        "letter:3": (3, 1, 70.0, "HTTP 500", 0, True),
        "s1": (1, 0, 0.0, "asked for", 4, True),
        "s2": (6, 0, 0.0, "", 0, False),
        "s3": (7, 0, 50.0, "HTTP 500", 0, True),
    },
    "off": {"s2": (2, 1, 80.0, "HTTP 500", 0, True)},
    "left": {},
    "new": {"s2": (6, 0, 0.0, "asked for", 10, True)},
}


def store_of_schema_3(path: Path) -> None:
    folder = files("bace_bridge") / "store" / "schema"
    with sqlite3.connect(path) as connection:
        for name in SCRIPTS[:3]:
            connection.executescript((folder / name).read_text("utf-8"))
        connection.executescript(f"{SCHEMA_3_HOLDS}; pragma user_version = 3")
    connection.close()


async def in_rows(file: SqliteFile) -> dict[str, dict[str, tuple[object, ...]]]:
    return {
        sink: {
            one.key: (one.seq, one.attempts, one.due_at, one.reason, one.replay_through, one.behind)
            for one in await lanes_of(file, sink)
        }
        for sink in IN_ROWS
    }


async def test_deliveries_of_every_kind_become_rows(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    store_of_schema_3(path)
    async with SqliteFile(path) as file:
        assert await in_rows(file) == IN_ROWS
        sinks = await file.read(
            lambda one: one.execute("select name, routed_through, disabled_reason from sinks order by name").fetchall()
        )
        assert sinks == [("hook", None, None), ("left", 2, None), ("new", 10, None), ("off", 4, "HTTP 410")]
        letters = await file.read(lambda one: one.execute("select * from dead_letters").fetchall())
        assert letters == [("hook", 2, "s2", 10, "gave up", 60.0)]
        log = EventLog(file)
        await log.open_sink("left", target="t")
        await log.open_sink("off", target="another")
        assert {one.key: one.seq for one in await lanes_of(file, "left")} == {"s3": 3, ":bridge": 4, "s1": 5, "s2": 6}
        assert {one.key: one.seq for one in await lanes_of(file, "off")} == {"s2": 2, "s1": 5, "s3": 7, ":bridge": 8}


async def test_a_reader_beside_an_older_store_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    store_of_schema_3(path)
    with pytest.raises(StoreUnusable, match=r"older bace-bridge \(schema 3.*start this version's service once"):
        await opened(path, read_only=True)
    assert version_of(path) == 3
    await opened(path)
    assert await opened(path, read_only=True) == 0


@pytest.mark.parametrize(("given", "step"), [("nothing", 3), ("schema 1", 1), ("schema 3", 1)])
async def test_a_migration_that_was_killed_at_any_statement_goes_on(tmp_path: Path, given: str, step: int) -> None:
    killed = 0
    for statement in range(1, 400, step):
        path = tmp_path / f"{statement}.db"
        if given == "schema 1":
            store_of_schema_1(path)
        elif given == "schema 3":
            store_of_schema_3(path)
        ended = subprocess.run([sys.executable, "-c", KILLED_AT, str(path), str(statement)], check=False, timeout=60)
        killed += ended.returncode == -signal.SIGKILL
        await opened(path)
        assert version_of(path) == len(SCRIPTS)
        if given == "schema 1":
            assert len(content(path)["events"]) == 8
        elif given == "schema 3":
            async with SqliteFile(path) as file:
                assert await in_rows(file) == IN_ROWS
            assert version_of(path.with_name(f"{path.name}.before-v{len(SCRIPTS)}")) == 3
        if ended.returncode == 0:
            break
    assert ended.returncode == 0
    assert killed >= (5 if given == "nothing" else 1), "the loop has come to the end of the scripts"


async def test_a_ledger_of_the_version_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for name in SCRIPTS[:7]:
            connection.executescript((files("bace_bridge") / "store" / "schema" / name).read_text("utf-8"))
        connection.executescript("insert into retained values ('b:1883', 'home', 'bace/g1/session')")
        connection.executescript(f"pragma application_id = {APPLICATION_ID}; pragma user_version = 7")
    async with SqliteFile(path) as file:
        ledger = RetainedLedger(file, sink="home", broker="b:1883")
        assert (await ledger.topics(), await ledger.announced()) == ({"bace/g1/session"}, {})
        await ledger.note_announced({"x/config": Announced({"a": "sensor"})})
        assert await ledger.topics() == {"bace/g1/session", "x/config"}
