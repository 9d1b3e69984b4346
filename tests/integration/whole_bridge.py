"""The real Bridge in this process, built from a configuration file, with clocks that a test can move."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from bace_bridge.app.bridge import Bridge
from bace_bridge.config.load import load
from tests.acceptance.line import SECRET, configuration, until

SOON = 60.0
"""Real seconds after which a test that waits for something has failed."""


class Times:
    """The real clocks, and how far they were moved: time passes by `forward`, the wall clock is set by `set_wall`."""

    def __init__(self) -> None:
        self._wall = self._monotonic = 0.0

    def wall(self) -> float:
        return time.time() + self._wall

    def monotonic(self) -> float:
        return time.monotonic() + self._monotonic

    def forward(self, seconds: float) -> None:
        self._wall += seconds
        self._monotonic += seconds

    def set_wall(self, seconds: float) -> None:
        self._wall += seconds


class Whole:
    """A running bridge: what it logs, and what its service manager hears."""

    def __init__(self, bridge: Bridge, times: Times, logs: list[MutableMapping[str, Any]]) -> None:
        self.times = times
        self.states: list[str] = []
        self.stop = asyncio.Event()
        self._logs = logs
        self.reload = bridge.reloads.ask
        self._run = asyncio.create_task(bridge.run(self.stop, notify=self.states.append, watchdog=0.05))

    async def ends(self) -> None:
        """As on SIGTERM; raises what the bridge ended with."""
        self.stop.set()
        async with asyncio.timeout(SOON):
            await self._run

    def said(self, name: str) -> int:
        return sum(one["event"] == name for one in self._logs)

    async def has_said(self, name: str, *, times: int = 1) -> None:
        await until(
            lambda: self.said(name) >= times or self._run.done(), within=SOON, what=f"{times} x {name} in the log"
        )
        if self.said(name) < times:
            await self._run
            raise AssertionError(f"it ended without {times} x {name} in the log")

    async def has_ticked(self, times: int = 1) -> None:
        """The tick is what notices that the wall clock was set."""
        for number in range(times):
            before = self.said("clock.stepped")
            self.times.set_wall(5.0 if number % 2 else -5.0)
            await self.has_said("clock.stepped", times=before + 1)


def bridge_file(
    folder: Path, *, cloud_url: str, hooks: Mapping[str, Mapping[str, Any]] | None = None, **more: Any
) -> Path:
    """The configuration of `line.py`, with any number of webhooks: each by its name, with its keys."""
    path = configuration(folder, cloud_url=cloud_url, **more)
    settings = json.loads(path.read_text())
    settings["webhooks"] = [{"name": name, "secret": SECRET, **keys} for name, keys in (hooks or {}).items()]
    path.write_text(json.dumps(settings))
    return path


@asynccontextmanager
async def whole_bridge(path: Path, *, times: Times | None = None) -> AsyncIterator[Whole]:
    """Runs until the end of the context, and then ends as on SIGTERM. It ticks every 50 ms."""
    times = times or Times()
    with capture_logs() as logs:
        bridge = Bridge(load(path, {}), version="test", clock=times.wall, monotonic=times.monotonic)
        one = Whole(bridge, times, logs)
        try:
            await one.has_said("bridge.running")
            yield one
        finally:
            await one.ends()
