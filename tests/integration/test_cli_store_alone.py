"""The commands that work on the store need `store.url` of the configuration, and nothing else of it."""

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bace_bridge.events.types import DeadLetter
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import deliver
from tests.integration.test_cli_sessions_events import COMMAND, ENV, bridge, fill, told, whole_life

REST = {
    "an unset variable of a webhook": "webhooks: [{name: a, url: 'https://${NO}/x', secret: '${NO}'}]",
    "one of the login": "cloud: {access_token: '${NO}'}",
    "secret files that are not there": "cloud: {password_file: /none}\nmqtt: [{name: a, password_file: /none}]",
    "no login": "cloud:",
    "a section that is none": "cloud: 5\nmqtt: here\nwebhooks: {a: b}\nhttp: []\nwatch: 5\ndatatypes: x",
    "unknown keys elsewhere": "cloud: {nope: 1}\nwebhooks: [{nope: 1}]\nhttp: {nope: 1}",
    "one key twice": "http: {listen: '', listen: ''}",
    "the store's other keys": "",
}
COMMANDS = ("sessions", "events", "dead-letters list", "dead-letters retry", "dead-letters drop --all")

AS_WIDE_AS_IT_IS = {key: value for key, value in ENV.items() if key not in {"COLUMNS", "LINES"}}
"""The workers of xdist have both, which would overrule the size of our terminal."""


def configure(folder: Path, rest: str) -> None:
    more = "" if rest else ", retention: '${NO}', max_size: 5"
    text = f"{rest}\nstore: {{url: 'sqlite:///${{BACE_STORE:-bridge}}.db'{more}}}\n"
    (folder / "bridge.yaml").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    configure(tmp_path, REST["no login"])
    return tmp_path


@pytest.fixture
async def file(folder: Path) -> AsyncIterator[SqliteFile]:
    """The store, held as a running bridge holds it; `a` has given up the first event of `session-5`."""
    async with SqliteFile(folder / "bridge.db") as opened:
        await fill(opened)
        await EventLog(opened).open_sink("a", target="t")
        known, events = whole_life(5)
        await Journal(opened).commit(Changes(known=(known,), events=tuple(events)))
        await deliver(opened, "a", dead=(DeadLetter(13, "session-5", 10, "gave up"),), now=known.session.start)
        yield opened


@pytest.mark.parametrize("what", REST)
async def test_what_is_wrong_elsewhere_stops_nothing(folder: Path, file: SqliteFile, what: str) -> None:
    del file
    configure(folder, REST[what])
    for command in COMMANDS:
        assert await told(folder, *command.split()), command
    assert (await asyncio.to_thread(bridge, folder, "check")).returncode == 78


