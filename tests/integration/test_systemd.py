import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.app.service import long_start, notify, watchdog_interval


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """What systemd is to a service: a datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(60)
        yield listener


def test_the_manager_is_notified(manager: socket.socket, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    manager.bind(path)
    notify("READY=1\nSTATUS=Watching", address=path)
    notify("WATCHDOG=1", address=path)
    assert manager.recv(100) == b"READY=1\nSTATUS=Watching"
    assert manager.recv(100) == b"WATCHDOG=1"


def test_an_abstract_address(manager: socket.socket) -> None:
    name = f"bace-bridge-test-{os.getpid()}"
    manager.bind("\0" + name)
    notify("STOPPING=1", address="@" + name)
    assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    with capture_logs() as logs:
        notify("READY=1", address=address)
    assert not logs


def test_a_manager_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    with capture_logs() as logs:
        notify("READY=1", address=str(tmp_path / "gone"))
    (reported,) = logs
    assert (reported["event"], reported["reason"]) == ("systemd.not_notified", "No such file or directory")


def test_a_manager_that_does_not_read_blocks_nobody(manager: socket.socket, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    manager.bind(path)
    with capture_logs() as logs:
        while not logs:
            notify("WATCHDOG=1", address=path)
    assert logs[0]["event"] == "systemd.not_notified"


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "500000"}, 0.25),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_notified_twice_as_often_as_it_must(env: dict[str, str], seconds: float | None) -> None:
    assert watchdog_interval(env) == seconds


async def test_a_long_start_asks_for_more_time_until_it_is_over() -> None:
    sent: list[str] = []
    passed: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(_: float) -> None:
        await passed.get()

    async with long_start(sent.append, sleep=sleep):
        for _ in range(3):
            passed.put_nowait(10.0)
        while len(sent) < 3:
            await asyncio.sleep(0)
    passed.put_nowait(10.0)
    await asyncio.sleep(0)
    assert sent == ["EXTEND_TIMEOUT_USEC=60000000\nSTATUS=opening the store"] * 3


async def test_a_short_start_asks_for_nothing() -> None:
    sent: list[str] = []
    async with long_start(sent.append):
        pass
    assert sent == []
