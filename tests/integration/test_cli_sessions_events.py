"""The real commands over a real store, most of them while the bridge's own connection holds it."""

import asyncio
import fcntl
import json
import os
import pty
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bace_bridge.events.types import CLOUD_UNREACHABLE, Event, bridge_event
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.datapoints import Datapoint, Datatype, datapoint_events
from bace_bridge.polling.rules.fetches import conclude
from bace_bridge.polling.rules.sessions import DataSession, KnownSession, observe, observe_absence
from bace_bridge.polling.rules.summaries import EMPTY
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.contract.test_migrations import store_of_schema_3

ROOT = Path(__file__).parents[2]
NOON = 1_764_590_400.0
URL = "https://bace.example.org"
SECRET = "s3cr3t-token"
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("BACE_")}
ENV = {**CLEAN, "PYTHONPATH": str(ROOT), "TZ": "UTC"}
COMMAND = [sys.executable, "-m", "bace_bridge"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = f"cloud: {{url: '{URL}', access_token: {SECRET}}}\nstore: {{url: 'sqlite:///bridge.db'}}\n"
    (tmp_path / "bridge.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
async def file(folder: Path) -> AsyncIterator[SqliteFile]:
    """The store, held as a running bridge holds it."""
    async with SqliteFile(folder / "bridge.db") as opened:
        yield opened


def bridge(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
        env={**ENV, **env},
    )


async def told(folder: Path, *arguments: str) -> str:
    done = await asyncio.to_thread(bridge, folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def session(number: int, *, label: str | None = "Night watch", **more: Any) -> DataSession:
    start = NOON + number * 1000
    return DataSession(f"session-{number}", "group-1", start, label=label, updated_at=start, **more)


def started(seen: DataSession, *, now: float | None = None) -> tuple[KnownSession, list[Event]]:
    found = observe(None, seen, device_label="BaceGo-1", start_from=-1.0, now=now or seen.start + 1)
    assert found is not None
    return found.known, list(found.events)


def points_of(known: KnownSession, count: int) -> list[Event]:
    start = known.session.start
    news = [Datapoint("series", "source", 6000, start + number, 70.0, 74.0, 72.0, 5) for number in range(count)]
    return datapoint_events(known, news, {6000: Datatype("Heart rate", "bpm")}, now=start + count)


def whole_life(number: int) -> tuple[KnownSession, list[Event]]:
    """A session from its start to its CSV, as the watcher tells it."""
    known, events = started(session(number))
    events += points_of(known, 3)
    begun = known.session
    over = msgspec.structs.replace(
        begun, end=begun.start + 90, ingestion_finished=True, datapoint_count=15, updated_at=begun.start + 95
    )
    seen = observe(known, over, device_label="BaceGo-1", start_from=-1.0, now=begun.start + 96)
    assert seen is not None
    csv_url = f"{URL}/api/v2/data-session/{begun.id}/download-csv"
    visited = conclude(seen.known, "read", summary=EMPTY, csv_url=csv_url, interval=15, now=begun.start + 97)
    return visited.known, [*events, *seen.events, *visited.events]


async def fill(file: SqliteFile) -> None:
    """Two sessions of a whole life, an active one, a removed one, and an outage of the cloud."""
    journal = Journal(file)
    for number in (0, 1):
        known, events = whole_life(number)
        await journal.commit(Changes(known=(known,), events=tuple(events)))
    known, events = started(session(2, label=None))
    await journal.commit(Changes(known=(known,), events=tuple(events)))
    known, events = started(session(3, label="Gone"))
    gone = observe_absence(known, now=known.session.start + 50)
    assert gone is not None
    await journal.commit(Changes(known=(gone.known,), events=(*events, *gone.events)))
    data = {"reason": "no answer", "since": "2026-01-01T00:00:00Z", "observed_at": "2026-01-01T00:00:00Z"}
    outage = bridge_event(CLOUD_UNREACHABLE, at=NOON + 5000, facts=(NOON,), data=data)
    await journal.commit(Changes(events=(outage,)))


class Running:
    """A command that goes on; its output goes to files, unless given a place, so that it can be read while it grows."""

    def __init__(self, folder: Path, *arguments: str, stdout: int | None = None) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [*COMMAND, *arguments]
            self.process = subprocess.Popen(command, stdout=stdout or out, stderr=err, cwd=folder, env=ENV)

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def errors(self) -> str:
        return self._err.read_text()

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, (self.lines, self.errors)
            assert self.process.poll() is None, self.errors
            await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 60)


async def test_sessions_are_a_table_newest_first(folder: Path, file: SqliteFile) -> None:
    await fill(file)
    lines = (await told(folder, "sessions")).splitlines()
    assert lines[0].split() == ["DEVICE", "SESSION", "STATE", "STARTED", "LASTED", "POINTS", "CSV", "ID"]
    assert [line.split()[-1] for line in lines[1:]] == ["session-3", "session-2", "session-1", "session-0"]
    assert "removed" in lines[1]
    assert "active" in lines[2]
    for shown in ("BaceGo-1", "Night watch", "ingested", "2025-12-01 12:16", "1m30s", " 15 ", "ready"):
        assert shown in lines[3]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
async def test_ids_can_be_copied_from_any_terminal(folder: Path, file: SqliteFile, columns: int) -> None:
    long = "6fd58d2a-5b9f-4d8e-9a51-0d5f6f1c9f30"
    start = DataSession(long, "group-1", NOON, label="Night watch with a label that is long", updated_at=NOON)
    known, events = started(start)
    await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        await asyncio.to_thread(
            subprocess.run, [*COMMAND, "sessions"], cwd=folder, env={**ENV, "TERM": "xterm"}, stdout=theirs, check=True
        )
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert long in shown
    assert "BaceGo-1" in shown
    assert "active" in shown


async def test_sessions_as_json(folder: Path, file: SqliteFile) -> None:
    await fill(file)
    rows = json.loads(await told(folder, "sessions", "--json"))
    assert [row["id"] for row in rows] == ["session-3", "session-2", "session-1", "session-0"]
    assert [row["removed"] for row in rows] == [True, False, False, False]
    assert rows[1]["csv_url"] is None
    assert rows[3] == {
        "id": "session-0",
        "group_id": "group-1",
        "label": "Night watch",
        "person_id": None,
        "state": "ingested",
        "started_at": "2025-12-01T12:00:00Z",
        "ended_at": "2025-12-01T12:01:30Z",
        "duration_seconds": 90.0,
        "datapoint_count": 15,
        "ingestion_finished": True,
        "archived": False,
        "updated_at": "2025-12-01T12:01:35Z",
        "device": {"id": "group-1", "label": "BaceGo-1"},
        "csv_url": f"{URL}/api/v2/data-session/session-0/download-csv",
        "removed": False,
    }


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--state", "active"], ["session-2"]),
        (["--state", "active", "--limit", "1"], ["session-2"]),
        (["--state", "ended"], []),
        (["--state", "ingested", "--limit", "1"], ["session-1"]),
        (["--limit", "2"], ["session-3", "session-2"]),
        (["--limit", "0"], ["session-3", "session-2", "session-1", "session-0"]),
    ],
)
async def test_sessions_can_be_narrowed(folder: Path, file: SqliteFile, arguments: list[str], ids: list[str]) -> None:
    await fill(file)
    assert [row["id"] for row in json.loads(await told(folder, "sessions", "--json", *arguments))] == ids


