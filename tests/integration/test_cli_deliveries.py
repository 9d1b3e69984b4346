"""`dead-letters` and `replay` over a real store that another connection holds as a running bridge does."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.events.types import DeadLetter, Event, FailedAttempt, Lane
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import deliver, lanes_of

ROOT = Path(__file__).parents[2]
NOON = 1_764_590_400.0
SECRET = "whsec_" + "A" * 32
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("BACE_")}
ENV = {**CLEAN, "PYTHONPATH": str(ROOT), "TZ": "UTC"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = {
        "cloud": {"url": "https://bace.example.org", "access_token": "token"},
        "store": {"url": "sqlite:///bridge.db"},
        "webhooks": [{"name": name, "url": f"https://{name}.example/hook", "secret": SECRET} for name in ("a", "b")],
    }
    (tmp_path / "bridge.yaml").write_text(json.dumps(settings))
    return tmp_path


@pytest.fixture
async def log(folder: Path) -> AsyncIterator[SqliteFile]:
    """Four events of two sessions; two of them are dead letters of `a`, and one waits for its next attempt at `b`."""
    async with SqliteFile(folder / "bridge.db") as file:
        event_log = EventLog(file)
        for name in ("a", "b"):
            await event_log.open_sink(name, target="t")
        events = [
            Event(f"evt_{number}", "session.updated", session, "g1", NOON, NOON + number, b"{}")
            for number, session in enumerate(("s1", "s2", "s1", "s1"), start=1)
        ]
        await Journal(file).commit(Changes(events=tuple(events)))
        failed = tuple(
            FailedAttempt(1, number, NOON + number, 0.25, "HTTP 500: no\x1b[31m", 500, "no") for number in (1, 2)
        )
        dead = (DeadLetter(1, "s1", 10, "gave up: HTTP 500"), DeadLetter(2, "s2", 1, "rejected"))
        await deliver(file, "a", dead=dead, failed=failed, now=NOON + 60)
        await deliver(file, "b", waits={"s1": Lane("s1", 3, 2, NOON + 90, "HTTP 502", behind=True)})
        yield file


async def bridge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "bace_bridge", *arguments],
        capture_output=True, text=True, check=False, cwd=folder, timeout=60, env=ENV,
    )  # fmt: skip


async def printed(folder: Path, *arguments: str) -> str:
    done = await bridge(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


async def listed(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(await printed(folder, "dead-letters", "list", "--json", *arguments))
    return rows


async def test_dead_letters_are_listed_with_their_last_attempts(folder: Path, log: SqliteFile) -> None:
    del log
    second, first = await listed(folder)
    assert (first["event_id"], first["sink"], first["session_id"], first["attempts"]) == ("evt_1", "a", "s1", 10)
    assert (first["state"], first["at"], first["reason"]) == ("dead", "2025-12-01T12:01:00Z", "gave up: HTTP 500")
    assert [(one["number"], one["status"], one["seconds"]) for one in first["last_attempts"]] == [
        (1, 500, 0.25),
        (2, 500, 0.25),
    ]
    assert second["last_attempts"] == []
    assert [one["event_id"] for one in await listed(folder, "--session", "s2")] == ["evt_2"]
    assert [one["event_id"] for one in await listed(folder, "--limit", "1")] == ["evt_2"], "the last one first"
    assert len(await listed(folder, "--limit", "0")) == 2, "0: all"
    assert await listed(folder, "--sink", "b") == []


async def test_parked_deliveries_are_listed_apart(folder: Path, log: SqliteFile) -> None:
    del log
    (parked,) = await listed(folder, "--parked")
    assert (parked["event_id"], parked["sink"], parked["attempts"], parked["behind"]) == ("evt_3", "b", 2, 1)
    table = await printed(folder, "dead-letters", "list", "--parked")
    assert "NEXT ATTEMPT" in table
    assert "2025-12-01 12:01:30" in table
    assert "HTTP 502" in table


async def test_a_table_for_people_steers_no_terminal(folder: Path, log: SqliteFile) -> None:
    del log
    table = await printed(folder, "dead-letters", "list")
    for shown in ("GIVEN UP", "evt_1", "evt_2", "gave up: HTTP 500"):
        assert shown in table
    assert "\x1b" not in table


async def test_retry_asks_the_bridge_and_takes_the_letter_away(folder: Path, log: SqliteFile) -> None:
    said = await printed(folder, "dead-letters", "retry", "evt_1")
    assert said == "1 dead letter queued for retry: the running bridge starts at once\n"
    assert [one["event_id"] for one in await listed(folder)] == ["evt_2"]
    assert [one.key for one in await lanes_of(log, "a")] == ["letter:1"]
    assert (await printed(folder, "dead-letters", "retry")).startswith("1 dead letter queued for retry")
    assert await printed(folder, "dead-letters", "retry", "--all") == "0 dead letters queued for retry\n"


async def test_drop_takes_only_what_is_named(folder: Path, log: SqliteFile) -> None:
    assert (await bridge(folder, "dead-letters", "drop")).returncode == 2
    assert await printed(folder, "dead-letters", "drop", "--session", "s1") == "1 dead letter dropped\n"
    assert [one["event_id"] for one in await listed(folder)] == ["evt_2"]
    assert await lanes_of(log, "a") == []
    assert await printed(folder, "dead-letters", "drop", "--all") == "1 dead letter dropped\n"
    assert await printed(folder, "dead-letters", "list") == "No dead letters.\n"


async def test_replay_asks_for_what_is_recorded(folder: Path, log: SqliteFile) -> None:
    said = await printed(folder, "replay", "--sink", "a", "--session", "s1")
    assert said == "3 events for a: the running bridge starts at once\n"
    assert [(one.key, one.seq, one.replay_through) for one in await lanes_of(log, "a")] == [("s1", 1, 4)]
    assert [(one.key, one.seq) for one in await lanes_of(log, "b")] == [("s1", 3)]
    said = await printed(folder, "replay", "--sink", "a", "--since", "2025-12-01T12:00:02Z")
    assert said.startswith("3 events for a")


async def test_a_duration_goes_back_from_now(folder: Path, log: SqliteFile) -> None:
    now, hour = time.time(), 3600
    recent = [
        Event(f"evt_{ago}h", "session.updated", f"ago-{ago}", "g1", NOON, now - ago * hour, b"{}") for ago in (5, 3, 1)
    ]
    await Journal(log).commit(Changes(events=tuple(recent)))
    await deliver(log, "a")
    assert (await printed(folder, "replay", "--sink", "a", "--since", "2h")).startswith("1 event for a")
    assert [one.key for one in await lanes_of(log, "a")] == ["ago-1"]
    assert (await printed(folder, "replay", "--sink", "b", "--since", "4h")).startswith("2 events for b")


async def test_without_a_running_bridge_it_says_when(folder: Path) -> None:
    async with SqliteFile(folder / "bridge.db") as file:
        await EventLog(file).open_sink("a", target="t")
        event = Event("evt_1", "session.updated", "s1", "g1", NOON, NOON, b"{}")
        await Journal(file).commit(Changes(events=(event,)))
        await deliver(file, "a")
    said = await printed(folder, "replay", "--sink", "a", "--session", "s1")
    assert said == "1 event for a: the bridge is not running: delivery starts when it does\n"
    async with SqliteFile(folder / "bridge.db") as file:
        (lane,) = await lanes_of(file, "a")
    assert (lane.key, lane.seq) == ("s1", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("replay", "--sink", "c", "--session", "s1"), 2, "there is no sink 'c'; there are: a, b"),
        (("replay", "--sink", "a"), 2, "give either --session ID or --since TIME"),
        (("replay", "--sink", "a", "--session", "s1", "--since", "1h"), 2, "give either"),
        (("replay", "--sink", "a", "--since", "yesterday"), 2, "2026-01-31T00:00:00Z"),
        (("replay", "--sink", "a", "--session", "s9"), 1, "no such events in the log"),
        (("dead-letters", "retry", "evt_9"), 1, "there is no such dead letter"),
        (("dead-letters", "retry", "--sink", "c"), 2, "there is no sink 'c'"),
        (("dead-letters", "retry", "--all", "evt_1"), 2, "--all cannot be combined with anything else"),
        (("dead-letters", "drop", "evt_9"), 1, "there is no such dead letter"),
    ],
)
async def test_what_cannot_be_done_is_said(
    folder: Path, log: SqliteFile, arguments: tuple[str, ...], code: int, said: str
) -> None:
    del log
    done = await bridge(folder, *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("dead-letters", "list"), ("replay", "--sink", "a", "--session", "s1")])
async def test_without_a_store_they_say_what_makes_it(folder: Path, arguments: tuple[str, ...]) -> None:
    done = await bridge(folder, *arguments)
    assert (done.returncode, "bace-bridge run creates it" in done.stderr) == (1, True)
    assert not (folder / "bridge.db").exists()
    (folder / "bridge.db").touch()  # as at the very beginning of the first start
    done = await bridge(folder, *arguments)
    assert (done.returncode, "bace-bridge run creates it" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "command", [("replay",), ("dead-letters",), ("dead-letters", "list"), ("dead-letters", "drop")]
)
async def test_help_and_version_work_everywhere(folder: Path, command: tuple[str, ...]) -> None:
    assert "Usage: bace-bridge" in await printed(folder, *command, "--help")
    assert (await printed(folder, *command, "--version")).startswith("bace-bridge ")


async def test_a_sink_that_is_disabled_is_asked_for_nothing(folder: Path, log: SqliteFile) -> None:
    reported_of_it = Event("evt_9", "sink.disabled", None, None, NOON, NOON, b'{"sink":"a"}')
    await EventLog(log).disable("a", "HTTP 410: the endpoint is gone", reported_of_it)
    for arguments in (("replay", "--sink", "a", "--session", "s1"), ("dead-letters", "retry", "--sink", "a")):
        done = await bridge(folder, *arguments)
        assert (done.returncode, "a is disabled (HTTP 410: the endpoint is gone)" in done.stderr) == (1, True)
    assert await printed(folder, "dead-letters", "retry") == "0 dead letters queued for retry\n"
    assert len(await listed(folder)) == 2, "they stay"
