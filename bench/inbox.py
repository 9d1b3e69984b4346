"""A webhook receiver in the bench's own process, which keeps every point with the time of its arrival."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec

from bench.fleet_oracle import Arrived
from bench.receiver import OK, Endpoint

SECRET = "whsec_" + "A" * 32


class _Point(msgspec.Struct):
    series_id: str
    timestamp: datetime
    avg: float | None
    revision: int


class _Session(msgspec.Struct):
    id: str


class _Data(msgspec.Struct):
    session: _Session | None = None
    datapoints: list[_Point] = []


class _Event(msgspec.Struct):
    id: str
    type: str
    data: _Data


class Inbox:
    """What was delivered. `seen` are the sessions of which a point came, `complete` those whose CSV is ready."""

    def __init__(self) -> None:
        self.url = ""
        self.arrivals: list[Arrived] = []
        self.seen: set[str] = set()
        self.complete: set[str] = set()
        self._decode = msgspec.json.Decoder(_Event).decode

    def webhook(self) -> dict[str, Any]:
        return {"name": "inbox", "url": self.url, "secret": SECRET, "events": ["session.*"]}

    def take(self, _path: str, _event_id: str, body: bytes) -> bytes:
        at, event = time.time(), self._decode(body)
        if event.data.session is None:
            return OK
        session = event.data.session.id
        if event.type == "bace.session.csv_ready":
            self.complete.add(session)
        for one in event.data.datapoints:
            arrived = Arrived(at, session, one.series_id, one.timestamp.timestamp(), one.avg, one.revision)
            self.arrivals.append(arrived)
            self.seen.add(session)
        return OK


@contextlib.asynccontextmanager
async def inbox() -> AsyncIterator[Inbox]:
    made = Inbox()
    server = await asyncio.get_running_loop().create_server(lambda: Endpoint(made.take), "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/inbox"
    async with server:
        yield made