async def test_no_sessions(folder: Path, file: SqliteFile) -> None:
    assert await told(folder, "sessions") == "No data sessions.\n"
    assert json.loads(await told(folder, "sessions", "--json")) == []
    assert await told(folder, "events") == ""
    del file


async def test_events_are_lines_newest_last(folder: Path, file: SqliteFile) -> None:
    await fill(file)
    lines = (await told(folder, "events")).splitlines()
    assert [line.split()[2] for line in lines] == [
        *["session.started", "session.datapoints", "session.ended", "session.csv_ready"] * 2,
        "session.started",
        "session.started",
        "session.removed",
        "cloud.unreachable",
    ]
    assert lines[0].startswith("2025-12-01 12:00:00  session.started     BaceGo-1              Night watch")
    ids = [line.split()[-2:] for line in lines]
    rows = [json.loads(line) for line in (await told(folder, "events", "--json")).splitlines()]
    assert ids == [[row["session_id"] or "-", row["id"]] for row in rows]
    details = [" ".join(line.split()[:-2]) for line in lines]
    assert details[1].endswith("Night watch 3 points")
    assert details[2].endswith("Night watch lasted 1m30s")
    assert details[3].endswith(f"{URL}/api/v2/data-session/session-0/download-csv")
    assert details[-1].endswith("no answer")


