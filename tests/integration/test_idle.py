"""How often the bridge writes: never while it is idle, since it may run from a memory card for years."""

import asyncio
import math
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import Resolution
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import receiver, until
from tests.delivered import deliver
from tests.integration.brokers import Mosquitto
from tests.integration.polling_line import NOON, Clock, points, simulated, watching
from tests.integration.whole_bridge import SOON, bridge_file, whole_bridge

POLLS, TICKS = 40, 40


async def test_polls_and_ticks_that_find_nothing_write_nothing(
    tmp_path: Path, new_mosquitto: Callable[..., Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SqliteFile._open
    statements: list[str] = []

    def traced(file: SqliteFile) -> sqlite3.Connection:
        connection = opened(file)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(SqliteFile, "_open", traced)
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        hooks = {"hook": {"url": hook.url}}
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=new_mosquitto().port, hooks=hooks, interval="50ms")

        def ticks() -> int:
            return sum("dead_letters" in one for one in statements)

        def went_on(after: int) -> bool:
            return len(server.requests) > after + POLLS and ticks() > TICKS

        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(device.id_group)
            await bridge.has_said("session.started")
            cloud.end_session(session)
            cloud.finish_ingestion(session)
            await bridge.has_said("session.csv_ready")
            await until(lambda: len(hook.arrivals) >= 3, within=SOON, what="the last event")
            bridge.times.forward(200.0)  # what is written rarely, and the end of the window, are over
            at = len(server.requests)
            await until(lambda: len(server.requests) > at + POLLS, within=SOON, what="some polls")
            is_quiet, gives_up = False, asyncio.get_running_loop().time() + SOON
            # Retained state goes out a second after discovery, and its ledger is written with it.
            while not is_quiet and asyncio.get_running_loop().time() < gives_up:
                statements.clear()
                wal, at = (tmp_path / "bridge.db-wal").stat(), len(server.requests)
                await until(partial(went_on, at), within=SOON, what="polls and ticks")
                after = (tmp_path / "bridge.db-wal").stat()
                written = [one for one in statements if one.lower().lstrip().startswith(("begin", "insert", "update"))]
                # What had begun before may be committed now.
                is_quiet = not written and wal.st_mtime_ns == after.st_mtime_ns
            assert written == []
            assert (wal.st_size, wal.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


async def test_an_active_session_is_written_once_a_poll_and_once_a_fetch(tmp_path: Path) -> None:
    clock = Clock()
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    statements: list[str] = []
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        await watch.file.read(lambda connection: connection.set_trace_callback(statements.append))
        for second in range(5, 305, 5):
            clock.forward(5)
            cloud.add_points(session, series, [(clock.now - one, 1.0) for one in range(5)])
            if second % 10 == 0:
                await watch.list_poll.poll()
            await watch.fetch_due()
        await watch.file.read(lambda connection: connection.set_trace_callback(None))
        assert len(points(await watch.all_events())) == 300, "all of them were published"
    polls, fetches, watermarks = 30, 20, 6
    assert sum(one == "begin immediate" for one in statements) <= polls + fetches + watermarks


async def test_an_active_session_writes_little_at_any_point_of_the_hour(tmp_path: Path) -> None:
    """Five series at one point a second: at most 30 MB an hour, of which this leaves some to the database file."""
    clock = Clock(NOON + 1)
    cloud = simulated(clock, "no-interval-raw")
    cloud.resolution = Resolution(raw=3600.0)
    device = cloud.add_device("BaceGo-1", datatypes=(6000, 6001, 6002, 6011, 5205))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.log.open_sink("home", target="t")
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        await watch.file.read(lambda connection: connection.execute("pragma wal_autocheckpoint = 0").fetchall())

        async def goes_on(seconds: int, *, every: int) -> int:
            """The bytes that so many seconds write to the WAL."""
            await watch.file.checkpoint()
            for second in range(every, seconds + every, every):
                made = [clock.now + one for one in range(every)]
                clock.forward(every)
                for number, series in enumerate(device.series):
                    samples = [(at, round(100 * math.sin(at / 60 + number), 3)) for at in made]
                    cloud.add_points(session, series.id_container_data_latest, samples)
                if second % 10 == 0:
                    await watch.list_poll.poll()
                if second % 15 == 0:
                    await watch.fetch_due()
                    await deliver(watch.file, "home")
            return watch.file.wal_bytes

        first = await goes_on(300, every=5)
        await goes_on(2700, every=900)
        last = await goes_on(300, every=5)
    assert 12 * first < 25e6
    assert 12 * last < 25e6
