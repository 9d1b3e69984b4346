"""The CSV of a data session of 30 days and 20 series at a point a minute: by a link, by the command, and 20 at once.

`python -m bench.csv_files`: the simulated cloud, the real bridge and the clients are processes of their own.
"""

import asyncio
import hashlib
import itertools
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from bace_bridge.cloud.api import csv_url
from bace_bridge.csv.links import Link, SigningKeys, minted
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.facts import Facts
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import configuration, running, until
from tests.integration.brokers import free_port
from tests.integration.simulator_account import LOGIN

DAYS, SOURCES, AT_ONCE = 30, 10, 20
KEY = b"k" * 32


def simulate(pipe: Connection) -> None:
    async def serve() -> None:
        cloud = SimulatedCloud()
        device = cloud.add_device("BaceGo-1", datatypes=(6000, 6001), sources=SOURCES)
        begin = time.time() - (DAYS + 1) * 86400
        session = cloud.open_session(device.id_group, start=begin)
        for series in device.series:
            points = [(begin + 60 * minute, 60 + minute % 40 / 4) for minute in range(DAYS * 1440)]
            cloud.add_points(session, series.id_container_data_latest, points)
        cloud.end_session(session, end=begin + DAYS * 86400)
        cloud.finish_ingestion(session)
        row = cloud.session(session)
        async with SimulatedServer(cloud) as server:
            pipe.send((server.url, session, row.id_group, row.start, row.end, row.updated_at, row.datapoint_count))
            while (asked := await asyncio.to_thread(pipe.recv)) is not None:
                cloud.quirks = Quirks.parse(asked)
                pipe.send([(one.at, one.path) for one in server.requests])

    asyncio.run(serve())


def memory(pid: int, what: str) -> float:
    """In MB: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(one.split()[1]) for one in lines if one.startswith(what)) / 1024


async def read(link: str, headers: dict[str, str] | None = None) -> tuple[int, int, str, float]:
    """Status, bytes, digest and seconds."""
    begun, size, digest = time.monotonic(), 0, hashlib.sha256()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.get(link, headers=headers) as answer:
        async for piece in answer.content.iter_chunked(2**18):
            size += len(piece)
            digest.update(piece)
        return answer.status, size, digest.hexdigest(), time.monotonic() - begun


def said(what: str, size: int, seconds: float, more: str = "") -> None:
    print(f"{what:<28} {size / 1e6:7.1f} MB {seconds:7.1f} s {size / 1e6 / seconds:7.1f} MB/s  {more}", flush=True)


async def main() -> None:
    ours, theirs = multiprocessing.Pipe()
    simulator = multiprocessing.get_context("spawn").Process(target=simulate, args=(theirs,), daemon=True)
    simulator.start()
    url, session, group, start, end, updated, count = ours.recv()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        more = {"http": {"listen": f"127.0.0.1:{port}"}, "cloud": {"requests_per_minute": 120}}
        path = configuration(folder, cloud_url=url, interval="5s", extra=more)
        path.write_text(
            path.read_text().replace('"http":', f'"csv": {{"link_base": "http://127.0.0.1:{port}"}}, "http":')
        )
        seen = DataSession(
            session, group, start, end, updated_at=updated, datapoint_count=count, ingestion_finished=True
        )
        facts = (count, end, 0)
        known = KnownSession(session=seen, csv_revision=0, csv_facts=facts, end_emitted=end, fetched_at=end)
        async with SqliteFile(folder / "bridge.db") as file:
            await Journal(file).commit(Changes(known=(known,)))
            await Facts(file).signing_keys(KEY)
        link = minted(f"http://127.0.0.1:{port}", KEY, Link(session, 0, int(time.time()) + 86400))
        assert SigningKeys(KEY).current == KEY
        async with running(path) as bridge:
            await until(lambda: "cloud.logged_in" in bridge.log, within=60, what="the bridge")
            await measure(folder, path, link, url, session, bridge.process.pid, ours)
            ended = time.monotonic()
            assert await bridge.stop() == 0
            print(f"stopped in {time.monotonic() - ended:.1f} s")
    ours.send(None)
    simulator.join(10)


async def measure(folder: Path, path: Path, link: str, url: str, session: str, pid: int, cloud: Connection) -> None:
    async with aiohttp.ClientSession() as http, http.post(f"{url}/oauth2/token", data=LOGIN) as answer:
        bearer = {"Authorization": f"Bearer {(await answer.json())['access_token']}"}
    status, size, digest, seconds = await read(csv_url(url, session), bearer)
    said("from the cloud", size, seconds, digest[:12])
    before = memory(pid, "VmRSS")
    status, size, of_link, seconds = await read(link)
    assert (status, of_link) == (200, digest)
    said("by a link", size, seconds, f"the same; the bridge {before:.0f} -> {memory(pid, 'VmHWM'):.0f} MB")
    begun = time.monotonic()
    words = [sys.executable, "-m", "bace_bridge", "csv", "-c", str(path), session, "-o", str(folder / "x.csv")]
    command = subprocess.Popen(words)
    peak = 0.0
    while command.poll() is None:
        peak = max(peak, memory(command.pid, "VmRSS") if Path(f"/proc/{command.pid}/status").exists() else 0.0)
        await asyncio.sleep(0.05)
    with (folder / "x.csv").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    said("by the command", size, time.monotonic() - begun, f"the same; {peak:.0f} MB")
    begun, at = time.monotonic(), time.time()
    answers = await asyncio.gather(*(read(link) for _ in range(AT_ONCE)))
    whole = sum((status, of_link) == (200, digest) for status, _, of_link, _ in answers)
    seconds = time.monotonic() - begun
    statuses = dict(Counter(status for status, *_ in answers))
    said(f"{AT_ONCE} links at once", whole * size, seconds, f"{statuses}; at most {memory(pid, 'VmHWM'):.0f} MB")
    cloud.send([])
    lists = [one for one, asked in cloud.recv() if one >= at and asked == "/api/v2/data-session"]
    gaps = [later - sooner for sooner, later in itertools.pairwise(lists)]
    print(f"  polls meanwhile: {len(lists)}, every 5 s meant, the longest gap {max(gaps, default=0):.1f} s")
    for quirk in ("csv-truncated", "csv-cut"):
        cloud.send([quirk])
        cloud.recv()
        try:
            ended = f"{(await read(link))[0]}, and an end"
        except aiohttp.ClientError as error:
            ended = type(error).__name__
        code = subprocess.run([*words[:-1], str(folder / "y.csv")], check=False, capture_output=True).returncode
        print(f"  {quirk}: by link {ended}, by the command exit code {code}, file there: {(folder / 'y.csv').exists()}")


if __name__ == "__main__":
    asyncio.run(main())