async def test_events_as_json_lines(folder: Path, file: SqliteFile) -> None:
    await fill(file)
    rows = [json.loads(line) for line in (await told(folder, "events", "--json")).splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, 13))
    assert list(rows[0]) == ["seq", "id", "type", "time", "observed_at", "session_id", "device_id", "data"]
    assert (rows[0]["time"], rows[0]["observed_at"]) == ("2025-12-01T12:00:00Z", "2025-12-01T12:00:01Z")
    assert rows[1]["data"]["datapoints"][0]["avg"] == 72.0
    assert (rows[-1]["session_id"], rows[-1]["device_id"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        (["--type", "session.csv_ready"], [4, 8]),
        (["--type", "*.started", "--limit", "2"], [9, 10]),
        (["--session", "session-1"], [5, 6, 7, 8]),
        (["--session", "session-1", "--type", "session.ended", "--limit", "0"], [7]),
        (["--limit", "3"], [10, 11, 12]),
        (["--limit", "0"], list(range(1, 13))),
    ],
)
async def test_events_can_be_narrowed(folder: Path, file: SqliteFile, arguments: list[str], places: list[int]) -> None:
    await fill(file)
    lines = (await told(folder, "events", "--json", *arguments)).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == places


async def test_a_long_listing_shows_the_newest_and_misses_none(folder: Path, file: SqliteFile) -> None:
    known, events = started(session(0))
    for number in range(1300):
        events += points_of(started(session(number + 1))[0], 1)
    await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    for limit, first in (("0", 1), ("1250", 52), ("500", 802)):
        lines = (await told(folder, "events", "--json", "--limit", limit)).splitlines()
        assert [json.loads(line)["seq"] for line in lines] == list(range(first, 1302))


async def test_a_label_cannot_steer_the_terminal(folder: Path, file: SqliteFile) -> None:
    known, events = started(session(0, label="\x1b[31mred\nline [bold]"))
    await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    for command in ("sessions", "events"):
        out = await told(folder, command)
        assert "\x1b" not in out
        assert "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}line [bold]" in out


async def test_a_label_beyond_the_encoding_is_no_error(folder: Path, file: SqliteFile) -> None:
    known, events = started(session(0, label="Nachtwache Küche"))
    await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    for command in ("sessions", "events"):
        done = await asyncio.to_thread(bridge, folder, command, PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, "")
        assert "Nachtwache K?che" in done.stdout


