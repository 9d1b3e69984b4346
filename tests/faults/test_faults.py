"""Every fact that the cloud showed comes to each sink, in order, whatever is killed, cut or filled.

`make test-faults` runs the full size and prints the figures; `make test` a bounded one.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.line import Process, until
from tests.faults.failpoints import STEPS
from tests.faults.figures import Figures
from tests.faults.ground import MQTT_WINDOW, WEBHOOK_WINDOW, proving_ground
from tests.faults.proxy import Fault, FaultProxy
from tests.integration.brokers import Mosquitto

pytestmark = pytest.mark.slow

NewMosquitto = Callable[..., Mosquitto]
Record = Callable[[Figures], None]


def broker_for_oracle(new_mosquitto: NewMosquitto) -> Mosquitto:
    return new_mosquitto("max_queued_messages 0", "persistence false")


def after(faults: int, *, windows: int = 1) -> dict[str, int]:
    """What may come twice: what was in flight at each fault."""
    return {"mqtt": faults * windows * MQTT_WINDOW, "webhook": faults * windows * WEBHOOK_WINDOW}


async def test_kills(new_mosquitto: NewMosquitto, tmp_path: Path, record: Record, *, full: bool, seed: int) -> None:
    kills, events = (200, 10_000) if full else (6, 200)
    chance = random.Random(seed)
    async with proving_ground(tmp_path, broker_for_oracle(new_mosquitto), seed=seed, devices=16) as ground:
        for number in range(kills):
            async with ground.bridge() as bridge:
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.uniform(0.0, 0.8))  # while it starts
                else:
                    await ground.runs(bridge)
                    await ground.reaches(events * number // kills)
                    await asyncio.sleep(chance.uniform(0.0, 0.6))
                await bridge.stop(signal.SIGKILL)
        async with ground.bridge() as bridge:
            await ground.reaches(events)
            await ground.settle(bridge, within=180)
        record(ground.judged("kills", seed, kills, at_most=after(kills)))


async def test_failpoints(
    new_mosquitto: NewMosquitto, tmp_path: Path, record: Record, *, full: bool, seed: int
) -> None:
    chance = random.Random(seed)
    steps = [step for step in STEPS for _ in range(12 if full else 1)]
    chance.shuffle(steps)
    async with proving_ground(tmp_path, broker_for_oracle(new_mosquitto), seed=seed, devices=16) as ground:
        for step in steps:
            failpoint = f"{step}:{chance.randint(1, 25)}"
            async with ground.bridge(failpoint) as bridge:
                async with asyncio.timeout(60):
                    assert await bridge.process.wait() == -signal.SIGKILL, failpoint
        async with ground.bridge() as bridge:
            await ground.settle(bridge, within=180)
        # These kill at the worst moment: what was acknowledged since the last record comes twice as well.
        record(ground.judged("failpoints", seed, len(steps), at_most=after(len(steps), windows=2)))


async def test_broker(new_mosquitto: NewMosquitto, tmp_path: Path, record: Record, *, full: bool, seed: int) -> None:
    """The bridge ends as well after each few kills: it would wait ever longer for a broker that keeps dying."""
    kills = 50 if full else 3
    chance = random.Random(seed)
    done = 0
    async with proving_ground(tmp_path, broker_for_oracle(new_mosquitto), seed=seed, devices=16) as ground:
        ends = 0
        while done < kills:
            async with ground.bridge() as bridge:
                for _ in range(min(3, kills - done)):
                    await ground.reaches(ground.events + chance.randint(1, 80))
                    ground.to_broker.switch(Fault.DELAY, delay=chance.uniform(0.02, 0.4))
                    await asyncio.sleep(chance.uniform(0.0, 1.0))
                    await ground.new_broker(its_words_too=chance.random() < 0.5)
                    done += 1
                if done == kills:
                    await ground.settle(bridge, within=180)
                    break
                await bridge.stop(chance.choice([signal.SIGKILL, signal.SIGTERM]))
                ends += 1
        record(ground.judged("broker", seed, done, at_most=after(done + ends), note=f"bridge ended {ends} x"))


async def test_cloud(new_mosquitto: NewMosquitto, tmp_path: Path, record: Record, *, full: bool, seed: int) -> None:
    cuts = 60 if full else 4
    chance = random.Random(seed)
    async with proving_ground(tmp_path, broker_for_oracle(new_mosquitto), seed=seed, devices=16) as ground:
        async with ground.bridge() as bridge, webhook_faults(ground.to_hook, random.Random(seed + 1)) as bouts:
            await ground.runs(bridge)
            for _ in range(cuts):
                await ground.reaches(ground.events + chance.randint(1, 30))
                fault = chance.choice([Fault.CUT, Fault.RESET, Fault.HOLE, Fault.DELAY])
                ground.to_cloud.switch(fault, delay=chance.uniform(0.05, 1.5))
                await asyncio.sleep(chance.uniform(0.1, 2.5))
                ground.to_cloud.switch(Fault.PASS)
            assert bridge.process.returncode is None
            await bouts.over()
            await ground.settle(bridge, within=180)
        note = f"webhook hung or cut {bouts.number} x"
        at_most = {"mqtt": 0, "webhook": bouts.number * WEBHOOK_WINDOW}
        record(ground.judged("cloud", seed, cuts, at_most=at_most, note=note))


class Bouts:
    """A webhook that hangs, is cut or resets now and then.

    A delivery that failed comes again after 5 s, and then only after 5 minutes: so the next bout begins when what
    failed in the last one has come again.
    """

    def __init__(self, proxy: FaultProxy, chance: random.Random) -> None:
        self.number = 0
        self._proxy = proxy
        self._chance = chance
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        while not self._stopping.is_set():
            self.number += 1
            self._proxy.switch(self._chance.choice([Fault.HOLE, Fault.CUT, Fault.RESET]))
            await asyncio.sleep(1.0)
            self._proxy.switch(Fault.PASS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10.0):
                    await self._stopping.wait()

    async def over(self) -> None:
        self._stopping.set()


@contextlib.asynccontextmanager
async def webhook_faults(proxy: FaultProxy, chance: random.Random) -> AsyncIterator[Bouts]:
    bouts = Bouts(proxy, chance)
    task = asyncio.create_task(bouts.run())
    try:
        yield bouts
    finally:
        await bouts.over()
        await task


async def test_disk(
    new_mosquitto: NewMosquitto, small_disk: Path, tmp_path: Path, record: Record, *, full: bool, seed: int
) -> None:
    times = 5 if full else 1
    chance = random.Random(seed)
    ballast = small_disk / "ballast"
    recovered: list[float] = []
    clock = asyncio.get_running_loop().time
    store = small_disk / "bridge.db"
    async with proving_ground(tmp_path, broker_for_oracle(new_mosquitto), seed=seed, devices=16, store=store) as ground:
        async with ground.bridge() as bridge:
            await ground.runs(bridge)
            for number in range(times):
                await ground.reaches(ground.events + chance.randint(1, 30))
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                fill(ballast)
                await full_disk_was_reported(bridge, times=number + 1)
                await asyncio.sleep(chance.uniform(0.5, 3.0))
                before = ground.events
                room_since = clock()
                ballast.unlink()
                await ground.reaches(before + 1)
                recovered.append(clock() - room_since)
                # An outage that goes on is not reported again, and one side of the store may still be waiting.
                await usable_again(bridge, times=number + 1)
            assert bridge.process.returncode is None
            await ground.settle(bridge, within=180)
        note = f"first event {min(recovered):.1f} to {max(recovered):.1f} s after there was room"
        record(ground.judged("disk", seed, times, at_most={"mqtt": 0, "webhook": 0}, note=note))


async def full_disk_was_reported(bridge: Process, *, times: int) -> None:
    await until(lambda: bridge.log.count("store.unusable") >= times, within=60, what="a complaint about the disk")


async def usable_again(bridge: Process, *, times: int) -> None:
    await until(lambda: bridge.log.count("store.usable_again") >= times, within=180, what="an end of the outage")


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount the small file system that is to be full")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
