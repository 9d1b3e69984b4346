"""Each event and each point exactly once, in order, on MQTT and on a webhook, whatever the cloud's quirks."""

import asyncio
import random
import time
from datetime import datetime
from pathlib import Path

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.datapoints import OTHER_VALUE
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Arrival, complaints, configuration, from_mqtt, receiver, running, until
from tests.integration.brokers import Broker, listening

QUIRKS = [
    ("tie-shuffle",),
    ("filters-ignored",),
    ("updated-filter-ignored",),
    ("data-filters-ignored", "no-interval-raw"),
    ("sort-ignored",),
    ("no-page-clamp",),
    ("refresh-rotates", "token-lifetime 62s"),
    ("refresh-destroys", "token-lifetime 62s"),
    ("refresh-both", "token-lifetime 62s"),
    ("refresh-same", "token-lifetime 62s"),
    ("rate-limit 60/2s",),
    ("numbers-as-strings", "booleans-as-ints"),
    ("internal-links", "unknown-fields"),
    ("per-page-max 7",),
    ("error-every 9",),
    ("no-expand",),
    ("no-date",),
    ("no-interval-raw",),
    ("long-by-day 1d",),
    ("latency 20ms",),
    ("forbidden group", "no-expand"),
    ("broken-row 290",),
    ("filters-ignored", "broken-row 297", "broken-row 120"),
    ("header-limit 4096",),
    ("int4", "gte-unsupported"),
    ("no-in-filter",),
    ("in-filter-ignored", "end-filter-ignored"),
    ("session-filter-ignored",),
    ("unstable-order",),
    ("object-items", "decimals-as-strings"),
    ("no-updated-at",),
    ("duplicate-points", "no-interval-raw"),
    ("bucket-start",),
    ("conflicting-points", "no-interval-raw"),
    ("duplicate-sessions",),
    ("replica-lag 1s 30%",),
    ("stale-rows 1s 30%",),
    ("maintenance 2s/12s",),
    ("expires-in null",),
    ("expires-in never",),
    (
        "header-limit 4096", "int4", "gte-unsupported", "no-in-filter", "unstable-order", "object-items",
        "decimals-as-strings", "duplicate-points", "duplicate-sessions", "replica-lag 1s 10%", "expires-in false",
    ),
]  # fmt: skip
TOGETHER = (
    "tie-shuffle", "filters-ignored", "refresh-destroys", "token-lifetime 62s", "numbers-as-strings",
    "booleans-as-ints", "internal-links", "unknown-fields", "per-page-max 40", "error-every 40", "no-expand",
    "no-date", "no-interval-raw",
)  # fmt: skip

Expected = dict[str, dict[tuple[str, float], float]]


class Story:
    """Sessions that open, measure, end, get late points and are ingested, in a seeded order."""

    def __init__(
        self, cloud: SimulatedCloud, *, devices: int, sessions: int, points: int, seed: int, begun: float = 0.0
    ) -> None:
        """`begun`: how many seconds a session has lasted when the cloud hears of it."""
        self._cloud = cloud
        self._random = random.Random(seed)
        self._devices = [cloud.add_device(f"BaceGo-{one}", datatypes=(6000, 6002)) for one in range(devices)]
        self._sessions = sessions
        self._points = points // sessions
        self._begun = begun
        self.expected: Expected = {}

    async def play(self) -> None:
        per_device = self._sessions // len(self._devices)
        async with asyncio.TaskGroup() as group:
            for device in self._devices:
                group.create_task(self._one_after_the_other(device, per_device))

    async def _one_after_the_other(self, device: Device, count: int) -> None:
        for number in range(count):
            await asyncio.sleep(self._random.uniform(0, 0.8))
            await self._session(device, offline=number % 3 == 2)

    async def _session(self, device: Device, *, offline: bool) -> None:
        started = time.time() - self._begun
        session = self._cloud.open_session(device.id_group, start=started)
        self.expected[session] = points = {}
        batches = 4
        for batch in range(batches):
            late = batch == batches - 1
            if late:
                self._cloud.end_session(session)
            for series in device.series:
                count = self._points // (batches * len(device.series))
                samples = [(round(started + 0.001 * (batch * 10_000 + one), 3), float(one)) for one in range(count)]
                self._cloud.add_points(session, series.id_container_data_latest, samples)
                points.update({(series.id_container_data_latest, stamp): value for stamp, value in samples})
            if not offline:
                await asyncio.sleep(self._random.uniform(0.1, 0.5))
        self._cloud.finish_ingestion(session)


