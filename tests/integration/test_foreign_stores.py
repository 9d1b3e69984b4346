"""The real process with a `store.url` that names something else: it says so, and nothing of that is changed."""

import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import pytest

from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.journal import Journal
from bace_bridge.store.ownership import APPLICATION_ID
from bace_bridge.store.sqlite import SqliteFile
from tests.contract.test_migrations import SCRIPTS, store_of_schema_1, store_of_schema_3, version_of

ROOT = Path(__file__).parents[2]
ENV = {**{key: value for key, value in os.environ.items() if not key.startswith("BACE_")}, "PYTHONPATH": str(ROOT)}
COMMANDS = {
    "run": ["run"],
    "sessions": ["sessions"],
    "events": ["events"],
    "devices": ["devices"],
    "list": ["dead-letters", "list"],
    "retry": ["dead-letters", "retry"],
    "drop": ["dead-letters", "drop", "--all"],
    "replay": ["replay", "--sink", "a", "--since", "1h"],
}


def bridge(folder: Path, *arguments: str, store: str = "b.db") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bace_bridge", *arguments, "-c", str(configured(folder, store))],
        capture_output=True, text=True, check=False, cwd=folder, timeout=60, env=ENV,
    )  # fmt: skip


def configured(folder: Path, store: str) -> Path:
    """Beside the folder, so that nothing changes in it."""
    config = folder.parent / "bridge.yaml"
    config.write_text(
        "cloud: {url: 'http://127.0.0.1:9', access_token: token}\n"
        f"store: {{url: 'sqlite:///{store}'}}\n"
        "webhooks: [{name: a, url: 'http://127.0.0.1:9/hook', secret: whsec_" + "A" * 32 + "}]\n"
        "http: {listen: ''}\n"
    )
    return config


def state_of(folder: Path) -> dict[str, object]:
    """Everything of every file, but what reading changes."""
    found: dict[str, object] = {".": folder.stat().st_mtime_ns}
    for one in folder.iterdir():
        of = one.lstat()
        content = one.read_bytes() if stat.S_ISREG(of.st_mode) else b""
        found[one.name] = (of.st_mode, of.st_ino, of.st_uid, of.st_gid, of.st_size, of.st_mtime_ns, content)
    return found


# --- what is not ours


def database(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    path.chmod(0o644)


def ended_midway(path: Path, *statements: str) -> None:
    """As by SIGKILL: what was in the WAL or the journal stays there."""
    code = "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    code += "for one in sys.argv[2:]: c.execute(one).fetchall()\nos._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(path), *statements], check=True, timeout=60)
    path.chmod(0o644)


HOME_ASSISTANT = ("pragma journal_mode = wal", "create table events (event_id)", "create table states (state_id)")


def without_shm(path: Path) -> None:
    ended_midway(path, *HOME_ASSISTANT)
    Path(f"{path}-shm").unlink()


def amid_a_transaction(path: Path) -> None:
    many = ["insert into states values (zeroblob(9000))"] * 100
    ended_midway(path, "create table states (a)", "pragma cache_size = 1", "begin", *many)
    assert Path(f"{path}-journal").exists()


def behind_a_link(path: Path) -> None:
    other = path.with_name("notes.txt")
    other.write_text("bread, milk")
    other.chmod(0o644)
    path.symlink_to(other)


def linked_database(path: Path) -> None:
    database(path.with_name("ha.db"), *HOME_ASSISTANT)
    path.symlink_to("ha.db")


def ours_and_one_more(path: Path) -> None:
    store_of_schema_3(path)
    database(path, "create table dashboard (a)")


