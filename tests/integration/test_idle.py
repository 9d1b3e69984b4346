"""An idle bridge writes nothing: it may run from a memory card for years."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import receiver, until
from tests.integration.brokers import Mosquitto
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

        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(device.id_group)
            await bridge.has_said("session.started")
            cloud.end_session(session)
            cloud.finish_ingestion(session)
            await bridge.has_said("session.csv_ready")
            await until(lambda: len(hook.arrivals) >= 3, within=SOON, what="the last event")
            bridge.times.forward(100.0)  # what is written once a minute, and the end of the window, are over
            at = len(server.requests)
            await until(lambda: len(server.requests) > at + POLLS, within=SOON, what="some polls")
            statements.clear()
            wal, at = (tmp_path / "bridge.db-wal").stat(), len(server.requests)
            await until(lambda: len(server.requests) > at + POLLS and ticks() > TICKS, within=SOON, what="polls, ticks")
            written = [one for one in statements if one.lower().lstrip().startswith(("begin", "insert", "update"))]
            after = (tmp_path / "bridge.db-wal").stat()
            assert written == []
            assert (wal.st_size, wal.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
