"""`cloud.groups` takes ids and labels, says what matches nothing, and misses no session for want of a label."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bace_bridge.errors import CloudUnavailable
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.store.journal import Journal
from tests.integration.polling_line import Clock, Watching, data, simulated, types, watching

LABEL = "BaceGo-001-002-00020"
GROUPS = "/api/v2/group"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def with_devices(clock: Clock, *quirks: str, others: int = 0) -> tuple[SimulatedCloud, str]:
    cloud = simulated(clock, *quirks)
    for number in range(others):
        cloud.add_device(f"BaceGo-009-009-{number:05}")
    return cloud, cloud.add_device(LABEL).id_group


@asynccontextmanager
async def watched(
    cloud: SimulatedCloud, tmp_path: Path, clock: Clock, groups: Sequence[str]
) -> AsyncIterator[tuple[Watching, list[Any]]]:
    with capture_logs() as logs:
        async with watching(cloud, tmp_path / "b.db", clock, groups=groups) as line:
            yield line, logs


def named(logs: Sequence[Any], event: str) -> list[dict[str, Any]]:
    return [one for one in logs if one["event"] == event]


@pytest.mark.parametrize("quirk", ["no-date", "no-expand", "unknown-fields", "per-page-max 2", "filters-ignored"])
@pytest.mark.parametrize("by", ["label", "id"])
async def test_a_device_is_watched_by_id_and_by_label(tmp_path: Path, clock: Clock, by: str, quirk: str) -> None:
    """Also where sessions do not expand to their group, and the label has to be asked for."""
    cloud, group = with_devices(clock, quirk, others=25)
    async with watched(cloud, tmp_path, clock, [LABEL if by == "label" else group]) as (line, logs):
        await line.poll()
        clock.forward(10)
        ours = cloud.open_session(group)
        for other in list(cloud.devices)[:3]:
            cloud.open_session(other)
        events = await line.poll()
    assert types(events) == ["session.started"]
    assert events[0].event.session_id == ours
    assert not named(logs, "cloud.group_matches_nothing")
    assert line.list_poll.selection_problem is None


async def test_an_entry_that_matches_nothing_is_named_once_until_there_is_such_a_device(
    tmp_path: Path, clock: Clock
) -> None:
    cloud, group = with_devices(clock, "per-page-max 10", others=25)
    async with watched(cloud, tmp_path, clock, ["BaceGo-001-002-00021", group]) as (line, logs):
        for _ in range(5):
            await line.poll()
            clock.forward(601)
        (warning,) = named(logs, "cloud.group_matches_nothing")
        assert (warning["log_level"], warning["group"]) == ("warning", "BaceGo-001-002-00021")
        problem = line.list_poll.selection_problem or ""
        assert "'BaceGo-001-002-00021': no device that the account sees" in problem
        cloud.add_device("BaceGo-001-002-00021")
        clock.forward(601)
        await line.poll()
        assert line.list_poll.selection_problem is None
        assert len(named(logs, "cloud.group_matches_now")) == 1


async def test_it_is_asked_at_the_start_and_rarely_after(tmp_path: Path, clock: Clock) -> None:
    cloud, _ = with_devices(clock)
    async with watched(cloud, tmp_path, clock, [LABEL]) as (line, _):
        for _ in range(60):
            await line.poll()
            clock.forward(59)
        assert sum(one.path == GROUPS for one in line.server.requests) == 1
        clock.forward(61)
        await line.poll()
        assert sum(one.path == GROUPS for one in line.server.requests) == 2


async def test_without_a_selection_nothing_is_asked(tmp_path: Path, clock: Clock) -> None:
    cloud, _ = with_devices(clock)
    async with watched(cloud, tmp_path, clock, []) as (line, _):
        await line.poll()
        assert not any(one.path == GROUPS for one in line.server.requests)


async def test_a_renamed_device_matches_its_old_label_no_more(tmp_path: Path, clock: Clock) -> None:
    cloud, group = with_devices(clock)
    async with watched(cloud, tmp_path, clock, [LABEL]) as (line, _):
        await line.poll()
        session = cloud.open_session(group)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        assert types(await line.poll())[0] == "session.started"
    cloud.rename_device(group, "Ward 3")
    clock.forward(7200)
    for number in range(3):
        cloud.open_session(cloud.add_device(f"Another {number}").id_group)
    async with watched(cloud, tmp_path, clock, [LABEL]) as (line, _):
        assert await line.poll() == []
        assert "no device that the account sees" in (line.list_poll.selection_problem or "")


async def test_where_labels_may_not_be_read_the_reason_says_so(tmp_path: Path, clock: Clock) -> None:
    cloud, group = with_devices(clock, "forbidden /api/v2/group", "no-expand")
    async with watched(cloud, tmp_path, clock, [LABEL]) as (line, logs):
        cloud.open_session(group)
        assert await line.poll() == []
        problem = line.list_poll.selection_problem or ""
    assert "labels cannot be read" in problem
    assert "this account may not use this endpoint" in problem
    assert "id_group" in problem
    assert len(named(logs, "cloud.group_matches_nothing")) == 1


@pytest.mark.parametrize("by", ["label", "id"])
async def test_where_devices_may_not_be_listed_the_sessions_show_whether_an_entry_matches(
    tmp_path: Path, clock: Clock, by: str
) -> None:
    cloud, group = with_devices(clock, "forbidden /api/v2/group")
    entry = LABEL if by == "label" else group
    async with watched(cloud, tmp_path, clock, [entry]) as (line, _):
        await line.poll()
        assert "no device seen so far" in (line.list_poll.selection_problem or "")
        cloud.open_session(group)
        clock.forward(601)
        assert types(await line.poll()) == ["session.started"]
        assert line.list_poll.selection_problem is None
    clock.forward(7200)
    async with watched(cloud, tmp_path, clock, [entry]) as (line, logs):
        await line.poll()
        assert line.list_poll.selection_problem is None, "the store knows it"
        assert not named(logs, "cloud.group_matches_nothing")


async def test_a_session_is_not_passed_over_because_its_label_cannot_be_had_for_a_moment(
    tmp_path: Path, clock: Clock
) -> None:
    """The watermark would pass its row, and it would be missed until the backfill comes by."""
    cloud = simulated(clock, "no-expand")
    async with watched(cloud, tmp_path, clock, [LABEL]) as (line, _):
        await line.poll()
        cloud.open_session(cloud.add_device(LABEL).id_group)
        line.server.faults.answer(GROUPS, status=503, body="", times=1)
        clock.forward(10)
        with pytest.raises(CloudUnavailable):
            await line.poll()
        clock.forward(1)
        assert types(await line.poll()) == ["session.started"]


@pytest.mark.parametrize("groups", ["all", "id"])
async def test_where_no_label_decides_a_session_does_not_wait_for_one(
    tmp_path: Path, clock: Clock, groups: str
) -> None:
    cloud, group = with_devices(clock, "no-expand")
    async with watched(cloud, tmp_path, clock, [group] if groups == "id" else []) as (line, _):
        await line.poll()
        cloud.open_session(group)
        line.server.faults.answer(GROUPS, status=503, body="", times=5)
        clock.forward(10)
        assert types(await line.poll()) == ["session.started"]
        label = LABEL if groups == "id" else None  # that of a named device was asked for at the start
        assert await Journal(line.file).device_labels() == {group: label}


async def test_a_device_list_that_cannot_be_read_is_no_outage(tmp_path: Path, clock: Clock) -> None:
    cloud, group = with_devices(clock)
    async with watched(cloud, tmp_path, clock, ["nothing-like-it", group]) as (line, logs):
        line.server.faults.answer(GROUPS, status=500, body="", times=1)
        await line.poll()
        assert line.list_poll.selection_problem is None, "nobody knows yet"
        clock.forward(601)
        await line.poll()
    assert [one["group"] for one in named(logs, "cloud.group_matches_nothing")] == ["nothing-like-it"]


def lists(watch: Watching) -> list[list[tuple[str, str]]]:
    """The queries of the session list, as they were made."""
    return [list(seen.query) for seen in watch.server.requests if seen.path == "/api/v2/data-session"]


@pytest.mark.parametrize("quirks", [(), ("filters-ignored",)], ids=["delta", "full scan"])
async def test_only_the_watched_devices_are_asked_for_where_that_is_honoured(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    ours, foreign = (cloud.add_device(f"BaceGo-{one}") for one in range(2))
    cloud.add_history(5, first_start=clock.now - 90_000, spacing=500, duration=300)
    async with watching(cloud, tmp_path / "b.db", clock, groups=[ours.id_group]) as watch:
        await watch.poll()
        watch.server.requests.clear()
        sessions = [cloud.open_session(one.id_group) for one in (ours, foreign)]
        clock.forward(10)
        found = [one.event.session_id for one in await watch.poll() if one.event.type == "session.started"]
        filtered = [("filter[id_group][in][]", ours.id_group) in one for one in lists(watch)]
    assert found == sessions[:1]
    assert filtered[0] is (not quirks)


async def test_a_device_without_sessions_is_asked_for_with_all_others(clock: Clock, tmp_path: Path) -> None:
    """No rows are no proof that a filter is honoured."""
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    async with watching(cloud, tmp_path / "b.db", clock, groups=[device.id_group]) as watch:
        await watch.poll()
        watch.server.requests.clear()
        session = cloud.open_session(device.id_group)
        clock.forward(10)
        assert [one.event.session_id for one in await watch.poll()][:1] == [session]
        assert not any("id_group" in name for one in lists(watch) for name, _ in one)


async def test_labels_come_along_when_one_is_missing_or_an_hour_old(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    cloud.open_session(cloud.add_device("BaceGo-1").id_group)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:

        async def expanded() -> bool:
            watch.server.requests.clear()
            clock.forward(10)
            await watch.poll()
            return any(("expand", "group") in one for one in lists(watch))

        assert [await expanded() for _ in range(3)] == [True, False, False]
        clock.forward(3600)
        assert [await expanded() for _ in range(2)] == [True, False]


@pytest.mark.parametrize("quirks", [(), ("forbidden /api/v2/group",)], ids=["groups", "no groups"])
async def test_the_label_of_a_new_device_is_there_with_its_first_event(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...]
) -> None:
    cloud = simulated(clock, *quirks)
    cloud.open_session(cloud.add_device("BaceGo-1").id_group)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        for _ in range(3):
            await watch.poll()
            clock.forward(10)
        for number in range(2, 4):
            cloud.open_session(cloud.add_device(f"BaceGo-{number}").id_group)
            clock.forward(10)
            labels = [data(one)["device"]["label"] for one in await watch.poll() if one.event.type == "session.started"]
            assert labels == [f"BaceGo-{number}"]