@pytest.mark.parametrize("command", ["sessions", "events"])
def test_without_a_store_the_message_names_its_place(folder: Path, command: str) -> None:
    done = bridge(folder, command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: no store at {folder / 'bridge.db'} yet")
    sqlite3.connect(folder / "bridge.db").close()
    (folder / "bridge.db").touch()
    assert bridge(folder, command).returncode == 1


@pytest.mark.parametrize("command", ["sessions", "events"])
def test_a_wrong_configuration_is_exit_78(folder: Path, command: str) -> None:
    (folder / "bridge.yaml").write_text("cloud: {}\nnope: 1\n", encoding="utf-8")
    done = bridge(folder, command, "-c", "bridge.yaml")
    assert (done.returncode, done.stdout) == (78, "")
    assert "nope: " in done.stderr


@pytest.mark.parametrize("command", ["sessions", "events"])
def test_what_is_no_database_is_named(folder: Path, command: str) -> None:
    (folder / "bridge.db").write_text("no database at all" * 100, encoding="utf-8")
    done = bridge(folder, command)
    assert done.returncode == 70
    assert "is not a usable database" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_store_at_rest_can_be_read_too(folder: Path) -> None:
    async with SqliteFile(folder / "bridge.db") as file:
        await fill(file)
    assert len((await told(folder, "events")).splitlines()) == 12
    async with SqliteFile(folder / "bridge.db") as file:
        await file.write(lambda connection: connection.execute("delete from events where seq < 10"))
    assert len((await told(folder, "events")).splitlines()) == 3


def test_a_type_that_does_not_exist_is_pointed_out(folder: Path) -> None:
    done = bridge(folder, "events", "--type", "started")
    assert "'started' matches no event type; there are session.started, " in done.stderr


async def test_a_reader_that_leaves_is_no_error(folder: Path, file: SqliteFile) -> None:
    known, events = started(session(0))
    for number in range(600):
        events += points_of(started(session(number + 1))[0], 3)
    await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    for arguments in ("events --json", "events --limit 0", "events --follow", "sessions --json"):
        shell = f"'{sys.executable}' -m bace_bridge {arguments} | head -n 1; exit ${{PIPESTATUS[0]}}"
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", shell],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=60,
            env=ENV,
        )
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_following_prints_what_is_new(folder: Path, file: SqliteFile, number: signal.Signals) -> None:
    await fill(file)
    running = Running(folder, "events", "--follow", "--limit", "1", "--type", "session.*")
    await running.until(lambda: len(running.lines) == 1)
    assert "session.removed" in running.lines[0]
    known, events = whole_life(7)
    await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    await running.until(lambda: len(running.lines) == 5)
    assert [line.split()[2] for line in running.lines[1:]] == [event.type for event in events]
    assert await running.end(number) == 0
    assert running.errors == ""


@pytest.mark.parametrize(("limit", "already"), [("1", 1), ("0", 1201), ("1100", 1201)])
async def test_following_prints_each_line_once_though_the_store_fails_midway(
    folder: Path, file: SqliteFile, limit: str, already: int
) -> None:
    known, events = started(session(0))
    for number in range(1200):
        events += points_of(started(session(number + 1))[0], 4)
    await Journal(file).commit(Changes(known=(known,), events=tuple(events[:already])))
    said, theirs = os.pipe()
    running = Running(folder, "events", "--follow", "--json", "--limit", limit, stdout=theirs)
    os.close(theirs)
    with (
        os.fdopen(said, "rb", buffering=0) as pipe,
        (folder / "out").open("ab", buffering=0) as out,
        closing(sqlite3.connect(folder / "bridge.db", isolation_level=None)) as other,
    ):
        out.write(await asyncio.to_thread(pipe.readline))
        await Journal(file).commit(Changes(events=tuple(events[already:])))
        out.write(await asyncio.to_thread(pipe.readline))
        # The pipe holds less than the 500 events that are read at once, so the command is amid the first of them.
        other.execute("alter table events rename to away")
        rest = asyncio.create_task(asyncio.to_thread(shutil.copyfileobj, pipe, out))
        try:
            await running.until(lambda: "trying again" in running.errors)
            other.execute("alter table away rename to events")
            await running.until(lambda: running.lines[-1].startswith(f'{{"seq":{len(events)},'))
        finally:
            code = await running.end(signal.SIGTERM)
            await rest
        assert code == 0
    first = already - int(limit) + 1 if int(limit) else 1
    assert [json.loads(line)["seq"] for line in running.lines] == list(range(first, len(events) + 1))


