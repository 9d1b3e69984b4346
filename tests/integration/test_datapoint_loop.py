"""The loop that fetches datapoints, with batches: how much it does at once, and how often it looks up what is due."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from bace_bridge.errors import CloudError
from bace_bridge.polling.batch_fetch import BatchFetch
from bace_bridge.polling.loops import AT_ONCE, MOST_ENDING, DatapointLoop, FetchKind
from bace_bridge.polling.rules.batches import Batch, Plan
from bace_bridge.polling.rules.changes import Changes, Urgency
from bace_bridge.polling.rules.followed import SILENT_ROUNDS
from bace_bridge.polling.rules.sessions import END_PATIENCE, KnownSession
from bace_bridge.store.journal import Journal
from tests.integration.fleet import INTERVAL, Fleet, batches, check, fetches
from tests.integration.polling_line import Clock, Watching, simulated, watching


class CountingJournal(Journal):
    looked_up = 0

    async def due_fetches(self, now: float, limit: int, *, late: bool | None = None) -> list[KnownSession]:
        self.looked_up += 1
        return await super().due_fetches(now, limit, late=late)


class Counted(BatchFetch):
    """Holds the batches up while the gate is closed, and counts them."""

    def __init__(self, watch: Watching, line: "Line") -> None:
        super().__init__(
            watch.api, watch.endpoint, watch.journal, watch.settings, deciding=watch.deciding, clock=watch.clock
        )
        self._batches = watch.batches
        self._line = line

    async def plan(self, sessions: Sequence[KnownSession], *, checks: int) -> Plan:
        return await self._batches.plan(sessions, checks=checks)

    async def read_batch(self, batch: Batch) -> CloudError | None:
        self._line.read += [member.id for member in batch.members]
        async with self._line.counted("batches"):
            return await self._batches.read_batch(batch)


class Line:
    """The loop over a simulated cloud. It counts what is under way, and holds it up while `gate` is closed."""

    def __init__(self, watch: Watching, clock: Clock) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.ends = asyncio.Event()
        self.ends.set()
        self.most: dict[str, int] = {}
        self.read: list[str] = []
        self.alone: list[str] = []
        self.takes = 0.0
        self._running: dict[str, int] = {}
        self._watch, self._clock = watch, clock
        self._turn = asyncio.Event()
        self.loop = DatapointLoop(
            watch.journal,
            self._fetch,
            self._emit_end,
            watch.endpoint,
            Counted(watch, self),
            interval=INTERVAL,
            clock=clock,
            monotonic=clock,
            jitter=lambda: 0.0,
            pause=self._pause,
        )

    async def _fetch(self, known: KnownSession, urgency: Urgency) -> CloudError | None:
        self.read.append(known.session.id)
        self.alone.append(known.session.id)
        async with self.counted(urgency.name):
            self._clock.forward(self.takes)
            return await self._watch.batches.alone(self._watch.fetch(known))

    async def _emit_end(self, known: KnownSession) -> None:
        self._running["ends"] = self._running.get("ends", 0) + 1
        self.most["ends"] = max(self.most.get("ends", 0), self._running["ends"])
        await self.ends.wait()
        self._running["ends"] -= 1
        await self._watch.fetch(known).emit_end()

    @asynccontextmanager
    async def counted(self, kind: str) -> AsyncIterator[None]:
        self._running[kind] = self._running.get(kind, 0) + 1
        self.most[kind] = max(self.most.get(kind, 0), self._running[kind])
        try:
            await self.gate.wait()
            yield
        finally:
            self._running[kind] -= 1

    async def _pause(self, called: asyncio.Event, _: float) -> None:
        either = [asyncio.ensure_future(called.wait()), asyncio.ensure_future(self._turn.wait())]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        for one in either:
            one.cancel()
        called.clear()
        self._turn.clear()

    @property
    def under_way(self) -> int:
        return sum(self._running.values())

    def turn(self) -> None:
        self._turn.set()

    async def all_is_read(self) -> None:
        """Until nothing is due any more."""
        self.turn()
        async with asyncio.timeout(60):
            while (await self._watch.journal.next_fetch_at(without=[]) or 0.0) <= self._clock() or self.under_way:
                await asyncio.sleep(0.001)

    async def is_full(self, count: int) -> None:
        """Until so many are under way, and the loop has had time for more."""
        async with asyncio.timeout(60):
            while self.under_way < count:
                await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0.001)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def running(watch: Watching, clock: Clock) -> AsyncIterator[Line]:
    line = Line(watch, clock)
    run = asyncio.create_task(line.loop.run())
    try:
        yield line
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_a_fleet_is_looked_up_a_few_times_however_many_requests_it_takes(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 240, series=1)
    async with watching(cloud, tmp_path / "b.db", clock, journal=CountingJournal) as watch:
        await watch.list_poll.poll()
        for session in fleet.sessions:
            fleet.measure(session)
        journal = watch.journal
        assert isinstance(journal, CountingJournal)
        async with running(watch, clock) as line:
            await line.all_is_read()
            assert len(fetches(watch)) >= 240
            assert journal.looked_up <= 6
            for _ in range(3):
                clock.forward(INTERVAL)
                for session in fleet.sessions:
                    fleet.measure(session)
                before = journal.looked_up, len(fetches(watch))
                await line.all_is_read()
                assert len(fetches(watch)) - before[1] < 100
                assert journal.looked_up - before[0] <= 6
        await check(watch, cloud, fleet.sessions)


async def test_what_is_under_way_is_bounded_and_not_begun_again(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 180, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 10)
        clock.forward(4300)  # the hour is to be settled, of all of them
        late = [cloud.open_session(cloud.add_device(f"BaceGo-late-{one}").id_group) for one in range(6)]
        group = cloud.add_device("BaceGo-new").id_group
        new = [cloud.open_session(group) for _ in range(2)]
        for session in late:
            cloud.end_session(session)
            cloud.finish_ingestion(session)
        clock.forward(INTERVAL)
        await watch.list_poll.poll()
        async with running(watch, clock) as line:
            line.gate.clear()
            most = {
                "batches": AT_ONCE[FetchKind.BATCH],
                "LIVE": 2,
                "BACKLOG": AT_ONCE[FetchKind.CHECK] + AT_ONCE[FetchKind.LATE],
            }
            await line.is_full(sum(most.values()))
            assert line.most == most
            line.loop.poll_now()
            await line.is_full(sum(most.values()))
            assert line.most == most
            assert len(line.read) == len({*line.read})
            assert {*new} <= {*line.read}
            line.gate.set()
            await line.all_is_read()
            assert len(line.alone) == len({*line.alone})
        assert batches(watch)


async def test_fetches_do_not_wait_for_the_summaries_of_ends(clock: Clock, tmp_path: Path) -> None:
    """The summary of a month takes ten seconds, and these ends are late already."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 12, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 10)
        over, live = fleet.sessions[:8], fleet.sessions[8:]
        for session in over:
            cloud.end_session(session)
        await watch.list_poll.poll()
        clock.forward(END_PATIENCE + 1)
        async with running(watch, clock) as line:
            line.ends.clear()
            line.turn()
            async with asyncio.timeout(60):
                while not {*live} <= {*line.read} or line.most.get("ends") != MOST_ENDING:
                    await asyncio.sleep(0.001)
            line.loop.poll_now()
            await line.is_full(MOST_ENDING)
            assert line.most["ends"] == MOST_ENDING
            line.ends.set()
            await line.all_is_read()
        ended = [one.event.session_id for one in await watch.all_events() if one.event.type == "session.ended"]
        assert Counter(ended) == Counter(over)


