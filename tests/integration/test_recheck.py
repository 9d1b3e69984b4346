"""The re-check reaches every known session, whatever the server does to its filter and its pages."""

from pathlib import Path

import pytest

from bace_bridge.polling.rules.session_list import one_of
from tests.integration.polling_line import Clock, simulated, types, watching


@pytest.mark.parametrize("quirk", ["per-page-max 20", "per-page-max 7", "no id filter", ""])
async def test_every_removed_session_is_found(tmp_path: Path, quirk: str) -> None:
    clock = Clock()
    cloud = simulated(clock, *([quirk] if "per" in quirk else []))
    device = cloud.add_device("BaceGo-1")
    sessions = sorted(cloud.open_session(device.id_group) for _ in range(70))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        clock.forward(1000)
        other = cloud.open_session(device.id_group)
        await watch.poll()
        for one in sessions[1::2]:
            cloud.remove_session(one)
        reported: list[str] = []
        for _ in range(24):
            clock.forward(61)
            if quirk == "no id filter":
                row = await watch.api.session(other)
                body = b'{"items":[{"id_data_session":"%s","id_group":"%s","start":1}]}' % (
                    other.encode(),
                    row.session.group_id.encode(),
                )
                watch.server.faults.answer(
                    "/api/v2/data-session", status=200, body=body.decode(), holding="[id_data_session][in]"
                )
            before = watch.api_requests()
            reported += types(await watch.poll())
            assert watch.api_requests() - before <= 120
            watch.server.faults.waiting.clear()
    assert one_of("id_data_session", ["x"])[0][0] == "filter[id_data_session][in][]", "what the fault is put into"
    assert reported.count("session.removed") == 35


async def test_a_poll_without_the_filter_costs_no_more_for_sessions_that_never_become_ingested(tmp_path: Path) -> None:
    clock = Clock()
    cloud = simulated(clock, "filters-ignored")
    device = cloud.add_device("BaceGo-1")
    sessions = [cloud.open_session(device.id_group, start=clock.now - 90_000 + one) for one in range(180)]
    async with watching(cloud, tmp_path / "b.db", clock, start="all") as watch:
        for _ in range(3):
            await watch.list_poll.poll()
            clock.forward(10)
        for one in sessions[:70]:
            cloud.end_session(one)
        for number in range(12):
            clock.forward(10)
            before = watch.api_requests()
            await watch.list_poll.poll()
            assert watch.api_requests() - before <= 25, number
        known = await watch.journal.known(sessions[:70])
    assert sum(one.session.end is not None for one in known.values()) == 70


@pytest.mark.parametrize("count", [39, 40, 80])
async def test_every_unfinished_session_is_asked_for_again_and_again(tmp_path: Path, count: int) -> None:
    """Also where the last round ended with the last one: no round is empty while there is one."""
    clock = Clock()
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    sessions = {cloud.open_session(device.id_group) for _ in range(count)}
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        for _ in range(3):
            watch.server.requests.clear()
            for _ in range(-(-count // 40)):
                clock.forward(61)
                await watch.list_poll.poll()
            asked = {value for seen in watch.server.requests for name, value in seen.query if "id_data_session" in name}
            assert asked == sessions