def no_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def device(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may make a device")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    path.chmod(0o666)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "Home Assistant's": (lambda path: database(path, *HOME_ASSISTANT), "it has other tables: events, states"),
    "Home Assistant's, killed": (lambda path: ended_midway(path, *HOME_ASSISTANT), "it has other tables: events"),
    "Home Assistant's, restored without -shm": (without_shm, "what it holds is in its -wal"),
    "Home Assistant's, by a link": (linked_database, "it has other tables: events, states"),
    "Grafana's": (
        lambda path: database(path, *(f'create table "{one}" (id)' for one in ("org", "user", "team", "star"))),
        "it has other tables: org, star, team, ...",
    ),
    "one killed amid a transaction": (amid_a_transaction, "it has other tables: states"),
    "one table": (lambda path: database(path, "create table t (a)"), "it has other tables: t"),
    "one view": (lambda path: database(path, "create view v as select 1"), "it has other tables: v"),
    "our names, made by others": (
        lambda path: database(path, *(f"create table {one} (a)" for one in ("events", "sessions", "sinks"))),
        "it has other tables: events, sessions, sinks",
    ),
    "another mark": (lambda path: database(path, "pragma application_id = 7"), "its application_id is 0x7"),
    "no table, a version": (lambda path: database(path, "pragma user_version = 3"), "it says schema 3"),
    "no table, a negative version": (lambda path: database(path, "pragma user_version = -3"), "it says schema -3"),
    "some of our tables": (
        lambda path: database(path, "pragma user_version = 1", "create table events (a)", "create table facts (a)"),
        "it says schema 1, and has not the tables of that",
    ),
    "ours and one more": (ours_and_one_more, "it has other tables: dashboard"),
    "a text file": (lambda path: path.write_text("bread, milk"), "is not a usable database"),
    "a text file behind a link": (behind_a_link, "notes.txt is not a usable database"),
    "a single byte": (lambda path: path.write_bytes(b"\n"), "it holds a single byte"),
    "half a header": (lambda path: path.write_bytes(b"SQLite format 3\0"), "is not a usable database"),
    "a device": (device, "is a device, not a file: choose another store.url"),
    "a pipe": (os.mkfifo, "is a pipe, not a file"),
    "a socket": (no_file, "is a socket, not a file"),
    "a directory": (Path.mkdir, "is a directory, not a file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_ours_is_refused_and_left_as_it_is(tmp_path: Path, what: str) -> None:
    make, said = FOREIGN[what]
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder / "b.db")
    before = state_of(folder)
    ended = bridge(folder, "run")
    assert state_of(folder) == before
    assert ended.returncode == 70
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("what", ["Home Assistant's", "one table", "a text file behind a link", "a device"])
def test_every_command_leaves_it_as_it_is(tmp_path: Path, what: str) -> None:
    make, said = FOREIGN[what]
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder / "b.db")
    before = state_of(folder)
    for command, arguments in COMMANDS.items():
        ended = bridge(folder, *arguments)
        assert (command, ended.returncode, state_of(folder)) == (command, 70, before)
        assert said in ended.stderr.splitlines()[-1], command
    checked = bridge(folder, "check")
    assert (checked.returncode, state_of(folder)) == (0, before)
    assert "warning: store.url: " in checked.stdout
    assert said in checked.stdout


def test_a_database_that_another_program_has_open_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "b.db", isolation_level=None)) as other:
        for statement in (*HOME_ASSISTANT, "begin immediate", "insert into states values (1)"):
            other.execute(statement)
        before = state_of(folder)
        for arguments in (["run"], ["sessions"]):
            ended = bridge(folder, *arguments)
            assert (ended.returncode, state_of(folder)) == (70, before)
            assert "it has other tables: events, states" in ended.stderr
        other.execute("commit")
        assert other.execute("pragma integrity_check").fetchone() == ("ok",)


# --- what is ours


def mark_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("pragma application_id").fetchone()[0])


async def opened(path: Path) -> None:
    async with SqliteFile(path):
        pass


def killed_at_its_first_start(path: Path) -> None:
    """One of this version, whose tables are all in the WAL."""
    code = "import asyncio, os, sys; from pathlib import Path; from bace_bridge.store.sqlite import SqliteFile\n"
    code += "async def main():\n async with SqliteFile(Path(sys.argv[1])): os._exit(0)\nasyncio.run(main())"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60, env=ENV, capture_output=True)
    assert Path(f"{path}-wal").stat().st_size


def older_and_killed(path: Path) -> None:
    """One of an earlier version, without a mark, whose tables are all in the WAL."""
    script = (files("bace_bridge") / "store" / "schema" / SCRIPTS[0]).read_text("utf-8")
    code = "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    code += "c.execute('pragma journal_mode = wal')\n"
    code += "c.executescript('begin;' + sys.argv[2] + ';pragma user_version = 1;commit')\nos._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(path), script], check=True, timeout=60)
    assert Path(f"{path}-wal").stat().st_size > path.stat().st_size


