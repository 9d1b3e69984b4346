"""The real process over a store of an earlier version, killed while it starts: every delivery that waited is made."""

import signal
import socket
from collections import Counter
from pathlib import Path

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, receiver, running, until
from tests.contract.test_migrations import SCRIPTS, store_of_schema_3, version_of

WAITS = Counter(
    # a retried dead letter and a replay of the same event; what had failed or was under way; what came after the cursor
    {"evt_1": 2, "evt_3": 1, "evt_4": 1, "evt_5": 1, "evt_6": 1, "evt_7": 1, "evt_8": 1, "evt_9": 1, "evt_10": 1}
)
"""What `hook` of `store_of_schema_3` has still to get."""


async def test_what_waited_in_an_older_store_is_delivered_once(tmp_path: Path) -> None:
    store_of_schema_3(tmp_path / "bridge.db")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        async with SimulatedServer(SimulatedCloud()) as server, receiver() as hook:
            config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
            async with running(config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as process:
                await until(lambda: len(hook.arrivals) >= WAITS.total(), within=60, what="all that waited")
                assert await process.stop() == 0
            assert Counter(one.id for one in hook.arrivals) == WAITS
            assert manager.recv(1000).startswith(b"READY=1")
    assert version_of(tmp_path / "bridge.db") == len(SCRIPTS)
    assert version_of(tmp_path / f"bridge.db.before-v{len(SCRIPTS)}") == 3
    assert '"store.migrated"' in process.log


def names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


async def test_killed_at_several_times_of_its_first_start_it_delivers_what_waited(tmp_path: Path) -> None:
    store_of_schema_3(tmp_path / "bridge.db")
    async with SimulatedServer(SimulatedCloud()) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        for _ in range(5):
            seen = names(tmp_path)
            async with running(config) as process:
                # Each new file is a moment of the start: the lock, the WAL, half a copy, the copy.
                moment = "a new file, or a delivery"
                await until(lambda at=seen: names(tmp_path) != at or hook.arrivals != [], within=60, what=moment)  # type: ignore[misc]  # binds now
                await process.stop(signal.SIGKILL)
        async with running(config) as process:
            # One that was killed may have delivered all of it, and the log is that of all of them.
            before = process.log.count("bridge.running")
            await until(lambda: process.log.count("bridge.running") > before, within=60, what="it runs")
            await until(lambda: {one.id for one in hook.arrivals} == {*WAITS}, within=60, what="all that waited")
            assert await process.stop() == 0
    assert version_of(tmp_path / f"bridge.db.before-v{len(SCRIPTS)}") == 3
