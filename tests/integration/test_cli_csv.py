"""The real command `csv` over the simulated cloud and a real store."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bace_bridge.app.account import fingerprint
from bace_bridge.events.types import Token
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.facts import Facts
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import configuration, until
from tests.integration.brokers import free_port
from tests.integration.csv_line import CsvLine
from tests.integration.whole_bridge import SOON


class Alone(CsvLine):
    """The cloud, and no bridge."""


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Alone]:
    cloud = SimulatedCloud()
    async with SimulatedServer(cloud) as server:
        path = configuration(tmp_path, cloud_url=server.url)
        one = Alone(cloud, server, None, path, 0)  # type: ignore[arg-type]  # nothing is delivered
        one.session = one.finished(3000)
        yield one


async def csv(line: Alone, *arguments: str, code: int = 0) -> tuple[bytes, str]:
    """What it printed; it is run in the configuration's folder."""
    words = [sys.executable, "-m", "bace_bridge", "csv", "-c", "bridge.yaml", *arguments]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, cwd=line.path.parent, check=False)
    errors = done.stderr.decode()
    assert done.returncode == code, errors
    assert "Traceback" not in errors
    return done.stdout, errors


def files(line: Alone) -> list[str]:
    return sorted(one.name for one in line.path.parent.iterdir() if one.name != "bridge.yaml")


async def test_the_csv_of_a_session_as_a_file(line: Alone) -> None:
    whole = await line.of_the_cloud(line.session)
    printed, said = await csv(line, line.session)
    assert printed == b""
    assert f"data-session-{line.session}.csv: 6,000 rows, " in said
    assert files(line) == [f"data-session-{line.session}.csv"]
    assert (line.path.parent / files(line)[0]).read_bytes() == whole

    there = line.path.parent / "there.csv"
    there.write_text("something older")
    link = line.path.parent / "link.csv"
    link.symlink_to("there.csv")
    await csv(line, line.session, "-o", "link.csv")
    assert link.is_symlink()
    assert there.read_bytes() == whole
    await csv(line, line.session, "-o", "/dev/null")
    assert Path("/dev/null").is_char_device()


async def test_standard_output(line: Alone) -> None:
    printed, said = await csv(line, line.session, "-o", "-")
    assert printed == await line.of_the_cloud(line.session)
    assert "6,000 rows" in said
    assert files(line) == []
    # A reader that leaves is no mistake.
    shell = (
        f"{sys.executable} -m bace_bridge csv -c bridge.yaml {line.session} -o - | head -c 10; echo ${{PIPESTATUS[0]}}"
    )
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-c", shell], capture_output=True, cwd=line.path.parent, check=True
    )
    assert done.stdout == b"timestamp_0\n"
    assert done.stderr == b""


@pytest.mark.parametrize("quirk", ["csv-truncated", "csv-cut", "csv-short"])
async def test_what_is_not_whole_leaves_no_file_and_an_older_one_alone(line: Alone, quirk: str) -> None:
    (line.path.parent / "old.csv").write_text("whole")
    line.cloud.quirks = Quirks.parse([quirk])
    for output in (["-o", "old.csv"], ["-o", "new.csv"], []):
        _, said = await csv(line, line.session, *output, code=1)
        assert "not whole" in said or "cut" in said or "ClientPayloadError" in said
    assert files(line) == ["old.csv"]
    assert (line.path.parent / "old.csv").read_text() == "whole"
    await csv(line, line.session, "-o", "-", code=1)


async def test_a_session_that_is_not_done_is_said_to_grow(line: Alone) -> None:
    line.cloud.change(line.session, is_ingestion_finished=False)
    assert "may grow" in (await csv(line, line.session))[1]


async def test_mistakes_have_a_sentence_and_no_file(line: Alone) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    assert f"the cloud has no data session {unknown}" in (await csv(line, unknown, code=1))[1]
    for odd in ("../group", "..", "\u00e4"):
        assert "is not the id of a data session" in (await csv(line, odd, code=2))[1]
    assert "No such file" in (await csv(line, line.session, "-o", "missing/x.csv", code=1))[1]
    assert "cannot write" in (await csv(line, line.session, "-o", ".", code=1))[1]
    assert "goes with" in (await csv(line, line.session, "--revoke", code=2))[1]
    assert "goes with" in (await csv(line, "rotate-key", "-o", "x", code=2))[1]
    assert "no store at" in (await csv(line, "rotate-key", code=1))[1]
    line.cloud.quirks = Quirks.parse(["forbidden /api/v2/data-session/*/download-csv"])
    assert "may not use this endpoint" in (await csv(line, line.session, code=1))[1]
    line.path.write_text(line.path.read_text().replace(line.server.url, f"http://127.0.0.1:{free_port()}"))
    assert "cannot connect" in (await csv(line, line.session, code=1))[1]
    assert files(line) == []


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_leaves_no_half_file(line: Alone, signal_: signal.Signals) -> None:
    session = line.finished(8000, sources=8)
    words = [sys.executable, "-m", "bace_bridge", "csv", "-c", "bridge.yaml", session, "-o", "x.csv"]
    process = await asyncio.create_subprocess_exec(*words, cwd=line.path.parent, stderr=asyncio.subprocess.PIPE)
    await until(lambda: any(one.endswith(".part") for one in files(line)), within=SOON, what="a part")
    process.send_signal(signal_)
    async with asyncio.timeout(SOON):
        said = (await process.communicate())[1].decode()
    assert "Traceback" not in said
    assert process.returncode in {0, 130}
    assert files(line) in ([], ["x.csv"])
    if files(line):  # it was at its end already
        assert (line.path.parent / "x.csv").read_bytes() == await line.of_the_cloud(session)


async def test_progress_is_shown_on_a_terminal_alone(line: Alone) -> None:
    session = line.finished(5000)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "bace_bridge", "csv", "-c", "bridge.yaml", session]
    process = await asyncio.create_subprocess_exec(*words, cwd=line.path.parent, stderr=theirs)
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while more := os.read(ours, 4096):
                shown.extend(more)
        except OSError:  # how a terminal says that its other side is closed
            os.close(ours)

    await asyncio.to_thread(read)
    assert await process.wait() == 0
    assert b"MB/s" in shown.partition(b"rows")[0]
    assert b"\x1b" not in (await csv(line, session))[1].encode()


async def test_the_running_bridges_token_is_borrowed_and_never_refreshed(line: Alone) -> None:
    account = fingerprint(line.server.url, "simulator", "demo@example.org")
    async with SqliteFile(line.path.parent / "bridge.db") as file:
        await line.of_the_cloud(line.session)
        bearer = next(value for one in line.server.requests for name, value in one.headers if name == "Authorization")
        for expires, logins in ((time.time() + 3600, 0), (time.time() - 1, 1)):
            token = Token(bearer.removeprefix("Bearer "), "the bridge's", expires)
            await Facts(file).save_token(account, token)
            line.server.requests.clear()
            await csv(line, line.session)
            grants = [one.grant_type for one in line.server.requests if one.path == "/oauth2/token"]
            assert grants == ["password"] * logins
            assert await Facts(file).load_token(account) == token
        await csv(line, "rotate-key")