async def test_what_needs_more_names_what_it_needs(folder: Path, file: SqliteFile) -> None:
    del file
    configure(folder, "cloud: {url: '${NO}', groups: ['${NO}']}\nwebhooks: [{name: a, url: '${NO}'}, {name: '${NO}'}]")
    assert (await told(folder, "replay", "--sink", "a", "--session", "session-0")).startswith("4 events for a")
    (newest, *_) = json.loads(await told(folder, "sessions", "--json"))
    assert (newest["id"], newest["csv_url"]) == ("session-5", None)
    assert "ready" in await told(folder, "sessions")
    done = await asyncio.to_thread(bridge, folder, "devices")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("cloud.groups[0]: the environment variable NO is not set")
    configure(folder, "cloud: {url: '${NO}', groups: [BaceGo-1], password_file: /none}")
    assert "BaceGo-1" in await told(folder, "devices")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cloud: [\n", "line 2, column 1"),
        ("stroe: {url: 'sqlite:///bridge.db'}", "stroe: is not a key that bace-bridge knows (did you mean store?)"),
        ("store: {ulr: 'sqlite:///bridge.db'}", "store.ulr: is not a key"),
        ("store: {url: '${NO}.db'}", "store.url: the environment variable NO is not set"),
        ("store: {url: 5}", "store.url: must be text"),
        ("store: {url: x.db}", "store.url: must name an SQLite file"),
        ("store: bridge.db", "store: must be a section"),
        ("store: {url: 'sqlite:///a.db'}\nstore: {url: 'sqlite:///b.db'}", "store: is given twice"),
    ],
)
async def test_where_the_store_cannot_be_known_it_is_exit_78(folder: Path, text: str, said: str) -> None:
    (folder / "bridge.yaml").write_text(text, encoding="utf-8")
    for command in COMMANDS:
        done = await asyncio.to_thread(bridge, folder, *command.split())
        assert (done.returncode, done.stdout) == (78, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("events --session nobody", 1, "unknown data session 'nobody'"),
        ("events --session nobody --json --limit 0", 1, "unknown data session 'nobody'"),
        ("dead-letters list --session nobody", 1, "unknown data session 'nobody'"),
        ("dead-letters list --session nobody --parked", 1, "unknown data session 'nobody'"),
        ("dead-letters retry --session nobody", 1, "unknown data session 'nobody'"),
        ("dead-letters drop --session nobody", 1, "unknown data session 'nobody'"),
        ("dead-letters list --sink nobody", 2, "there is no sink 'nobody'; there are: a, b"),
        ("dead-letters list --sink nobody --json", 2, "there is no sink 'nobody'; there are: a, b"),
        ("dead-letters retry --sink nobody", 2, "there is no sink 'nobody'; there are: b"),
        ("dead-letters drop --sink nobody", 2, "there is no sink 'nobody'; there are: a, b"),
        ("replay --sink nobody --since 1h", 2, "there is no sink 'nobody'; there are: b"),
        ("replay --sink b --session nobody", 1, "unknown data session 'nobody'"),
    ],
)
async def test_what_is_not_known_is_said(folder: Path, file: SqliteFile, command: str, code: int, said: str) -> None:
    """`a` has left the configuration, and its dead letters are there still."""
    del file
    configure(folder, "mqtt: [{name: b}]")
    done = await asyncio.to_thread(bridge, folder, *command.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr.splitlines()[-1]
    assert json.loads(await told(folder, "dead-letters", "list", "--sink", "b", "--json")) == []
    assert len(json.loads(await told(folder, "dead-letters", "list", "--sink", "a", "--json"))) == 1


async def test_a_data_session_whose_events_were_pruned_is_known(folder: Path, file: SqliteFile) -> None:
    await file.write(lambda connection: connection.execute("delete from events where session_id = 'session-0'"))
    assert await told(folder, "events", "--session", "session-0") == ""
    assert await told(folder, "dead-letters", "list", "--session", "session-0") == "No dead letters.\n"


@pytest.mark.parametrize(("columns", "wide"), [(80, False), (149, False), (150, True), (300, True)])
async def test_events_show_ids_where_there_is_room(folder: Path, file: SqliteFile, columns: int, wide: bool) -> None:
    del file
    (newest,) = [json.loads(line) for line in (await told(folder, "events", "--json", "--limit", "1")).splitlines()]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        command = [*COMMAND, "events", "--limit", "1"]
        running = subprocess.Popen(command, cwd=folder, env=AS_WIDE_AS_IT_IS, stdout=theirs)
        assert await asyncio.to_thread(running.wait, 60) == 0
        line = os.read(ours, 65536).decode().split()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (line[-2:] == ["session-5", newest["id"]]) is wide
    assert (newest["id"] in line) is wide


@pytest.mark.parametrize("broken", ["2>&1 | true", "2>/dev/full"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        *((one, 0) for one in ("sessions", "devices", "datatypes", "dead-letters list", "events --type nope")),
        ("events --session nobody", 1),
        ("check", 78),
    ],
)
async def test_a_reader_that_leaves_changes_no_exit_code(
    folder: Path, file: SqliteFile, command: str, code: int, broken: str
) -> None:
    del file
    shell = f"'{sys.executable}' -m bace_bridge {command} {broken}; exit ${{PIPESTATUS[0]}}"
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
    assert done.returncode == code
    assert "Traceback" not in done.stderr + done.stdout
