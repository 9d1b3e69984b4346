"""A data session is removed when the cloud itself says that it cannot be seen, and by no other failure."""

from contextlib import suppress
from pathlib import Path

import pytest

from bace_bridge.errors import CloudError
from tests.integration.polling_line import Clock, simulated, types, watching

VIEW = "/api/v2/data-session/view"
FAILURES = [
    (401, "{}"),
    (403, "<html>"),
    (404, "<html>"),
    (408, "{}"),
    (500, "{}"),
    (502, "<html>"),
    (503, ""),
    (200, "<html>a hotel</html>"),
    (200, '{"id_data_session'),
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(("status", "body"), FAILURES)
async def test_a_failure_to_see_a_session_does_not_remove_it(
    clock: Clock, tmp_path: Path, status: int, body: str
) -> None:
    """Without its filters the cloud shows the newest sessions only, so an unfinished one is asked for alone."""
    cloud = simulated(clock, "updated-filter-ignored", "no-in-filter", "per-page-max 2")
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        session = cloud.open_session(device.id_group)
        for _ in range(3):
            clock.forward(300)
            other = cloud.open_session(device.id_group)
            cloud.end_session(other)
            cloud.finish_ingestion(other)
            await watch.poll()
        watch.server.faults.answer(VIEW, status=status, body=body, times=10**9)
        for _ in range(5):
            clock.forward(61)
            with suppress(CloudError):
                await watch.poll()
        assert any(seen.path == VIEW and seen.status == status for seen in watch.server.requests)
        watch.server.faults.waiting.clear()
        cloud.end_session(session)
        for _ in range(12):
            clock.forward(61)
            await watch.poll()
        found = [one for one in await watch.all_events() if one.event.session_id == session]
    assert types(found) == ["session.started", "session.ended"]


@pytest.mark.parametrize(("status", "body"), FAILURES)
async def test_a_removed_session_is_published_as_removed_when_the_cloud_can_say_so(
    clock: Clock, tmp_path: Path, status: int, body: str
) -> None:
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        await watch.poll()
        cloud.remove_session(session)
        watch.server.faults.answer(VIEW, status=status, body=body, times=10**9)
        for _ in range(5):
            clock.forward(61)
            with suppress(CloudError):
                await watch.poll()
        assert types(await watch.all_events()) == ["session.started"]
        watch.server.faults.waiting.clear()
        for _ in range(12):
            clock.forward(61)
            await watch.poll()
        assert types(await watch.all_events()) == ["session.started", "session.removed"]
