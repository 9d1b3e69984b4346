"""What happens in the simulated cloud while the faults come: data sessions on many devices, in a seeded order."""

import asyncio
import random
import time
from collections.abc import Callable

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device


class Load:
    """Until it is stopped, each device has one session after the other: measured live or uploaded afterwards.

    Points are corrected, labels changed, points come late, ingestion finishes. `expected` is what the cloud shows.
    No session begins while `too_many` of them have not arrived to their end, so that a slow machine is not drowned.
    """

    def __init__(self, cloud: SimulatedCloud, *, devices: int, seed: int) -> None:
        self._cloud = cloud
        self._devices = [cloud.add_device(f"BaceGo-{one}", datatypes=(6000, 6002)) for one in range(devices)]
        self._seed = seed
        self._stopping = False
        self.too_many: Callable[[], bool] = lambda: False
        self.expected: dict[str, dict[tuple[str, float], float]] = {}

    def stop(self) -> None:
        """`run` returns when the sessions that are under way have run to their end."""
        self._stopping = True

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number, device in enumerate(self._devices):
                # A source of its own for each device: they do not depend on which of them wakes up first.
                group.create_task(self._device(device, random.Random(f"{self._seed}/{number}")))

    async def _device(self, device: Device, chance: random.Random) -> None:
        while not self._stopping:
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            if not self.too_many():
                await self._session(device, chance, live=chance.random() < 0.75)

    async def _session(self, device: Device, chance: random.Random, *, live: bool) -> None:
        cloud, started, batches = self._cloud, time.time(), chance.randint(2, 7)
        session = cloud.open_session(device.id_group)
        points = self.expected[session] = {}
        for batch in range(batches):
            if batch == batches - 1:
                cloud.end_session(session)
            if batch == 1 and chance.random() < 0.5:
                cloud.change(session, label=f"renamed {batch}")
            for series in device.series:
                count = chance.randint(1, 8)
                samples = {
                    round(started + 0.12 * batch + 0.01 * one, 3): float(chance.randint(40, 160))
                    for one in range(count)
                }
                if batch and chance.random() < 0.4:
                    samples[chance.choice([at for name, at in points if name == series.id_container_data_latest])] = 7.5
                cloud.add_points(session, series.id_container_data_latest, samples.items())
                points.update({(series.id_container_data_latest, at): value for at, value in samples.items()})
            if live:
                await asyncio.sleep(chance.uniform(0.15, 0.6))
        cloud.finish_ingestion(session)
