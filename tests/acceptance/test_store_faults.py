"""The real process whose store fails: what it says, how it ends, and that nothing is lost."""

import asyncio
import json
import random
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Process, Receiver, configuration, receiver, running, until
from tests.integration.brokers import free_port
from tests.integration.disks import fill_up, small_disk


def logged(bridge: Process, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in bridge.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


async def polled_in_vain(bridge: Process, *, times: int) -> None:
    """Returns when so many attempts, the first ones included, ended at the store."""
    attempts = "sessions.store_unusable"
    await until(lambda: len(logged(bridge, attempts)) >= times, within=60, what=f"{times} polls that the store ends")


def ids(hook: Receiver) -> Counter[str]:
    return Counter(one.id for one in hook.arrivals)


def started(hook: Receiver) -> set[str | None]:
    return {one.session for one in hook.arrivals if one.type == "session.started"}


async def answer(port: int, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.json()


async def ready(port: int, *, status: int, within: float = 60.0) -> Any:
    async with asyncio.timeout(within):
        while True:
            found, body = await answer(port, "/readyz")
            if found == status:
                return body["checks"]["store"]
            await asyncio.sleep(0.05)


def run_to_its_end(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bace_bridge", "run", "-c", str(config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def test_a_full_disk_loses_nothing_repeats_nothing_and_is_reported_once(tmp_path: Path) -> None:
    cloud, port = SimulatedCloud(), free_port()
    devices = [cloud.add_device(f"BaceGo-{number}") for number in range(60)]
    with small_disk(tmp_path) as disk:
        async with SimulatedServer(cloud) as server, receiver() as hook:
            more = {"store": {"url": f"sqlite:///{disk}/bridge.db"}, "http": {"listen": f"127.0.0.1:{port}"}}
            config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, extra=more)
            async with running(config, level="debug") as bridge:
                await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
                opened = {cloud.open_session(devices[0].id_group)}
                await until(lambda: started(hook) == opened, within=60, what="the first start")
                filler = fill_up(disk)
                for device in devices[1:]:
                    opened.add(cloud.open_session(device.id_group))
                await until(lambda: bool(logged(bridge, "store.unusable")), within=60, what="the disk is missed")
                check = await ready(port, status=503)
                assert check["reason"].endswith("the disk is full")
                assert (await answer(port, "/healthz"))[0] == 200
                await polled_in_vain(bridge, times=2)
                filler.unlink()
                await until(lambda: started(hook) == opened, within=60, what="every start")
                await ready(port, status=200)
                await until(lambda: bool(logged(bridge, "store.usable_again")), within=60, what="that it says so")
                assert len(logged(bridge, "store.unusable")) == len(logged(bridge, "store.usable_again")) == 1
                assert await bridge.stop() == 0
            assert max(ids(hook).values()) == 1


async def test_it_ends_while_the_disk_is_full_and_the_next_start_tells_the_rest(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    devices = [cloud.add_device(f"BaceGo-{number}") for number in range(60)]
    with small_disk(tmp_path) as disk:
        async with SimulatedServer(cloud) as server, receiver() as hook:
            more = {"store": {"url": f"sqlite:///{disk}/bridge.db"}}
            config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, extra=more)
            async with running(config) as bridge:
                await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
                filler = fill_up(disk)
                opened = {cloud.open_session(device.id_group) for device in devices}
                await until(lambda: bool(logged(bridge, "store.unusable")), within=60, what="the disk is missed")
                assert await bridge.stop(within=60) == 0
            filler.unlink()
            async with running(config) as bridge:
                await until(lambda: started(hook) == opened, within=60, what="every start")
                assert await bridge.stop() == 0


def test_a_disk_that_is_full_at_the_start_is_named_and_the_next_start_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        config = configuration(
            tmp_path, cloud_url="http://127.0.0.1:9", extra={"store": {"url": f"sqlite:///{disk}/bridge.db"}}
        )
        fill_up(disk)
        for _ in range(2):
            ended = run_to_its_end(config)
            assert ended.returncode == 70
            assert ended.stderr.splitlines()[-1].endswith("bridge.db: the disk is full")
            assert "Traceback" not in ended.stderr


async def test_a_lock_of_another_program_holds_up_and_loses_nothing(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        async with running(config, level="debug") as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            shell = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
            shell.execute("begin immediate")
            session = cloud.open_session(device.id_group)
            await until(lambda: bool(logged(bridge, "store.unusable")), within=60, what="the lock is missed")
            await polled_in_vain(bridge, times=2)
            shell.close()
            await until(lambda: started(hook) == {session}, within=60, what="the start")
            (line,) = logged(bridge, "store.unusable")
            assert line["error"] == "StoreBusy"
            assert len(logged(bridge, "store.usable_again")) <= 1
            assert await bridge.stop() == 0
        assert max(ids(hook).values()) == 1


async def test_writes_that_the_system_fails_at_are_reported_and_tried_again(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        async with running(config) as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            size = (tmp_path / "bridge.db-wal").stat().st_size
            _, hard = resource.prlimit(bridge.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(bridge.process.pid, resource.RLIMIT_FSIZE, (max(size, 16_384), hard))
            session = cloud.open_session(device.id_group)
            await until(lambda: bool(logged(bridge, "store.unusable")), within=60, what="the failure is reported")
            resource.prlimit(bridge.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            await until(lambda: started(hook) == {session}, within=60, what="the start")
            (line,) = logged(bridge, "store.unusable")
            assert line["error"] == "StoreFault"
            assert await bridge.stop() == 0
        assert max(ids(hook).values()) == 1


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_store_that_is_taken_away_ends_it_with_what_to_do(tmp_path: Path, how: str) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(config) as bridge:
            await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
            (tmp_path / "bridge.db").unlink()
            if how == "replaced":
                (tmp_path / "bridge.db").write_bytes(b"")
            cloud.open_session(device.id_group)
            async with asyncio.timeout(60):
                assert await bridge.process.wait() == 70
            assert "was moved or deleted under the running bridge: put it back" in bridge.log.splitlines()[-1]
            assert len(logged(bridge, "store.unusable")) == 1
            assert "Traceback" not in bridge.log


async def test_a_corrupt_store_says_so_at_each_start_and_is_left_as_it_is(tmp_path: Path) -> None:
    """A restart must neither hide it nor begin anew by itself."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    path = tmp_path / "bridge.db"
    async with SimulatedServer(cloud) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        async with running(config) as bridge:
            cloud.open_session(device.id_group)
            await until(lambda: "session.started" in bridge.log, within=60, what="the start is seen")
            assert await bridge.stop() == 0
        whole = path.read_bytes()
        for first, last in [(0, 4096), (4096, len(whole))]:
            broken = random.Random(2).randbytes(last - first)
            path.write_bytes(whole[:first] + broken + whole[last:])
            for _ in range(2):
                ended = await asyncio.to_thread(run_to_its_end, config)
                assert ended.returncode == 70
                words = ended.stderr.splitlines()[-1]
                assert "is not a usable database" in words
                assert "restore it, or move it and its -wal and -shm away together" in words
                assert "Traceback" not in ended.stderr
            assert path.read_bytes()[first:last] == broken


async def test_what_waits_in_a_store_of_schema_1_is_delivered(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parents[1] / "contract" / "schema1.sql").read_text("utf-8"))
        rows = connection.execute("select seq, id, session_id from events order by seq").fetchall()
    connection.close()
    waiting = {one: [event for seq, event, session in rows if session == one and seq > 1] for one in ("s1", "s2")}
    async with SimulatedServer(SimulatedCloud()) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        async with running(config) as bridge:
            for session, expected in waiting.items():
                await until(
                    lambda session=session, expected=expected: (  # type: ignore[misc]  # binds now
                        [one.id for one in hook.arrivals if one.session == session][: len(expected)] == expected
                    ),
                    within=60,
                    what=f"the events of {session}, in order",
                )
            assert await bridge.stop() == 0
    assert "session.started" not in {one.type for one in hook.arrivals if one.session in {"s1", "s3"}}
    with sqlite3.connect(path) as connection:
        assert connection.execute("select sink, seq, key from dead_letters").fetchall() == [("hook", 3, "s3")]
    connection.close()


async def test_at_the_cap_the_cloud_is_not_asked_until_deliveries_have_made_room(tmp_path: Path) -> None:
    cloud, port = SimulatedCloud(), free_port()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        more = {"store": {"max_size": "16MiB", "session_retention": "90d"}, "http": {"listen": f"127.0.0.1:{port}"}}
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, extra=more)
        async with running(config) as bridge:
            await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
            assert await bridge.stop() == 0
        ballast(tmp_path / "bridge.db", 17)
        async with running(config, level="debug") as bridge:
            await until(lambda: bool(logged(bridge, "store.at_its_cap")), within=60, what="the cap")
            check = await ready(port, status=503)
            assert "store.max_size (16 MiB)" in check["reason"]
            await polled_in_vain(bridge, times=1)
            before = len(server.requests)
            session = cloud.open_session(device.id_group)
            await polled_in_vain(bridge, times=2)
            assert len(server.requests) == before
            assert (await answer(port, "/healthz"))[0] == 200
            ballast(tmp_path / "bridge.db", 0)
            await until(lambda: started(hook) == {session}, within=60, what="it goes on by itself")
            await ready(port, status=200)
            await until(lambda: bool(logged(bridge, "store.has_room_again")), within=60, what="that it says so")
            assert len(logged(bridge, "store.at_its_cap")) == len(logged(bridge, "store.has_room_again")) == 1
            assert await bridge.stop() == 0


def ballast(path: Path, megabytes: int) -> None:
    """Has so much in the store that cannot go: a known session's windows, which no pruning touches."""
    with sqlite3.connect(path) as connection:
        connection.execute("delete from windows where session_id = 'ballast'")
        rows = [("ballast", number, number + 1, "{}", b"x" * 2**20) for number in range(megabytes)]
        connection.executemany("insert into windows values (?, ?, ?, ?, ?)", rows)
    connection.close()
