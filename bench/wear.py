"""What a memory card has to bear: bytes and fsyncs an hour of the real process, `python -m bench.wear`.

One active data session with five series at one point a second, one MQTT sink, default intervals; with `--idle` no
session is active. The window of datapoints is an hour by the clock, so the session begins with it (`--began`, minutes
ago) or what is to be measured is the clock's last quarter of an hour. With strace (`apt-get install strace`) fsyncs are
counted, and bytes by file.
"""

import argparse
import asyncio
import contextlib
import math
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.samples import Resolution
from bace_bridge.simulator.server import SimulatedServer
from bench import machinery, processes

DATATYPES = (6000, 6001, 6002, 6011, 5205)
HOUR = 3600.0
WRITTEN = re.compile(r"^\d+ +(\w+)\(\d+<([^>]*)>.*= (\d+)$")
"""A line of strace: the call, the file, and what it returned."""


class Session:
    """An active data session whose points are shown as they are made."""

    def __init__(self, cloud: SimulatedCloud, began: float) -> None:
        self._cloud = cloud
        self._device = cloud.add_device("BaceGo-1", datatypes=DATATYPES)
        self._through = math.floor(began)
        self._id = cloud.open_session(self._device.id_group, start=self._through)
        self.points = 0

    async def goes_on(self) -> None:
        while True:
            now = math.floor(time.time())
            for number, series in enumerate(self._device.series):
                samples = [(float(one), math.sin(one / 60 + number) * 100) for one in range(self._through, now)]
                self._cloud.add_points(self._id, series.id_container_data_latest, samples)
                self.points += len(samples)
            self._through = now
            await asyncio.sleep(0.2)


def io(pid: int) -> Counter[str]:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return Counter({name: int(value) for name, value in (line.split(": ") for line in lines)})


async def traced(pid: int, seconds: float, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Waits; returns the fsyncs and the bytes written by file, where strace is there."""
    if (program := shutil.which("strace")) is None:
        await asyncio.sleep(seconds)
        return Counter(), Counter()
    out = folder / "strace"
    calls = "trace=fsync,fdatasync,pwrite64"
    process = await asyncio.create_subprocess_exec(
        program, "-f", "-y", "-s", "0", "-e", calls, "-o", str(out), "-p", str(pid), stderr=asyncio.subprocess.DEVNULL
    )
    await asyncio.sleep(seconds)
    process.terminate()
    await process.wait()
    syncs, written = Counter[str](), Counter[str]()
    for line in out.read_text().splitlines():
        if (found := WRITTEN.match(line)) is not None:
            call, path, result = found.groups()
            if call == "pwrite64":
                written[Path(path).name] += int(result)
            else:
                syncs[Path(path).name] += 1
    return syncs, written


def settled(path: Path) -> None:
    """What was written until now goes into the database file here, and does not count."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()


async def measure(given: argparse.Namespace) -> None:
    cloud = SimulatedCloud(resolution=Resolution(raw=HOUR), quirks=Quirks.parse(["no-interval-raw"]))
    seconds = 60 * given.minutes
    with tempfile.TemporaryDirectory(dir=given.folder) as name, machinery.mosquitto(Path(name)) as port:
        folder = Path(name)
        session = None if given.idle else Session(cloud, time.time() - 60 * given.began)
        producing = asyncio.create_task(session.goes_on()) if session is not None else None
        async with SimulatedServer(cloud) as server:
            with processes.bridge(folder, server.url, port, start_from="now", per_minute=120) as process:
                await asyncio.sleep(60 * given.settle)
                settled(folder / "bridge.db")
                before, begun = io(process.pid), time.time()
                points = 0 if session is None else session.points
                syncs, written = await traced(process.pid, seconds, folder)
                took = time.time() - begun
                after, made = io(process.pid), 0 if session is None else session.points - points
        if producing is not None:
            producing.cancel()
        print((folder / "log").read_text()[:1000], end="")
    report(before, after, took, made, syncs, written)


def report(
    before: Counter[str], after: Counter[str], took: float, made: int, syncs: Counter[str], written: Counter[str]
) -> None:
    an_hour = HOUR / took
    print(f"{took / 60:.1f} minutes up to {time.strftime('%H:%M')}, {made:,} points; an hour of it:")
    for name in ("wchar", "write_bytes"):
        print(f"  {name:12} {(after[name] - before[name]) * an_hour / 1e6:8.2f} MB")
    print(f"  fsyncs       {syncs.total() * an_hour:8.0f}   {dict(syncs)}")
    for name, size in written.most_common():
        print(f"  {name:12} {size * an_hour / 1e6:8.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.wear")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is measured")
    parser.add_argument("--settle", type=float, default=1.0, help="minutes before that")
    parser.add_argument("--began", type=float, default=50.0, help="minutes since the session began")
    parser.add_argument("--idle", action="store_true", help="no session is active")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant, default: the one for temporary files")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
