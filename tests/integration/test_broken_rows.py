"""One row on which the cloud breaks for ever: everything else is read, at the cost of few requests, and it is said."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.errors import CloudFault
from bace_bridge.events.types import LoggedEvent
from bace_bridge.simulator.cloud import SimulatedCloud
from tests.integration.polling_line import Clock, Watching, simulated, types, watching

STRATEGIES = [(), ("filters-ignored",), ("updated-filter-ignored",), ("per-page-max 7",), ("no-page-clamp",)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def break_rows(cloud: SimulatedCloud, *ids: str) -> None:
    cloud.quirks = replace(cloud.quirks, broken_rows=ids)


def started(events: Sequence[LoggedEvent]) -> set[str | None]:
    return {one.event.session_id for one in events if one.event.type == "session.started"}


async def cost(watch: Watching, polls: int) -> float:
    """Requests a poll while nothing happens."""
    before = watch.api_requests()
    for _ in range(polls):
        watch.clock.forward(10)
        await watch.list_poll.poll()
    return (watch.api_requests() - before) / polls


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
@pytest.mark.parametrize("start", ["now", "all"])
async def test_all_but_the_broken_row_is_reported(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], start: str
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    history = cloud.add_history(150, first_start=clock.now - 300_000, spacing=1000, duration=600)
    break_rows(cloud, history[60])
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock, start=start) as watch:  # type: ignore[arg-type]  # a table
            events = await watch.poll()
            for _ in range(30):
                clock.forward(10)
                events += await watch.poll()
            assert len(started(events)) == (149 if start == "all" else 0)
            clock.forward(10)
            session = cloud.open_session(device.id_group)
            events = await watch.poll()
            clock.forward(10)
            cloud.end_session(session)
            cloud.finish_ingestion(session)
            events += await watch.poll()
            assert types(events) == ["session.started", "session.ended", "session.csv_ready"]
            assert await cost(watch, 25) <= 12
    said = [one for one in logs if one["event"] == "cloud.record_unreadable"]
    assert len(said) == len({one["record"] for one in said}) <= 3


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
@pytest.mark.parametrize("place", ["newest", "an older one"])
async def test_a_broken_session_that_goes_on_does_not_hide_the_others(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], place: str
) -> None:
    cloud = simulated(clock, *quirks)
    devices = [cloud.add_device(f"BaceGo-{one}") for one in range(6)]
    cloud.add_history(30, first_start=clock.now - 100_000, spacing=1000, duration=600)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        sessions = [cloud.open_session(one.id_group) for one in devices[:5]]
        broken = sessions[-1] if place == "newest" else sessions[1]
        break_rows(cloud, broken)
        events = await watch.poll()
        assert started(events) == set(sessions) - {broken}
        assert watch.list_poll.unreadable
        clock.forward(200)
        await watch.poll()
        assert await cost(watch, 20) <= 8, "four sessions by id, two rows of the head, and the backfill"
        for one in sessions:
            cloud.end_session(one)
            cloud.finish_ingestion(one)
        late = cloud.open_session(devices[5].id_group)
        events = []
        for _ in range(12):
            clock.forward(10)
            events += await watch.poll()
        assert started(events) == {late}
        assert sum(one.event.type == "session.csv_ready" for one in events) == 4
        break_rows(cloud)
        for _ in range(40):
            clock.forward(60)
            events += await watch.poll()
        of_it = [one for one in events if one.event.session_id == broken]
        assert types(of_it) == ["session.started", "session.ended", "session.csv_ready"]
        assert watch.list_poll.unreadable == []


async def test_what_could_not_be_read_is_found_behind_the_watermark(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        broken = cloud.open_session(device.id_group)
        break_rows(cloud, broken)
        assert types(await watch.poll()) == []
        clock.forward(1000)
        cloud.open_session(device.id_group)
        assert types(await watch.poll()) == ["session.started"]
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        clock.forward(10)
        assert types(await watch.poll()) == []
        break_rows(cloud)
        clock.forward(1000)
        assert started(await watch.poll()) == {broken}
        assert watch.list_poll.unreadable == []


async def test_the_recheck_goes_on_behind_a_broken_session(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    sessions = [cloud.open_session(device.id_group) for _ in range(40)]
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(500)
        cloud.open_session(device.id_group)
        await watch.poll()
        break_rows(cloud, sessions[7])
        for one in sessions[20:25]:
            cloud.remove_session(one)
        events = await watch.poll_for(600)
        assert types(events) == ["session.removed"] * 5
        assert watch.list_poll.unreadable == [f"data session {sessions[7]}"]
        assert await cost(watch, 24) <= 2.5


async def test_a_list_that_breaks_altogether_is_a_cloud_that_is_broken(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        watch.server.faults.answer("/api/v2/data-session", status=500, body="{}", times=1000)
        before = watch.api_requests()
        with pytest.raises(CloudFault):
            await watch.poll()
        assert watch.api_requests() - before <= 4
        assert watch.list_poll.unreadable == []


async def test_a_single_failure_is_asked_about_again_at_once(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        cloud.open_session(device.id_group)
        watch.server.faults.answer("/api/v2/data-session", status=500, body="{}")
        assert types(await watch.poll()) == ["session.started"]
        assert watch.list_poll.unreadable == []


@pytest.mark.parametrize("quirks", STRATEGIES, ids=lambda quirks: "+".join(quirks) or "delta")
async def test_an_active_session_that_is_broken_at_the_first_start_is_reported_when_it_can_be(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    long_ago = int(clock.now - 40 * 86400)
    sessions = [
        cloud.open_session(device.id_group, start=long_ago + one, created_at=long_ago + one) for one in range(3)
    ]
    cloud.add_history(120, first_start=clock.now - 300_000, spacing=1000, duration=600)
    break_rows(cloud, sessions[1])
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        events = []
        for _ in range(6):
            events += await watch.poll()
            clock.forward(10)
        assert started(events) == {sessions[0], sessions[2]}
        assert watch.list_poll.unreadable
        break_rows(cloud)
        for _ in range(40):
            events += await watch.poll()
            clock.forward(10)
        assert started(events) == set(sessions)
        assert watch.list_poll.unreadable == []
