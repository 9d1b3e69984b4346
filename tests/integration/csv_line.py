"""A bridge with CSV links over the simulated cloud, and clients that speak HTTP byte by byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Receiver, receiver, until
from tests.integration.brokers import free_port
from tests.integration.simulator_account import LOGIN
from tests.integration.whole_bridge import SOON, Times, Whole, bridge_file, whole_bridge


class CsvLine:
    """`session` is finished, and its CSV reported."""

    def __init__(self, cloud: SimulatedCloud, server: SimulatedServer, hook: Receiver, path: Path, port: int) -> None:
        self.cloud, self.server, self.hook, self.path, self.port = cloud, server, hook, path, port
        self.session = ""
        self.bridge: Whole

    def set_quirks(self, *quirks: str) -> None:
        self.cloud.quirks = Quirks.parse(quirks)

    def finished(self, samples: int = 50, *, sources: int = 1) -> str:
        """Another data session, with so many samples a series, a second apart."""
        device = self.cloud.add_device(f"BaceGo-{len(self.cloud.devices)}", datatypes=(6000, 5205), sources=sources)
        now = self.cloud.clock()
        session = self.cloud.open_session(device.id_group, start=now - samples - 900)
        for series in device.series:
            points = [(now - samples - 800 + second, second / 4) for second in range(samples)]
            self.cloud.add_points(session, series.id_container_data_latest, points)
        self.cloud.end_session(session, end=now - 700)
        self.cloud.finish_ingestion(session)
        return session

    def csv(self, session: str, revision: int = 0) -> dict[str, Any]:
        """What the last event about this revision said."""
        told: list[dict[str, Any]] = [one.body["csv"] for one in self.of(session)]
        return [one for one in told if one["revision"] == revision][-1]

    def of(self, session: str) -> list[Any]:
        return [one for one in self.hook.arrivals if one.type == "session.csv_ready" and one.session == session]

    async def link(self, session: str, revision: int = 0) -> str:
        def is_there() -> bool:
            return any(one.body["csv"]["revision"] == revision for one in self.of(session))

        await until(is_there, within=SOON, what="the CSV is reported")
        return str(self.csv(session, revision)["link"])

    async def of_the_cloud(self, session: str) -> bytes:
        """The CSV, as anybody with a token gets it."""
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self.server.url}/oauth2/token", data=LOGIN) as answer:
                token = (await answer.json())["access_token"]
            url = f"{self.server.url}/api/v2/data-session/{session}/download-csv"
            async with http.get(url, headers={"Authorization": f"Bearer {token}"}) as csv:
                return await csv.read()

    def downloads(self) -> int:
        return sum(one.path.endswith("/download-csv") for one in self.server.requests)

    async def ask(
        self, target: str, *lines: str, method: str = "GET", host: str = "", version: str = "1.1"
    ) -> "Answer":
        """Raises ConnectionError where the answer is cut off."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = [f"{method} {target} HTTP/{version}", f"Host: {host or f'127.0.0.1:{self.port}'}", *lines]
        writer.write("\r\n".join([*head, "", ""]).encode())
        async with asyncio.timeout(SOON):
            whole = await reader.read()
        writer.close()
        top, _, body = whole.partition(b"\r\n\r\n")
        status, *fields = top.decode().split("\r\n")
        named = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}
        return Answer(int(status.split()[1]), named, body)

    def stalled(self, link: str) -> socket.socket:
        """A client that asks, and takes next to nothing."""
        parts = urlsplit(link)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        client.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        return client


class Answer:
    def __init__(self, status: int, fields: dict[str, str], body: bytes) -> None:
        self.status, self.fields, self.body = status, fields, body

    @property
    def is_whole(self) -> bool:
        return self.body.endswith(b"0\r\n\r\n")


def target_of(link: str) -> str:
    parts = urlsplit(link)
    return f"{parts.path}?{parts.query}"


@asynccontextmanager
async def csv_line(
    folder: Path, *quirks: str, samples: int = 50, sources: int = 1, **more: Any
) -> AsyncIterator[CsvLine]:
    """`more` goes into the configuration: `csv={"link_expires": "1h"}`, `mqtt_port=...`."""
    times, port, csv = Times(), free_port(), more.pop("csv", {})
    cloud = SimulatedCloud(clock=times.wall, quirks=Quirks.parse(quirks))
    async with SimulatedServer(cloud) as server, receiver() as hook:
        hooks = {"hook": {"url": hook.url}, **more.pop("more_hooks", {})}
        path = bridge_file(folder, cloud_url=server.url, hooks=hooks, start_from="all", **more)
        settings = json.loads(path.read_text())
        settings["http"] = {"listen": f"127.0.0.1:{port}"}
        settings["csv"] = {"link_base": f"http://127.0.0.1:{port}", **csv}
        path.write_text(json.dumps(settings))
        line = CsvLine(cloud, server, hook, path, port)
        line.session = line.finished(samples, sources=sources)
        async with whole_bridge(path, times=times) as line.bridge:
            await line.link(line.session)
            yield line
