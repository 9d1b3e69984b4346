"""Whether the health answer sees a dispatcher that stands still, and only such a one."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bace_bridge.app.running import Signal
from bace_bridge.delivery.dispatcher import LONGEST_REST
from bace_bridge.delivery.outlet import Outlet
from bace_bridge.errors import SinkDisabled
from bace_bridge.events.types import Event, Filter
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.status.health import SLOWEST_PROGRESS
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.test_cloud_faults import Watched, staged
from tests.integration.test_dispatcher import ScriptedSink, event, eventually

HOUR = 3600.0


class Line:
    """An outlet over a store of its own, as the health answer sees it, by one clock."""

    def __init__(self, watched: Watched, file: SqliteFile) -> None:
        self.clock, self.file, self.sink = watched.clock, file, ScriptedSink()
        self.log_grew: Signal[[]] = Signal()
        self.outlet = Outlet(
            "webhook",
            self.sink,
            EventLog(file),
            Filter(events=("session.updated",)),
            grew=self.log_grew,
            changed=lambda: None,
            clock=self.clock,
            monotonic=self.clock,
            jitter=lambda: 0.0,
            sleep=lambda _: asyncio.sleep(0),
        )
        self.log_grew.listen(self.outlet.dispatcher.log_grew)
        self._status = watched.status_of(self.outlet)

    def reason(self) -> str | None:
        return self._status.alive().get("deliveries:scripted")

    def stands_still_in_time(self) -> bool:
        self.clock.forward(1.0)
        return self.reason() is not None

    async def emit(self, *events: Event) -> None:
        await Journal(self.file, grew=self.log_grew).commit(Changes(events=events))


@asynccontextmanager
async def running(folder: Path, *, before: Sequence[Event] = ()) -> AsyncIterator[Line]:
    """`before` waits for the sink when it starts."""
    async with staged(folder) as (_, watched), SqliteFile(folder / "deliveries.db") as file:
        line = Line(watched, file)
        await EventLog(file).open_sink(line.sink.name, target="t")
        await line.emit(*before)
        run = asyncio.create_task(line.outlet.run(asyncio.Event()))
        try:
            yield line
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


@asynccontextmanager
async def store_that_hangs(file: SqliteFile) -> AsyncIterator[None]:
    gate = threading.Event()
    hold = asyncio.create_task(file.read(lambda _: gate.wait()))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        gate.set()
        await hold


async def test_one_that_stands_still_is_seen_until_it_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as line:
        await line.emit(event(1))
        await eventually(lambda: line.sink.sent == ["evt_1"])
        assert line.reason() is None
        async with store_that_hangs(line.file):
            line.log_grew()
            await eventually(line.stands_still_in_time)
            assert line.reason() == f"no progress for {SLOWEST_PROGRESS:.0f} s"
        await eventually(lambda: line.reason() is None)


async def test_one_that_waits_for_its_sink_does_not_stand_still(tmp_path: Path) -> None:
    async with running(tmp_path) as line:
        line.sink.lose()
        await line.emit(event(1))
        await eventually(lambda: line.sink.waited_for == 1)
        line.clock.forward(HOUR)
        assert line.reason() is None
        async with store_that_hangs(line.file):
            line.sink.connected.set()
            await eventually(line.stands_still_in_time)


async def test_one_that_has_ended_with_its_sink_does_not_stand_still(tmp_path: Path) -> None:
    async with running(tmp_path) as line:
        await line.emit(event(1))
        await eventually(lambda: line.sink.sent == ["evt_1"])
        line.sink.answer(1, SinkDisabled("410 Gone"))
        await eventually(lambda: line.outlet.disabled is not None)
        line.clock.forward(HOUR)
        assert line.reason() is None


async def test_one_that_reads_through_a_long_lane_does_not_stand_still(tmp_path: Path) -> None:
    """The sink wants nothing of it, so it is read to its end."""
    before = [event(number, kind="session.datapoints") for number in range(10_000)]
    reasons: list[str | None] = []
    async with running(tmp_path, before=before) as line:

        def slow(statement: str) -> None:
            if "from events where session_id" in statement:
                line.clock.forward(SLOWEST_PROGRESS / 2)
                reasons.append(line.reason())

        await line.file.read(lambda connection: connection.set_trace_callback(slow))
        await eventually(lambda: len(reasons) > 5)
        await line.file.read(lambda connection: connection.set_trace_callback(None))
        assert set(reasons) == {None}


def test_one_that_has_nothing_to_do_goes_round_often_enough() -> None:
    assert LONGEST_REST < SLOWEST_PROGRESS / 2