async def test_following_a_data_session_that_is_not_known_waits_for_it(folder: Path) -> None:
    """Over a store at rest, which a bridge takes up then."""
    async with SqliteFile(folder / "bridge.db") as file:
        await fill(file)
    running = Running(folder, "events", "--follow", "--json", "--session", "session-7")
    await running.until(lambda: "unknown data session 'session-7'" in running.errors)
    for number in (6, 7):
        async with SqliteFile(folder / "bridge.db") as file:
            known, events = whole_life(number)
            await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    await running.until(lambda: len(running.lines) == 4)
    assert await running.end(signal.SIGTERM) == 0
    assert {json.loads(line)["session_id"] for line in running.lines} == {"session-7"}
    assert running.errors.count("waiting for it") == 1


async def test_following_waits_for_a_migration(folder: Path) -> None:
    """As amid one, which goes by steps: also that of a first start."""
    store_of_schema_3(folder / "bridge.db")
    running = Running(folder, "events", "--follow", "--json", "--limit", "1")
    await running.until(lambda: "(schema 3, this one knows" in running.errors)
    async with SqliteFile(folder / "bridge.db"):
        await running.until(lambda: len(running.lines) == 1)
    assert await running.end(signal.SIGTERM) == 0


async def test_following_waits_for_a_store_and_takes_up_another_one(folder: Path) -> None:
    running = Running(folder, "events", "--follow", "--json")
    await running.until(lambda: "waiting for it" in running.errors)
    path = folder / "bridge.db"
    async with SqliteFile(path) as file:
        await fill(file)
        await running.until(lambda: len(running.lines) == 12)
    for ending in ("", "-wal", "-shm", ".lock"):
        (folder / f"bridge.db{ending}").unlink(missing_ok=True)
    async with SqliteFile(path) as file:
        known, events = whole_life(9)
        await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
        await running.until(lambda: len(running.lines) == 16)
        assert json.loads(running.lines[-1])["seq"] == 4
    assert await running.end(signal.SIGTERM) == 0
    assert running.errors.count("waiting for it") >= 1


async def test_a_store_that_was_moved_away_is_outdated(folder: Path) -> None:
    """Between two readings of `events --follow`, at any moment."""
    path = folder / "bridge.db"
    async with SqliteFile(path):
        pass
    async with SqliteFile(path, read_only=True) as at_rest:
        assert not at_rest.outdated
        path.rename(folder / "elsewhere.db")
        assert at_rest.outdated


async def test_following_takes_up_a_store_that_was_restored_in_place(folder: Path) -> None:
    """By `cp`, so it is the same file, with a log that ends earlier."""
    path = folder / "bridge.db"
    async with SqliteFile(path) as file:
        known, events = started(session(0))
        await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
    backup = path.read_bytes()
    async with SqliteFile(path) as file:
        await fill(file)
    running = Running(folder, "events", "--follow", "--json")
    await running.until(lambda: len(running.lines) == 12)
    path.write_bytes(backup)
    await running.until(lambda: len(running.lines) == 13)
    async with SqliteFile(path) as file:
        known, events = started(session(9))
        await Journal(file).commit(Changes(known=(known,), events=tuple(events)))
        await running.until(lambda: len(running.lines) == 14)
    assert json.loads(running.lines[-1])["session_id"] == session(9).id
    assert await running.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("command", ["sessions", "sessions --json", "events", "events --json", "dead-letters list"])
@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
async def test_what_cannot_be_printed_is_one_line(
    folder: Path, file: SqliteFile, command: str, to: str, why: str
) -> None:
    await fill(file)
    shell = ["bash", "-c", f'"$0" -m bace_bridge {command} {to}', sys.executable]
    done = await asyncio.to_thread(
        subprocess.run, shell, capture_output=True, text=True, check=False, cwd=folder, timeout=60, env=ENV
    )
    assert (done.returncode, done.stderr) == (1, f"Error: cannot write to standard output: {why}\n")
