"""Real parts for the figures: a Mosquitto, a receiver in a process of its own, a store with a filled log."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec

from bace_bridge.events.types import Event, event_id
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession, session_event
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile

NOW = 1_764_590_400.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mosquitto(folder: Path, *, port: int | None = None) -> Iterator[int]:
    """A Mosquitto without limits, on a free port where none is given."""
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    port = port or free_port()
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    )
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m module`, whose first line on stdout says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


def session_events(count: int, *, sessions: int) -> list[Event]:
    """Distinct session events of the usual size, spread over sessions."""
    found: list[Event] = []
    for number in range(count):
        session = DataSession(
            id=f"86d70a1b-0000-4000-8000-{number % sessions:012d}",
            group_id=f"4c1c81ca-0000-4000-8000-{number % sessions % 20:012d}",
            start=NOW,
            label="BACE Go 001 2026-11-22 14:04",
            updated_at=NOW,
            datapoint_count=10,
        )
        known = KnownSession(session=session, device_label="BaceGo-001-002-00020")
        event = session_event("session.updated", known, time=NOW, now=NOW, facts=(number,), changed=["label"])
        found.append(msgspec.structs.replace(event, id=event_id("bench", number)))
    return found


@contextlib.asynccontextmanager
async def filled_log(
    folder: Path, events: list[Event], *, name: str = "log.db", sinks: Sequence[str] = ()
) -> AsyncIterator[tuple[EventLog, Journal]]:
    async with SqliteFile(folder / name) as file:
        journal = Journal(file)
        for sink in sinks:
            await EventLog(file).open_sink(sink, target="")
        for first in range(0, len(events), 1000):
            await journal.commit(Changes(events=tuple(events[first : first + 1000])))
        yield EventLog(file), journal


async def until_idle(is_done: "asyncio.Event", *, within: float) -> None:
    async with asyncio.timeout(within):
        await is_done.wait()
