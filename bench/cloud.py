"""A simulated cloud in a process of its own: `python -m bench.cloud PORT KIND`. Prints what a bench must know."""

import asyncio
import json
import sys
import time

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.samples import Resolution
from bace_bridge.simulator.server import SimulatedServer

POINTS = 20_000
SERIES = 5


def backlog(cloud: SimulatedCloud) -> str:
    """One session with 20,000 raw points: 5 series, a sample a second."""
    device = cloud.add_device("BaceGo-backlog", datatypes=(6000, 6001, 6002, 6011, 5205))
    start = int(time.time()) - POINTS // SERIES - 60
    session = cloud.open_session(device.id_group, start=start)
    for series in device.series:
        samples = [(start + float(one), float(one % 97)) for one in range(POINTS // SERIES)]
        cloud.add_points(session, series.id_container_data_latest, samples)
    return session


def history(cloud: SimulatedCloud, count: int) -> None:
    for number in range(20):
        cloud.add_device(f"BaceGo-{number:03}")
    cloud.add_history(count, first_start=time.time() - 600.0 * count, spacing=590.0, duration=300.0)


async def main(port: int, kind: str) -> None:
    cloud = SimulatedCloud(resolution=Resolution(raw=3600.0), quirks=Quirks.parse(["no-interval-raw"]))
    about: dict[str, object] = {}
    if kind == "backlog":
        about["session"] = backlog(cloud)
    else:
        history(cloud, int(kind))
    async with SimulatedServer(cloud, port=port) as server:
        about["url"] = server.url
        print(json.dumps(about), flush=True)
        loop = asyncio.get_running_loop()
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := (await commands.readline()).decode().strip():
            print(json.dumps(answer(cloud, server, line)), flush=True)


def answer(cloud: SimulatedCloud, server: SimulatedServer, line: str) -> object:
    if line == "requests":
        return [[seen.at, seen.path] for seen in server.requests if not seen.path.startswith("/oauth2")]
    if line == "open":
        device = next(iter(cloud.devices.values()))
        cloud.open_session(device.id_group)
        return time.time()
    return None


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
