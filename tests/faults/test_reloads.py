"""Reloads at any moment, two at once among them: what a sink gets does not show them."""

import asyncio
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.line import until
from tests.faults.figures import Figures
from tests.faults.ground import proving_ground
from tests.integration.brokers import Mosquitto, free_port

pytestmark = pytest.mark.slow


def changes(settings: dict[str, Any], chance: random.Random) -> None:
    """Of the account, of a sink, of the health server or of nothing."""
    cloud, watch, hook, home = settings["cloud"], settings["watch"], settings["webhooks"][0], settings["mqtt"][0]
    match chance.choice(["account", "account", "hook", "home", "http", "store", "nothing"]):
        case "account":
            cloud["requests_per_minute"] = chance.randint(50_000, 100_000)
            watch["datapoint_interval"] = f"{chance.randint(200, 400)}ms"
        case "hook":
            hook["timeout"] = f"{chance.randint(10, 60)}s"
        case "home":
            home["max_in_flight"] = chance.randint(5, 200)
        case "http":
            settings["http"]["listen"] = f"127.0.0.1:{free_port()}"
        case "store":
            settings["store"]["retention"] = f"{chance.randint(1, 20)}d"


async def test_reloads(
    new_mosquitto: Callable[..., Mosquitto], tmp_path: Path, record: Callable[[Figures], None], *, full: bool, seed: int
) -> None:
    reloads, events = (300, 12_000) if full else (15, 300)
    chance = random.Random(seed)
    broker = new_mosquitto("max_queued_messages 0", "persistence false")
    path = tmp_path / "bridge.yaml"
    async with proving_ground(tmp_path, broker, seed=seed, devices=16) as ground, ground.bridge() as bridge:
        await ground.runs(bridge)
        for number in range(reloads):
            await ground.reaches(events * number // reloads)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            for _ in range(chance.choice([1, 1, 2, 3])):
                settings = json.loads(path.read_text())
                changes(settings, chance)
                path.write_text(json.dumps(settings))
                bridge.process.send_signal(signal.SIGHUP)
                await asyncio.sleep(chance.choice([0.0, 0.0, 0.02]))
        await until(lambda: bridge.log.count("bridge.running") > reloads // 2, within=120, what="the reloads")
        await ground.reaches(events)
        await ground.settle(bridge, within=180)
        record(ground.judged("reloads", seed, reloads, at_most={"mqtt": 0, "webhook": 0}))
