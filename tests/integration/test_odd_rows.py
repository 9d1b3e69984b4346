"""A row of which the cloud says something odd: it is found as far as it can be, and never passed over in silence."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bace_bridge.simulator.cloud import SimulatedCloud
from tests.integration.altered_cloud import altered
from tests.integration.polling_line import Clock, Watching, simulated, types


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def odd(
    cloud: SimulatedCloud, store: Path, clock: Clock
) -> AsyncIterator[tuple[dict[str, dict[str, Any]], Watching]]:
    """Writes something else into the fields of some sessions."""
    fields: dict[str, dict[str, Any]] = {}

    def alter(_: web.Request, answer: Any) -> Any:
        for row in [answer, *answer.get("items", [])]:
            row.update(fields.get(row.get("id_data_session", ""), {}))
        return answer

    async with altered(cloud, store, clock) as (between, watch):
        between.alter = alter
        yield fields, watch


async def polled(watch: Watching, clock: Clock, times: int, *, going_on: str | None = None) -> list[str]:
    """The types of what is found; `going_on` is a session that moves the watermark on."""
    found: list[str] = []
    for number in range(times):
        clock.forward(10)
        if going_on:
            watch.server.cloud.change(going_on, label=f"take {number}")
        found += [one for one in types(await watch.poll()) if one != "session.updated"]
    return found


@pytest.mark.parametrize("quirks", [(), ("filters-ignored",)], ids=["delta", "documented"])
async def test_an_odd_field_costs_nothing_but_itself(clock: Clock, tmp_path: Path, quirks: tuple[str, ...]) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    other = cloud.open_session(device.id_group)
    with capture_logs() as logs:
        async with odd(cloud, tmp_path / "b.db", clock) as (fields, watch):
            await watch.poll()
            clock.forward(10)
            session = cloud.open_session(device.id_group)
            fields[session] = {"datapoint_count": 12.5}
            assert await polled(watch, clock, 20, going_on=other) == ["session.started"]
            assert watch.list_poll.unreadable == []
            assert watch.list_poll.strategy == ("full scan" if quirks else "delta")
    assert [one["what"] for one in logs if one["event"] == "cloud.field_not_understood"] == ["datapoint_count"]


LABELS = [("half \ud800", "half \ufffd"), (7, "7"), (True, None), (["x"], None), ({"en": "x"}, None)]


@pytest.mark.parametrize(("quirks", "keyed"), [((), False), (("filters-ignored",), True)], ids=["delta", "keyed items"])
@pytest.mark.parametrize(("label", "shown"), LABELS, ids=["text", "number", "bool", "list", "object"])
async def test_an_odd_label_costs_no_session(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], label: Any, shown: str | None, keyed: bool
) -> None:
    """Neither that of the data session nor that of its group; nor does a row without `updated_at`."""
    cloud = simulated(clock, *quirks)
    device, other = cloud.add_device("BaceGo-1"), cloud.add_device("BaceGo-2")
    fields: dict[str, dict[str, Any]] = {}

    def alter(_: web.Request, answer: Any) -> Any:
        for row in [answer, *answer.get("items", [])]:
            row.update(fields.get(row.get("id_data_session", ""), {}))
        if keyed and "items" in answer:
            answer["items"] = {str(3 * number + 5): row for number, row in enumerate(answer["items"])}
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        between.alter = alter
        await watch.poll()
        clock.forward(10)
        session, unstamped = cloud.open_session(device.id_group), cloud.open_session(other.id_group)
        fields[session] = {"label": label, "group": {"label": label}, "id_person": label}
        fields[unstamped] = {"updated_at": None, "isIngestionFinished": "0", "start": str(int(clock.now))}
        assert await polled(watch, clock, 3) == ["session.started", "session.started"]
        assert watch.list_poll.unreadable == []
        known = await watch.journal.known([session])
        assert known[session].session.label == shown
        assert known[session].device_label == (shown or "BaceGo-1"), "else the group itself is asked"
        cloud.end_session(session)
        cloud.end_session(unstamped)
        assert (await polled(watch, clock, 12)).count("session.ended") == 2


@pytest.mark.parametrize("quirks", [(), ("filters-ignored",)], ids=["delta", "documented"])
@pytest.mark.parametrize("field", ["start", "end", "updated_at"])
async def test_a_row_that_cannot_be_read_is_shown_and_reported_when_it_can_be(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], field: str
) -> None:
    cloud = simulated(clock, *quirks)
    device = cloud.add_device("BaceGo-1")
    cloud.add_history(3, first_start=clock.now - 40_000, spacing=1000, duration=600)
    other = cloud.open_session(device.id_group)
    with capture_logs() as logs:
        async with odd(cloud, tmp_path / "b.db", clock) as (fields, watch):
            await watch.poll()
            clock.forward(10)
            session = cloud.open_session(device.id_group)
            fields[session] = {field: "soon"}
            assert await polled(watch, clock, 40, going_on=other) == []
            assert len(watch.list_poll.unreadable) == 1
            assert watch.list_poll.strategy == ("full scan" if quirks else "delta")
            before = watch.api_requests()
            await polled(watch, clock, 20, going_on=other)
            assert watch.api_requests() - before <= 20 * 5
            fields.clear()
            assert await polled(watch, clock, 40, going_on=other) == ["session.started"]
            assert watch.list_poll.unreadable == []
    assert len([one for one in logs if one["event"] == "cloud.record_unreadable"]) <= (2 if quirks else 1)
