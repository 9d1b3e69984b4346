"""Someone with a token of the simulated cloud, and what a test asks for it with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.samples import Resolution
from bace_bridge.simulator.server import SimulatedServer

LOGIN = {
    "client_id": "simulator",
    "client_secret": "simulator-secret",
    "grant_type": "password",
    "username": "demo@example.org",
    "password": "demo",
}
SESSIONS = "/api/v2/data-session"
POINTS = "/api/v2/data-downsampled"
NOW = 1_700_000_000.0
UNKNOWN = "00000000-0000-4000-8000-000000000000"


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    json: Any

    @property
    def items(self) -> list[Any]:
        rows: list[Any] = self.json["items"]
        return rows

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.items]


@dataclass
class Account:
    """Someone with a token."""

    cloud: SimulatedCloud
    server: SimulatedServer
    http: aiohttp.ClientSession
    clock: Clock
    device: Device
    headers: dict[str, str]

    async def get(
        self, path: str, query: dict[str, str] | None = None, *, method: str = "GET", **headers: str
    ) -> Answer:
        async with self.http.request(
            method,
            self.server.url + path,
            params=query,
            headers=self.headers | headers,
            allow_redirects=False,
        ) as response:
            body = await response.read()
            is_json = response.content_type == "application/json" and body
            return Answer(response.status, response.headers, body, await response.json() if is_json else None)

    async def token(self, **form: str) -> Answer:
        async with self.http.post(self.server.url + "/oauth2/token", data=form) as response:
            return Answer(response.status, response.headers, await response.read(), await response.json())


@asynccontextmanager
async def account(*quirks: str, resolution: Resolution | None = None) -> AsyncIterator[Account]:
    clock = Clock()
    cloud = SimulatedCloud(clock=clock, quirks=Quirks.parse(quirks), resolution=resolution)
    device = cloud.add_device("BaceGo-001-002-00020", datatypes=(6000, 5205))
    async with SimulatedServer(cloud) as server, aiohttp.ClientSession(max_field_size=65_536) as http:
        made = Account(cloud, server, http, clock, device, {})
        answer = await made.token(**LOGIN)
        made.headers["Authorization"] = f"Bearer {answer.json['access_token']}"
        server.requests.clear()
        yield made


def history(who: Account, count: int = 45) -> list[str]:
    return who.cloud.add_history(count, first_start=NOW - 100_000, spacing=1000, duration=600)


def measured(who: Account, count: int = 5, period: float = 0.5) -> str:
    sid = who.cloud.open_session(who.device.id_group, start=NOW - 1000)
    for series in who.device.series:
        points = [(NOW - 900 + number * period, float(number)) for number in range(count)]
        who.cloud.add_points(sid, series.id_container_data_latest, points)
    return sid


def of(sid: str, *, hours: float = 0.5) -> dict[str, str]:
    return {
        "filter[id_data_session]": sid,
        "filter[timestamp_seconds][gte]": str(NOW - 1000),
        "filter[timestamp_seconds][lt]": str(NOW - 1000 + hours * 3600),
    }


def of_all(sids: list[str]) -> str:
    """As it stands in a URL: a dict could not hold the same name several times."""
    listed = "&".join(f"filter[id_data_session][in][]={one}" for one in sids)
    bounds = "&".join(f"{name}={value}" for name, value in of("").items() if value)
    return f"{POINTS}?{listed}&{bounds}&sort=timestamp_seconds"


async def walk(who: Account, query: dict[str, str], field: str = "id_data_session") -> list[str]:
    first = await who.get(SESSIONS, query)
    found = first.column(field)
    for number in range(2, first.json["_meta"]["pageCount"] + 1):
        found += (await who.get(SESSIONS, {**query, "page": str(number)})).column(field)
    return found
