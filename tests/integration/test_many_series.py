"""A data session of more series than BACE serves at once: many datatypes in a request, where the cloud honours it."""

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.events.types import LoggedEvent
from bace_bridge.polling.rules.changes import Page, Urgency
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import RequestSeen
from tests.integration.polling_line import Clock, Watching, points, simulated, types, watching

DATATYPES = tuple(range(6000, 6130))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def over_session(cloud: SimulatedCloud, clock: Clock) -> None:
    """It is over and ingested, with five samples of each datatype, in one hour of the two that it touches."""
    device = cloud.add_device(f"BaceGo-{len(cloud.devices)}", datatypes=DATATYPES)
    session = cloud.open_session(device.id_group, start=clock.now - 1800)
    for series in device.series:
        samples = [(clock.now - 1700.5 + 60 * one, float(one)) for one in range(5)]
        cloud.add_points(session, series.id_container_data_latest, samples)
    cloud.end_session(session)
    cloud.finish_ingestion(session)


def all_came_once(reported: Sequence[LoggedEvent]) -> None:
    assert types(reported)[-1] == "session.csv_ready"
    found = {(one["datatype"], one["timestamp"]) for one in points(reported)}
    assert len(found) == len(points(reported)) == 5 * len(DATATYPES)
    assert {datatype for datatype, _ in found} == set(DATATYPES)


@pytest.mark.parametrize(
    ("quirks", "most"),
    [
        ((), 20),
        (("series-truncated",), 20),
        (("header-limit 4096",), 30),
        (("header-limit 3000",), 45),
        (("no-in-filter",), 290),
        (("in-filter-ignored",), 290),
        (("in-filter-ignored", "series-truncated"), 290),
        (("per-page-max 50",), 70),
    ],
    ids=lambda given: "+".join(given) or "plain" if isinstance(given, tuple) else None,
)
async def test_every_point_comes_once_in_few_requests(
    clock: Clock, tmp_path: Path, quirks: tuple[str, ...], most: int
) -> None:
    cloud = simulated(clock, *quirks)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        over_session(cloud, clock)
        clock.forward(10)
        before = watch.api_requests()
        all_came_once(await watch.poll())
        assert watch.api_requests() - before <= most


class CloudThatTakesOneOfAList:
    """As PHP does with a repeated parameter, of which it keeps the last."""

    def __init__(self, watch: Watching) -> None:
        self._api = watch.api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    async def point_page(self, params: Sequence[tuple[str, str]], page: int, *, urgency: Urgency) -> Page[Datapoint]:
        taken = {name.replace("[in][]", ""): value for name, value in params}
        return await self._api.point_page(tuple(taken.items()), page, urgency=urgency)


async def test_a_list_that_is_taken_for_one_of_it_loses_nothing(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        over_session(cloud, clock)
        clock.forward(10)
        await watch.list_poll.poll()
        (known,) = await watch.journal.due_fetches(clock.now, 9)
        await watch.fetch(known, CloudThatTakesOneOfAList(watch)).make()
        all_came_once(await watch.all_events())


def lists(requests: Sequence[RequestSeen]) -> list[int]:
    """How many datatypes each request asked for that asked for several."""
    asked = [sum(name == "filter[datatype][in][]" for name, _ in one.query) for one in requests]
    return [many for many in asked if many]


async def test_how_long_a_list_may_be_is_learned_and_tried_again_in_an_hour(clock: Clock, tmp_path: Path) -> None:
    cloud = simulated(clock, "header-limit 4096")
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()

        async def read_some() -> list[RequestSeen]:
            before = len(watch.server.requests)
            for _ in range(8):
                over_session(cloud, clock)
                clock.forward(10)
                all_came_once(await watch.poll())
            return watch.server.requests[before:]

        def refused(requests: Sequence[RequestSeen]) -> int:
            return sum(one.status == HTTPStatus.BAD_GATEWAY for one in requests)

        learning, learned = await read_some(), await read_some()
        assert refused(learning) > 0 == refused(learned)
        most = max(lists(learned))
        assert min(lists(learned)[:2]) == most, "it has found the most that passes"
        cloud.quirks = simulated(clock).quirks
        assert max(lists(await read_some())) == most
        clock.forward(3600)
        assert refused(again := await read_some()) == 0
        assert max(lists(again)) > most


async def test_a_list_that_is_honoured_no_more_is_noticed_and_one_that_is_again_an_hour_later(
    clock: Clock, tmp_path: Path
) -> None:
    cloud = simulated(clock, "series-truncated")
    asked = []
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        for quirks, pause in [((), 10), (("in-filter-ignored",), 10), ((), 10), ((), 3600)]:
            cloud.quirks = simulated(clock, "series-truncated", *quirks).quirks
            clock.forward(pause)
            over_session(cloud, clock)
            clock.forward(10)
            before = len(watch.server.requests)
            all_came_once(await watch.poll())
            asked.append(len(lists(watch.server.requests[before:])))
    assert asked == [1 + 4, 1, 0, 1 + 4]
