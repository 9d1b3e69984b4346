"""The real command `devices` over a real store and the simulated cloud."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bace_bridge.app.account import fingerprint
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import Credentials, RequestToken, Tokens
from bace_bridge.events.types import Token
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.changes import Changes, LatestSeen
from bace_bridge.polling.rules.sessions import DataSession, observe
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.facts import Facts
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import configuration
from tests.integration.brokers import free_port
from tests.integration.test_cli_sessions_events import NOON, bridge

TOKENS = "/oauth2/token"


async def devices(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(bridge, folder, "devices", *arguments)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


async def know(file: SqliteFile, session: str, group: str, label: str | None, **facts: Any) -> None:
    seen = observe(
        None,
        DataSession(session, group, facts.pop("start", NOON), updated_at=NOON, **facts),
        device_label=label,
        start_from=-1.0,
        now=NOON,
    )
    assert seen is not None
    await Journal(file).commit(Changes(known=(seen.known,), events=seen.events))


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    """The store, held as a running bridge holds it."""
    async with SqliteFile(tmp_path / "bridge.db") as opened:
        yield opened


@pytest.fixture
async def filled(file: SqliteFile) -> SqliteFile:
    """A device with an older and an active session, one whose session is over, and one without a label."""
    await know(file, "s-1", "group-1", "BaceGo-1", start=NOON - 9000, end=NOON - 8000)
    await know(file, "s-2", "group-1", None, start=NOON - 100)
    await know(file, "s-3", "group-2", "BaceGo-2", start=NOON - 5000, end=NOON - 50)
    await know(file, "s-4", "group-3", None, start=NOON - 7000, end=NOON - 6000)
    newest = LatestSeen("group-1", "source", 6000, NOON - 10, b"{}")
    await Journal(file).commit(Changes(latest=(newest,)))
    return file


async def test_the_devices_of_the_store_as_a_table(tmp_path: Path, filled: SqliteFile) -> None:
    configuration(tmp_path, cloud_url="https://bace.example.org", extra={"cloud": {"groups": ["BaceGo-1", "group-3"]}})
    lines = (await devices(tmp_path)).stdout.splitlines()
    assert lines[0].split() == ["DEVICE", "ID", "WATCHED", "LAST", "SEEN", "LAST", "SESSION"]
    assert [line.split() for line in lines[1:]] == [
        ["BaceGo-1", "group-1", "yes", "2025-12-01", "11:59", "s-2", "(active)"],
        ["BaceGo-2", "group-2", "no", "2025-12-01", "11:59", "s-3"],
        ["-", "group-3", "yes", "2025-12-01", "10:20", "s-4"],
    ]
    assert "\x1b" not in "".join(lines)
    del filled


async def test_the_devices_of_the_store_as_json(tmp_path: Path, filled: SqliteFile) -> None:
    configuration(tmp_path, cloud_url="https://bace.example.org")
    rows = json.loads((await devices(tmp_path, "--json")).stdout)
    assert rows[0] == {
        "id": "group-1",
        "label": "BaceGo-1",
        "selected": True,
        "active_session_id": "s-2",
        "last_session_id": "s-2",
        "last_seen_at": iso_utc(NOON - 10),
    }
    assert [(row["id"], row["active_session_id"], row["last_session_id"]) for row in rows[1:]] == [
        ("group-2", None, "s-3"),
        ("group-3", None, "s-4"),
    ]
    del filled


async def test_no_devices(tmp_path: Path, file: SqliteFile) -> None:
    configuration(tmp_path, cloud_url="https://bace.example.org")
    assert (await devices(tmp_path)).stdout == "No devices.\n"
    assert json.loads((await devices(tmp_path, "--json")).stdout) == []
    del file


async def test_without_a_store_its_place_is_named(tmp_path: Path) -> None:
    configuration(tmp_path, cloud_url="https://bace.example.org")
    assert f"no store at {tmp_path / 'bridge.db'} yet" in (await devices(tmp_path, code=1)).stderr


def simulated(*quirks: str, count: int = 25) -> tuple[SimulatedCloud, dict[str, str]]:
    cloud = SimulatedCloud(quirks=Quirks.parse(quirks))
    labels = [f"BaceGo-001-002-{number:05}" for number in range(count)]
    return cloud, {cloud.add_device(label).id_group: label for label in labels}


async def test_the_cloud_is_asked_for_every_page_and_no_store_is_needed(tmp_path: Path) -> None:
    cloud, labels = simulated("per-page-max 10")
    async with SimulatedServer(cloud) as server:
        chosen = {"cloud": {"groups": ["BaceGo-001-002-00020", "BaceGo-001-002-0002"]}}
        configuration(tmp_path, cloud_url=server.url, extra=chosen)
        done = await devices(tmp_path, "--cloud", "--json")
    rows = json.loads(done.stdout)
    assert {row["id"]: row["label"] for row in rows} == labels
    assert [row["label"] for row in rows] == sorted(labels.values())
    assert [row["label"] for row in rows if row["selected"]] == ["BaceGo-001-002-00020"]
    assert "cloud.groups: BaceGo-001-002-0002 matches no device" in done.stderr
    assert not (tmp_path / "bridge.db").exists(), "a command makes no store"


async def test_what_the_store_knows_of_the_clouds_devices_is_shown_too(tmp_path: Path, file: SqliteFile) -> None:
    cloud, labels = simulated(count=2)
    first, second = labels
    await know(file, "s-1", first, "an old label", start=NOON - 100)
    async with SimulatedServer(cloud) as server:
        configuration(tmp_path, cloud_url=server.url)
        rows = {row["id"]: row for row in json.loads((await devices(tmp_path, "--cloud", "--json")).stdout)}
        table = (await devices(tmp_path, "--cloud")).stdout
    assert (rows[first]["label"], rows[first]["active_session_id"]) == (labels[first], "s-1")
    assert (rows[second]["last_session_id"], rows[second]["last_seen_at"]) == (None, None)
    assert all(one in table for one in (*labels, *labels.values()))


class _Bridge:
    """The tokens of the bridge that runs beside the command."""

    def __init__(self, server: SimulatedServer, file: SqliteFile) -> None:
        given = server.cloud.credentials
        account = Credentials(given.client_id, given.client_secret, given.username, given.password)
        self.name = fingerprint(server.url, given.client_id, given.username)
        self.facts = Facts(file)
        budget = RequestBudget(6000, clock=time.monotonic)
        kept: list[Tokens] = []

        def tokens(request_token: RequestToken) -> Tokens:
            kept.append(Tokens(self.name, account, self.facts, request_token, clock=lambda: NOON))
            return kept[0]

        self.http = CloudHttp(server.url, budget, tokens, timeout=10.0, version="test", clock=lambda: NOON)
        (self.tokens,) = kept

    async def token(self) -> Token:
        found = await self.facts.load_token(self.name)
        assert found is not None
        return found


@pytest.mark.parametrize("refresh", ["refresh-rotates", "refresh-destroys", "refresh-both", "refresh-same"])
@pytest.mark.parametrize("state", ["valid", "expired", "revoked"])
async def test_the_token_of_the_running_bridge_is_used_and_left_alone(
    tmp_path: Path, file: SqliteFile, refresh: str, state: str
) -> None:
    cloud, labels = simulated(refresh, count=1)
    async with SimulatedServer(cloud) as server:
        configuration(tmp_path, cloud_url=server.url)
        running = _Bridge(server, file)
        async with running.http:
            await running.tokens.current()
        kept = msgspec.structs.replace(await running.token(), expires_at=0.0 if state == "expired" else 9e9)
        if state == "revoked":
            kept = msgspec.structs.replace(kept, access="revoked")
        await running.facts.save_token(running.name, kept)
        done = await devices(tmp_path, "--cloud", "--json")
        assert [row["id"] for row in json.loads(done.stdout)] == list(labels)
        assert await running.token() == kept
        asked = [one for one in server.requests if one.path == TOKENS]
        assert len(asked) == (1 if state == "valid" else 2), "the bridge's own login, and at most one of the command"
        # What the bridge would do next: its refresh token must still be good.
        again = _Bridge(server, file)
        async with again.http:
            await again.tokens.after_refusal(kept.access)
        assert kept.refresh is not None
        forms = [one for one in server.requests if one.path == TOKENS][len(asked) :]
        assert len(forms) == 1, "a refresh that was not refused, so no login"


@pytest.mark.parametrize("how", ["text", "json"])
@pytest.mark.parametrize(
    ("quirks", "extra", "reason"),
    [
        (["forbidden /api/v2/group"], {}, "may not use this endpoint; without --cloud this lists the devices"),
        ([], {"password": "canary-4711"}, "check cloud.username or password"),
        (["per-page-max 10", "rate-limit 1/20s"], {}, "rate limit"),
        (["error-every 1"], {}, "500"),
        (["redirects"], {}, "a redirect"),
    ],
)
async def test_why_the_cloud_lists_nothing_is_said(
    tmp_path: Path, quirks: list[str], extra: dict[str, Any], reason: str, how: str
) -> None:
    cloud, _ = simulated(*quirks)
    async with SimulatedServer(cloud) as server:
        configuration(tmp_path, cloud_url=server.url, extra={"cloud": extra})
        done = await devices(tmp_path, "--cloud", *(["--json"] if how == "json" else []), code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: the cloud does not list its devices: ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "canary" not in done.stderr


async def test_a_cloud_that_is_away_is_said(tmp_path: Path) -> None:
    configuration(tmp_path, cloud_url=f"http://127.0.0.1:{free_port()}")
    assert "cannot connect" in (await devices(tmp_path, "--cloud", code=1)).stderr