async def emit(
    story_size: dict[str, int], quirks: tuple[str, ...], broker: Broker, folder: Path, *, within: float
) -> None:
    cloud = SimulatedCloud(quirks=Quirks.parse(list(quirks)), seed=3)
    story = Story(cloud, **story_size, seed=11)
    cloud.add_history(300, first_start=time.time() - 900_000, spacing=2_000, duration=600)
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(folder, cloud_url=server.url, mqtt_port=broker.port, hook_url=hook.url)
        with listening(broker.port, "bace/#") as listener:
            async with running(config) as bridge:
                await until(lambda: "bridge.running" in bridge.log, within=60, what="the bridge runs")
                await until(lambda: len(server.requests) >= 4, within=60, what="the first poll")
                await story.play()

                def heard() -> list[Arrival]:
                    found = [from_mqtt(one.topic, one.payload) for one in list(listener.heard) if not one.retained]
                    return [one for one in found if one is not None]

                def done(arrivals: list[Arrival]) -> bool:
                    return sum(one.type == "session.csv_ready" for one in arrivals) >= len(story.expected)

                await until(lambda: done(hook.arrivals) and done(heard()), within=within, what="every session's CSV")
                assert await bridge.stop() == 0
                assert "Traceback" not in bridge.log
            for arrivals in (heard(), hook.arrivals):
                assert revised(arrivals) == [], "the cloud corrects no point in this story"
                assert {one.session for one in arrivals} - {None} <= story.expected.keys(), "history was reported"
                assert complaints(arrivals, as_served(story.expected, arrivals, quirks)) == []


def as_served(expected: Expected, arrivals: list[Arrival], quirks: tuple[str, ...]) -> Expected:
    """Where the cloud has two values for a point, either is right."""
    if "conflicting-points" not in quirks:
        return expected
    came = {
        (one.session, point["series_id"], moment(point["timestamp"])): point["avg"]
        for one in arrivals
        for point in one.body.get("datapoints", [])
    }
    return {
        session: {
            (series, stamp): value + OTHER_VALUE if came.get((session, series, stamp)) == value + OTHER_VALUE else value
            for (series, stamp), value in points.items()
        }
        for session, points in expected.items()
    }


def revised(arrivals: list[Arrival]) -> list[object]:
    return [
        (one.session, point["series_id"], point["timestamp"], point["revision"])
        for one in arrivals
        for point in one.body.get("datapoints", [])
        if point["revision"]
    ]


def moment(timestamp: str) -> float:
    return round(datetime.fromisoformat(timestamp).timestamp(), 3)


@pytest.mark.parametrize("quirks", QUIRKS, ids="+".join)
async def test_with_a_quirk(broker: Broker, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    size = {"devices": 4, "sessions": 8, "points": 1600}
    if "session-filter-ignored" in quirks:
        # Points are kept apart by their device and by the time of its session, so these must not overlap.
        size |= {"devices": 8, "begun": 60}
    await emit(size, quirks, broker, tmp_path, within=180)


@pytest.mark.slow
@pytest.mark.parametrize("quirks", [(), TOGETHER], ids=["none", "together"])
async def test_at_full_size(broker: Broker, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    await emit({"devices": 20, "sessions": 60, "points": 20_000}, quirks, broker, tmp_path, within=180)
