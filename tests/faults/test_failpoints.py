"""Each failpoint ends the real process at its step and at no other: what is durable and what arrived tells which."""

import asyncio
import signal
import sqlite3
from pathlib import Path

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, receiver, running


def durable(folder: Path, question: str) -> int:
    connection = sqlite3.connect(folder / "bridge.db")
    try:
        return int(connection.execute(question).fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("failpoint", "logged", "arrived", "waiting"),
    [
        ("fetched:1", 0, 0, 0),
        ("committed:1", 0, 0, 0),
        ("committed:2", 1, 0, 1),
        ("sent:1", 1, 0, 1),
        ("acknowledged:1", 1, 1, 1),
        ("advanced:1", 1, 1, 0),
    ],
)
async def test_it_dies_at_its_step(tmp_path: Path, failpoint: str, logged: int, arrived: int, waiting: int) -> None:
    cloud = SimulatedCloud()
    cloud.open_session(cloud.add_device("BaceGo-1").id_group)
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, start_from="all")
        async with running(config, failpoint=failpoint) as bridge, asyncio.timeout(60):
            assert await bridge.process.wait() == -signal.SIGKILL
        assert durable(tmp_path, "select count(*) from events") == logged
        assert durable(tmp_path, "select count(*) from lanes") == waiting
        assert len(hook.arrivals) == arrived


async def test_it_counts_the_passes(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    for _ in range(5):
        cloud.open_session(device.id_group)
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, start_from="all")
        async with running(config, failpoint="acknowledged:4") as bridge, asyncio.timeout(60):
            assert await bridge.process.wait() == -signal.SIGKILL
        assert len(hook.arrivals) in {4, 5}  # one more may be under way
