"""An account whose server honours next to nothing, with broken rows: every session and point once, and no history."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from bace_bridge.events.types import LoggedEvent
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from tests.integration.polling_line import Clock, Watching, points, simulated, types, watching

HISTORY = 301
WORST = ("no-in-filter", "gte-unsupported", "sort-ignored", "object-items", "decimals-as-strings", "no-interval-raw")
BROKEN = {
    "head": (HISTORY,),
    "middle": (150,),
    "two adjacent": (150, 151),
    "everywhere": (1, 150, 151, HISTORY - 1, HISTORY),
}
PATIENCE = 900.0
"""Seconds for everything to be found: a full scan of this list and a late fetch of datapoints take some minutes."""


@dataclass
class Story:
    """Sessions that open, measure, end and are ingested, one device after the other, while polls go on."""

    cloud: SimulatedCloud
    watch: Watching
    clock: Clock
    expected: dict[str, dict[tuple[str, float], float]]
    found: list[LoggedEvent]

    async def wait(self, seconds: float) -> None:
        self.found += await self.watch.poll_for(seconds, every=10.0)

    async def play(self, device: Device) -> None:
        session = self.cloud.open_session(device.id_group)
        points_of = self.expected[session] = {}
        for batch in range(3):
            for series in device.series:
                stamps = [self.clock.now + 0.25 * one for one in range(40)]
                samples = [(stamp, 60.5 + batch + one / 8) for one, stamp in enumerate(stamps)]
                self.cloud.add_points(session, series.id_container_data_latest, samples)
                points_of.update({(series.id_container_data_latest, stamp): value for stamp, value in samples})
            await self.wait(30)
        self.cloud.end_session(session)
        await self.wait(20)
        self.cloud.finish_ingestion(session)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_every_session_and_point_comes_once_and_no_history(tmp_path: Path, broken: tuple[int, ...]) -> None:
    clock = Clock()
    cloud = simulated(clock, *WORST, *(f"broken-row {number}" for number in broken))
    devices = [cloud.add_device(f"BaceGo-{one}", datatypes=(6000, 6002)) for one in range(3)]
    cloud.add_history(HISTORY, first_start=clock.now - 400_000, spacing=1000, duration=600)
    active = cloud.open_session(devices[0].id_group, start=clock.now - 390_500, created_at=clock.now - 390_500)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        story = Story(cloud, watch, clock, {}, [])
        await story.wait(60)
        for device in devices * 2:
            await story.play(device)
        await story.wait(PATIENCE)
    by_session = {one.event.session_id for one in story.found if one.event.session_id}
    assert by_session == {active, *story.expected}, "no history, and everything else"
    for session, expected in story.expected.items():
        kept = [one for one in story.found if one.event.session_id == session]
        kinds = Counter(types(kept))
        assert (kinds["session.started"], kinds["session.ended"], kinds["session.csv_ready"]) == (1, 1, 1)
        assert types(kept)[-1] == "session.csv_ready"
        assert sorted((point["series_id"], point["avg"], point["revision"]) for point in points(kept)) == sorted(
            (series, value, 0) for (series, _), value in expected.items()
        )