def restored_without_shm(path: Path) -> None:
    killed_at_its_first_start(path)
    Path(f"{path}-shm").unlink()


def analyzed(path: Path) -> None:
    store_of_schema_3(path)
    database(path, "analyze")


OURS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _: None,
    "an empty file": lambda path: path.touch(),
    "a copy of /dev/null": lambda path: shutil.copyfile("/dev/null", path),
    "a database without tables": lambda path: database(path, "vacuum"),
    "a link to nothing": lambda path: path.symlink_to("elsewhere.db"),
    "schema 1": store_of_schema_1,
    "schema 3": store_of_schema_3,
    "statistics of SQLite's": analyzed,
    "schema 1, killed": older_and_killed,
    "killed at its first start": killed_at_its_first_start,
    "killed, restored without -shm": restored_without_shm,
}


@pytest.mark.parametrize("what", OURS)
async def test_what_is_ours_is_opened_and_marked(tmp_path: Path, what: str) -> None:
    path = tmp_path / "b.db"
    OURS[what](path)
    await opened(path)
    assert (mark_of(path), version_of(path)) == (APPLICATION_ID, len(SCRIPTS))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await opened(path)


async def test_a_table_that_a_person_has_added_to_a_marked_store_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    await opened(path)
    database(path, "create table notes (a)")
    await opened(path)


@pytest.mark.parametrize("mark", [0, APPLICATION_ID])
async def test_a_newer_store_is_left_as_it_is(tmp_path: Path, mark: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    await opened(folder / "b.db")
    (folder / "b.db.lock").unlink()
    database(folder / "b.db", "pragma user_version = 99", f"pragma application_id = {mark}", "create table future (a)")
    before = state_of(folder)
    for arguments in COMMANDS.values():
        ended = bridge(folder, *arguments)
        assert (ended.returncode, state_of(folder)) == (70, before)
        assert "was written by a newer bace-bridge (schema 99" in ended.stderr


@pytest.mark.parametrize("what", ["nothing", "an empty file", "a database without tables", "at rest", "schema 3"])
async def test_commands_that_only_read_make_and_change_nothing(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if what == "at rest":
        async with SqliteFile(folder / "b.db") as file:
            await Journal(file).commit(Changes(known=(KnownSession(session=DataSession("s1", "g1", 5.0)),)))
    else:
        OURS[what](folder / "b.db")
    before = state_of(folder)
    for command in ("sessions", "events", "devices", "list", "check"):
        ended = bridge(folder, *COMMANDS.get(command, [command]))
        assert (command, state_of(folder)) == (command, before)
        expected = 0 if what == "at rest" or command == "check" else 70 if what == "schema 3" else 1
        assert (command, ended.returncode, "Traceback" in ended.stderr) == (command, expected, False)


@pytest.mark.parametrize("kept", [32, None], ids=["the WAL's header alone", "all of the WAL"])
@pytest.mark.parametrize("shm", [bytes(32768), b"", b"\1" * 48 + bytes(32720)], ids=["zeros", "empty", "one header"])
async def test_a_store_of_which_a_kill_left_half_a_shm_is_opened(tmp_path: Path, shm: bytes, kept: int | None) -> None:
    """A reader alone cannot make it whole: SQLite would say "locking protocol" at every start."""
    async with SqliteFile(tmp_path / "live.db") as live:
        await live.checkpoint()
        await live.write(lambda connection: connection.execute("insert into facts values ('a', 'b')"))
        for end in ("", "-wal"):
            shutil.copy(tmp_path / f"live.db{end}", tmp_path / f"b.db{end}")
    wal = tmp_path / "b.db-wal"
    wal.write_bytes(wal.read_bytes()[:kept])
    (tmp_path / "b.db-shm").write_bytes(shm)
    async with SqliteFile(tmp_path / "b.db") as file:
        found = await file.read(lambda connection: connection.execute("select value from facts").fetchall())
    assert found == ([] if kept else [("b",)])