async def test_checks_go_on_while_nothing_live_waits(clock: Clock, tmp_path: Path) -> None:
    """Else 60 sessions that show nothing are checked too rarely for their devices' views to be current."""
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 60, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.list_poll.poll()
        for _ in range(SILENT_ROUNDS):
            clock.forward(INTERVAL)
            await watch.fetch_round(checks=0)
        clock.forward(INTERVAL)
        async with running(watch, clock) as line:
            async with asyncio.timeout(60):
                while {*line.alone} != {*fleet.sessions}:
                    await asyncio.sleep(0.001)
            assert len(line.alone) == len(fleet.sessions)
            assert line.most["BACKLOG"] == AT_ONCE[FetchKind.CHECK]


async def test_live_fetches_without_end_leave_room_for_last_reads_and_for_history(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 12, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 10)
        clock.forward(4300)  # the hour is to be settled
        history = cloud.open_session(cloud.add_device("BaceGo-late").id_group)
        cloud.end_session(history)
        cloud.finish_ingestion(history)
        group = cloud.add_device("BaceGo-many").id_group
        for _ in range(20):
            cloud.open_session(group)
        clock.forward(INTERVAL)
        await watch.list_poll.poll()
        async with running(watch, clock) as line:
            line.takes = 2.0  # the first one is due again before the last one was fetched
            async with asyncio.timeout(60):
                while not {history, fleet.sessions[0], fleet.sessions[-1]} <= {*line.alone}:
                    line.turn()
                    await asyncio.sleep(0.001)
            assert len(line.alone) < 300


async def test_what_could_not_be_had_and_is_tried_again_holds_up_nothing_live(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    fleet = Fleet(cloud, clock, 6, series=1)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await fleet.goes_on(watch, 2)
        await fleet.ends(watch)
        known = await watch.journal.known(fleet.sessions)
        again = tuple(replace(one, unread=True, fetch_at=clock()) for one in known.values())
        await watch.journal.commit(Changes(known=again))
        clock.forward(INTERVAL)
        live = [cloud.open_session(cloud.add_device(f"BaceGo-live-{one}").id_group) for one in range(2)]
        await watch.list_poll.poll()
        async with running(watch, clock) as line:
            line.gate.clear()
            await line.is_full(4)
            assert line.most == {"LIVE": 2, "BACKLOG": 2}
            assert {*live} <= {*line.read}
            line.gate.set()
            await line.all_is_read()
            assert {*fleet.sessions} <= {*line.read}
