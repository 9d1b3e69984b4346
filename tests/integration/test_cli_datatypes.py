"""The real command `datatypes` over a real store, while the bridge's own connection holds it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.changes import Changes, LatestSeen
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.test_cli_sessions_events import NOON, bridge

LOGIN = "cloud: {access_token: none-needed}\nstore: {url: 'sqlite:///bridge.db'}\n"


def configure(folder: Path, datatypes: str = "") -> None:
    (folder / "bridge.yaml").write_text(f"{LOGIN}{datatypes}", encoding="utf-8")


async def shown(folder: Path, *arguments: str, code: int = 0, **env: str) -> str:
    done = await asyncio.to_thread(bridge, folder, "datatypes", *arguments, **env)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done
    return done.stderr if code else done.stdout


async def rows(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["datatype"]: row for row in json.loads(await shown(folder, "--json"))}


def newest(device: str, source: str, datatype: int, at: float, value: float | None, session: str = "") -> LatestSeen:
    point = msgspec.json.encode({"datatype": datatype, "timestamp": iso_utc(at), "avg": value})
    return LatestSeen(device, source, datatype, at, point, session or f"session of {device}")


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    configure(tmp_path)
    async with SqliteFile(tmp_path / "bridge.db") as opened:
        yield opened


@pytest.fixture
async def filled(file: SqliteFile) -> SqliteFile:
    """Two devices, of which one has two sources; of the datatypes 5205 and -3 no name is built in."""
    await Journal(file).commit(
        Changes(
            latest=(
                newest("a", "one", 6000, NOON, 61.0),
                newest("a", "two", 6000, NOON + 90, 72.25),
                newest("b", "three", 6000, NOON + 30, 80.0),
                newest("b", "three", 5205, NOON + 60, 1013.256789),
                newest("a", "one", -3, NOON + 60, None),
            )
        )
    )
    return file


async def test_the_table_and_yaml_for_what_has_no_name(tmp_path: Path, filled: SqliteFile) -> None:
    del filled
    lines = (await shown(tmp_path)).splitlines()
    assert lines[0].split() == ["DATATYPE", "NAME", "UNIT", "DEVICES", "SOURCES", "LAST", "VALUE", "LAST", "SEEN"]
    assert [line.split() for line in lines[1:4]] == [
        ["-3", "-", "-", "1", "1", "-", "2025-12-01", "12:01"],
        ["5205", "-", "-", "1", "1", "1013.257", "2025-12-01", "12:01"],
        ["6000", "Heart", "rate", "bpm", "2", "3", "72.25", "2025-12-01", "12:01"],
    ]
    assert lines[6:] == ["  -3: {name: Datatype -3, unit: }", "  5205: {name: Datatype 5205, unit: }"]


async def test_json(tmp_path: Path, filled: SqliteFile) -> None:
    del filled
    configure(tmp_path, "datatypes: {6000: {unit: 1/min}, 5205: {name: Air pressure}}")
    found = await rows(tmp_path)
    assert list(found) == [-3, 5205, 6000]
    assert found[6000] == {
        "datatype": 6000,
        "name": "Heart rate",
        "unit": "1/min",
        "devices": 2,
        "sources": 3,
        "last_value": 72.25,
        "last_at": iso_utc(NOON + 90),
    }
    assert (found[5205]["name"], found[5205]["unit"], found[-3]["last_value"]) == ("Air pressure", None, None)


@pytest.mark.parametrize(
    "above",
    ["datatypes:\n", "datatypes:\n  6000: {name: Pulse}\n", "datatypes:  # names\n  5204:\n    name: Other\n"],
    ids=["an empty section", "beside another", "beside a block"],
)
async def test_the_snippet_is_valid_where_it_is_pasted(tmp_path: Path, filled: SqliteFile, above: str) -> None:
    del filled
    configure(tmp_path, above)
    _, _, snippet = (await shown(tmp_path)).partition("\n\n")
    assert snippet.startswith("#")
    configure(tmp_path, above + snippet)
    checked = await asyncio.to_thread(bridge, tmp_path, "check")
    assert (checked.returncode, checked.stderr) == (0, "")
    found = await rows(tmp_path)
    assert [found[number]["name"] for number in (-3, 5205)] == ["Datatype -3", "Datatype 5205"]
    assert found[5205]["unit"] is None
    assert "#" not in await shown(tmp_path), "all have names now"


async def test_what_the_file_cannot_take_is_a_comment(tmp_path: Path, file: SqliteFile) -> None:
    long = 10**12
    points = (newest("a", "one", long, NOON, 1.0), newest("a", "one", 5205, NOON, 1.0))
    await Journal(file).commit(Changes(latest=points))
    beside = "datatypes:\n  5205: {unit: mV}\n"
    configure(tmp_path, beside)
    _, _, snippet = (await shown(tmp_path)).partition("\n\n")
    assert "# 5205 is there already" in snippet
    assert f"# {long} cannot have a name" in snippet
    configure(tmp_path, beside + snippet)
    assert (await asyncio.to_thread(bridge, tmp_path, "check")).returncode == 0


async def test_what_only_a_removed_data_session_had_is_left_out(tmp_path: Path, file: SqliteFile) -> None:
    def known(number: str, *, removed: bool) -> KnownSession:
        return KnownSession(session=DataSession(number, "a", NOON), removed=removed)

    of_both = (newest("a", "one", 6000, NOON, 1.0, "gone"), newest("a", "one", 6001, NOON, 2.0, "kept"))
    await Journal(file).commit(Changes(known=(known("gone", removed=True), known("kept", removed=False))))
    await Journal(file).commit(Changes(latest=of_both))
    assert list(await rows(tmp_path)) == [6001]


async def test_names_cannot_steer_the_terminal(tmp_path: Path, filled: SqliteFile) -> None:
    del filled
    configure(tmp_path, 'datatypes: {6000: {name: "[red]ra\\u202ete", unit: "½ bpm"}}')
    assert re.search(r"6000 +\[red\]ra\ufffdte +½ bpm", await shown(tmp_path))
    assert re.search(r"6000 +\[red\]ra\?te +\? bpm", await shown(tmp_path, PYTHONIOENCODING="ascii"))
    assert (await rows(tmp_path))[6000]["name"] == "[red]ra\u202ete"


async def test_nothing_was_seen(tmp_path: Path, file: SqliteFile) -> None:
    del file
    assert await shown(tmp_path) == "No datatypes.\n"
    assert json.loads(await shown(tmp_path, "--json")) == []


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 1, "Error: no store at "),
        ("datatypes: x", 78, "datatypes: must be a section"),
        ("datatypes: {6000: {nmae: x}}", 78, "datatypes.6000.nmae: is not a key that bace-bridge knows (did you"),
        ("datatypes: {heart: {name: x}}", 78, "datatypes.heart: must be a whole number"),
        ("datatypes: {6000: {name: '${NO}'}}", 78, "datatypes.6000.name: the environment variable NO is not set"),
        ("webhooks: [{url: '${NO}', nope: 1}]\nhttp: 5", 1, "Error: no store at "),
    ],
)
async def test_what_is_wrong_is_named(tmp_path: Path, text: str, code: int, said: str) -> None:
    configure(tmp_path, text)
    errors = await shown(tmp_path, code=code)
    assert errors.startswith(said), errors
    assert len(errors.splitlines()) == 1


async def test_many_data_sessions_cost_nothing(file: SqliteFile) -> None:
    """The newest points are a row a series; the work is counted in SQLite's steps, which no slow machine changes."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def fill(connection: Any) -> None:
        connection.executemany(
            """insert into sessions (id, group_id, start, active, unfinished, removed, over_when_found, known)
            values (?, ?, ?, 0, 0, 0, 0, '{}')""",
            [(f"{number:05}", f"group-{number % 10}", NOON + number) for number in range(20_000)],
        )
        connection.executemany(
            """insert into latest (device_id, source_device, datatype, timestamp, payload, session_id)
            values (?, ?, ?, ?, ?, ?)""",
            [
                (f"group-{one}", "source", 6000 + two, NOON, b"{}", f"{one:05}")
                for one in range(10)
                for two in range(20)
            ],
        )

    await file.write(fill)
    await file.read(lambda connection: connection.set_progress_handler(count, 100))
    found = await DeviceStates(file, csv_url=str).datatypes()
    await file.read(lambda connection: connection.set_progress_handler(None, 100))
    assert {one.devices for one in found} == {10}
    assert len(found) == 20
    assert steps < 200, f"{100 * steps} of SQLite's steps for 200 series"
