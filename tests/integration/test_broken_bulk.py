"""A bulk edit that left many broken rows in one second holds up neither newer data sessions nor the rest of it."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bace_bridge.errors import CloudError
from tests.integration.polling_line import Clock, simulated, watching


@pytest.mark.parametrize("count", [3, 20, 30])
async def test_many_broken_rows_in_one_second_hold_up_nothing(tmp_path: Path, count: int) -> None:
    clock = Clock()
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(10)
        bulk = sorted(cloud.open_session(device.id_group) for _ in range(400))
        cloud.quirks = replace(cloud.quirks, broken_rows=tuple(bulk[7 :: len(bulk) // count][:count]))
        clock.forward(60)
        newer = cloud.open_session(device.id_group)
        started: set[str | None] = set()
        for number in range(25):
            with suppress(CloudError) if number == 0 else nullcontext():
                await watch.list_poll.poll()
            logged = await watch.all_events()
            started = {one.event.session_id for one in logged if one.event.type == "session.started"}
            assert newer in started, "at the first poll"
            clock.forward(20)
        assert started == {newer, *bulk} - set(cloud.quirks.broken_rows)
        assert watch.list_poll.unreadable
        cloud.quirks = replace(cloud.quirks, broken_rows=())
        for _ in range(50):
            clock.forward(60)
            await watch.list_poll.poll()
        logged = await watch.all_events()
        assert {one.event.session_id for one in logged if one.event.type == "session.started"} == {newer, *bulk}
        assert watch.list_poll.unreadable == []


async def test_what_a_poll_found_before_it_was_given_up_is_kept_over_a_restart(tmp_path: Path) -> None:
    """More broken rows, in seconds of their own, than one poll reads around; the bridge restarts after each."""
    clock = Clock()
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
    rows = []
    for _ in range(24):
        clock.forward(60)
        rows.append(cloud.open_session(device.id_group))
    cloud.quirks = replace(cloud.quirks, broken_rows=tuple(rows[::2]))
    for _ in range(6):
        clock.forward(20)
        async with watching(cloud, tmp_path / "b.db", clock) as watch:
            await watch.list_poll.poll()
            logged = await watch.all_events()
    assert {one.event.session_id for one in logged} == set(rows[1::2])
