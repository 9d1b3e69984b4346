"""Polling, over a simulated cloud and a real SQLite file, driven step by step with a clock of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from bace_bridge.cloud.api import BaceCloud, csv_url
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import Credentials, RequestToken, Tokens
from bace_bridge.events.types import LoggedEvent
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.datapoint_fetch import DatapointFetch, FetchSettings
from bace_bridge.polling.list_poll import ListPoll
from bace_bridge.polling.points import PointEndpoint, PointReader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules.changes import PointCloud, Urgency
from bace_bridge.polling.rules.datapoints import Datatype
from bace_bridge.polling.rules.session_list import FirstStart, StartKind
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.session_lists import PollSettings
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import Facts
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile

NOON = 1_764_590_400.0


class Clock:
    """Epoch seconds that move only when a test says so."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class Watching:
    """The polling of one store. `poll` is a poll of the list and every fetch that is due then."""

    def __init__(
        self,
        server: SimulatedServer,
        http: CloudHttp,
        file: SqliteFile,
        clock: Clock,
        *,
        start: StartKind,
        start_seconds: float,
        groups: Sequence[str],
        resolution: Literal["as_served", "finest"],
        journal: Journal,
        deciding: asyncio.Lock,
    ) -> None:
        self.server, self.http, self.file, self.clock = server, http, file, clock
        self.api = BaceCloud(http)
        self.journal = journal
        self.log = EventLog(file)
        self.deciding = deciding
        recorder = SessionRecorder(self.api, self.journal, groups=groups, deciding=self.deciding, clock=clock)
        settings = PollSettings(
            first_start=FirstStart(start, start_seconds),
            session_interval=10.0,
            recheck_interval=60.0,
            backfill_interval=3600.0,
            requests_per_minute=120,
        )
        self.endpoint = PointEndpoint(self.api, clock=clock)
        self.list_poll = ListPoll(self.api, recorder, settings)
        self.settings = FetchSettings(
            interval=15.0,
            resolution=resolution,
            datatypes={6000: Datatype("Heart rate", "bpm")},
            csv_url=lambda session: csv_url(server.url, session),
        )
        self.batches = self.made_anew()

    async def poll(self) -> list[LoggedEvent]:
        """The events that one poll and the fetches due after it emitted."""
        before = await self.all_events()
        await self.list_poll.poll()
        await self.fetch_due()
        return (await self.all_events())[len(before) :]

    async def poll_for(self, seconds: float, *, every: float = 61.0) -> list[LoggedEvent]:
        """The events that polls over so many seconds led to; a removal takes several answers over five minutes."""
        found: list[LoggedEvent] = []
        for _ in range(int(seconds // every)):
            self.clock.forward(every)
            found += await self.poll()
        return found

    def fetch(self, known: KnownSession, cloud: PointCloud | None = None) -> DatapointFetch:
        return DatapointFetch(
            known,
            cloud or self.api,
            self.endpoint,
            self.journal,
            self.settings,
            deciding=self.deciding,
            clock=self.clock,
        )

    async def fetch_due(self) -> None:
        for _ in range(100):
            due = await self.journal.due_fetches(self.clock(), 100)
            if not due:
                return
            for known in due:
                await self.fetch(known).make()

    def made_anew(self) -> BatchFetch:
        """As after a restart: what may be fetched together is not known."""
        return BatchFetch(
            self.api, self.endpoint, self.journal, self.settings, deciding=self.deciding, clock=self.clock
        )

    async def fetch_round(self, *, checks: int = 2) -> list[LoggedEvent]:
        """What the fetches that are due led to, those of active data sessions in batches; the list is not polled."""
        before = await self.all_events()
        live = await self.journal.due_fetches(self.clock() + self.settings.interval, 1000, late=False)
        plan = await self.batches.plan(live, checks=checks)
        for batch in plan.batches:
            assert await self.batches.read_batch(batch) is None
        for known in (*plan.singles, *plan.checks):
            assert await self.batches.alone(self.fetch(known)) is None
        return (await self.all_events())[len(before) :]

    async def all_events(self) -> list[LoggedEvent]:
        return await self.log.search()

    def api_requests(self) -> int:
        return sum(1 for seen in self.server.requests if seen.path.startswith("/api/"))


@asynccontextmanager
async def watching(
    cloud: SimulatedCloud,
    store: Path,
    clock: Clock,
    *,
    start: StartKind = "now",
    start_seconds: float = 0.0,
    groups: Sequence[str] = (),
    resolution: Literal["as_served", "finest"] = "as_served",
    journal: Callable[[SqliteFile], Journal] = Journal,
    deciding: asyncio.Lock | None = None,
) -> AsyncIterator[Watching]:
    async with SimulatedServer(cloud) as server, SqliteFile(store) as file:
        budget = RequestBudget(6_000_000, clock=clock)
        given = cloud.credentials
        credentials = Credentials(given.client_id, given.client_secret, given.username, given.password)

        def tokens(request_token: RequestToken) -> Tokens:
            return Tokens("test", credentials, Facts(file), request_token, clock=clock, monotonic=clock)

        http = CloudHttp(server.url, budget, tokens, timeout=60.0, version="test", clock=clock, monotonic=clock)
        async with http:
            yield Watching(
                server,
                http,
                file,
                clock,
                start=start,
                start_seconds=start_seconds,
                groups=groups,
                resolution=resolution,
                journal=journal(file),
                deciding=deciding or asyncio.Lock(),
            )


def simulated(clock: Clock, *quirks: str) -> SimulatedCloud:
    return SimulatedCloud(clock=clock, quirks=Quirks.parse(list(quirks)), seed=7)


def points_of(api: BaceCloud, session_id: str, clock: Clock) -> PointReader:
    """Reads the datapoints of a data session of which nothing else is known."""
    session = DataSession(session_id, "a-group", clock.now)
    return PointReader(api, PointEndpoint(api, clock=clock), session, Urgency.LIVE)


def types(events: Sequence[LoggedEvent]) -> list[str]:
    return [logged.event.type for logged in events]


def data(logged: LoggedEvent) -> dict[str, Any]:
    return msgspec.json.decode(logged.event.data, type=dict[str, Any])


def points(events: Sequence[LoggedEvent]) -> list[dict[str, Any]]:
    return [point for one in events if one.event.type == "session.datapoints" for point in data(one)["datapoints"]]
