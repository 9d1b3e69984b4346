"""The summary of a data session against one that is computed here, from what the simulated cloud holds."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bace_bridge.events.types import LoggedEvent
from bace_bridge.polling.rules.batches import LEAST_IDS
from bace_bridge.polling.rules.datapoints import Series
from bace_bridge.polling.rules.sessions import END_PATIENCE
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.samples import Resolution
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.housekeeping import BEFORE_ALL, BY_ID, forget_windows
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile, pack, unpack
from tests.integration.altered_cloud import altered
from tests.integration.polling_line import NOON, Clock, Watching, data, simulated, types, watching
from tests.integration.test_polling_model import CLOUD_STEPS, SESSION, WATCHER_STEPS, WORLDS, History, Step, World
from tests.models import examples

VIEW = "/api/v2/data-session/view"

Served = dict[tuple[str, str], tuple[Any, ...]]
"""By series and time: smallest, largest, average, count."""


def recomputed(cloud: SimulatedCloud, served: Served) -> dict[str, Any]:
    """The summary that the contract describes, exactly and in the plainest way; but for names and units."""
    by_series: dict[tuple[str, int], dict[datetime, tuple[Any, ...]]] = defaultdict(dict)
    for (one, at), values in served.items():
        series = cloud.series[one]
        by_series[series.source_device, series.datatype][datetime.fromisoformat(at)] = values
    times = sorted({datetime.fromisoformat(at) for _, at in served})
    shown = []
    for (source_device, datatype), found in sorted(by_series.items()):
        first, last, every = min(found), max(found), [*found.values()]
        average = sum(Fraction(one[2]) * one[3] for one in every) / sum(one[3] for one in every)
        shown.append(
            {
                "source_device": source_device,
                "datatype": datatype,
                "min": min(one[0] for one in every),
                "max": max(one[1] for one in every),
                "avg": pytest.approx(float(average), rel=1e-12),
                "count": sum(one[3] for one in every),
                "first": found[first][2],
                "last": found[last][2],
                "first_at": first,
                "last_at": last,
            }
        )
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    return {
        "datapoints": len(served),
        "first_at": times[0] if times else None,
        "last_at": times[-1] if times else None,
        "longest_gap_seconds": pytest.approx(max(gaps), abs=2e-6) if gaps else None,
        "series": shown,
    }


def shown(summary: dict[str, Any]) -> dict[str, Any]:
    """With times in place of texts, and without names and units, which are the same for all of a datatype."""
    names = {6000: ("Heart rate", "bpm")}
    for one in (found := msgspec.json.decode(msgspec.json.encode(summary)))["series"]:
        assert (one.pop("name"), one.pop("unit")) == names.get(one["datatype"], (None, None))
    for one in (found, *found["series"]):
        for key in ("first_at", "last_at"):
            one[key] = None if one[key] is None else datetime.fromisoformat(one[key])
    return dict(found)


def raw(cloud: SimulatedCloud, session: str) -> Served:
    """Each sample, of a cloud that serves every window as it was measured."""
    tracks = cloud.samples.of(session).items()
    iso = datetime.fromtimestamp
    return {
        (series, f"{iso(at).astimezone().isoformat()}"): (value, value, value, 1)
        for series, track in tracks
        for at, value in zip(track.times, track.values, strict=True)
    }


def last_of(events: list[LoggedEvent], event_type: str) -> dict[str, Any]:
    return data([one for one in events if one.event.type == event_type][-1])


async def retained(watch: Watching) -> dict[str, dict[str, Any]]:
    """What is in the retained topics, by data session."""
    states = DeviceStates(watch.file, csv_url=lambda session: session, clock=watch.clock)
    found = [msgspec.json.decode(one.session) for one in await states.devices(None, available=True) if one.session]
    return {one["id"]: one for one in found}


def delete_points(cloud: SimulatedCloud, session: str, after: float = 0.0) -> None:
    """As a cloud that deletes the samples of a session from a time on."""
    gone = 0
    for series, track in list(cloud.samples.of(session).items()):
        times = [at for at in track.times if at >= after]
        gone += len(times)
        cloud.samples.add(session, series, [])  # no answer from before holds any more
        cloud.samples.restore(session, series, dict.fromkeys(times))
    row = cloud.session(session)
    cloud.sessions.put(replace(row, datapoint_count=row.datapoint_count - gone, updated_at=int(cloud.clock())))


class Story(History):
    """A history in which points are deleted, too, and sessions move to the other device."""

    def change(self, what: str, session: str, how: list[Any]) -> None:
        row = self.cloud.sessions.by_id.get(session)
        if what == "delete" and row is not None:
            delete_points(self.cloud, session, self.clock.now - how[0])
        elif what == "move" and row is not None:
            other = next(one.id_group for one in self.devices if one.id_group != row.id_group)
            self.cloud.move_session(session, other)
        else:
            super().change(what, session, how)

    async def check(self) -> int:
        """How many summaries were equal to those that are computed here."""
        logged, checked = await self.watch.all_events(), 0
        in_topics = await retained(self.watch)
        for session in self.sessions:
            told = [one for one in logged if one.event.session_id == session]
            if self.cloud.sessions.by_id.get(session) is None or not told:
                continue
            summary = last_of(told, "session.csv_ready")["summary"]
            assert shown(summary) == recomputed(self.cloud, await self.served(session)), types(told)
            assert in_topics.get(session, {"summary": summary})["summary"] == summary
            checked += 1
        return checked


MORE_STEPS = st.one_of(
    st.tuples(st.just("delete"), SESSION, st.sampled_from([10, 2000, 100_000])),
    st.tuples(st.just("move"), SESSION),
)
STEPS = st.lists(st.one_of(CLOUD_STEPS, CLOUD_STEPS, WATCHER_STEPS, MORE_STEPS), min_size=15, max_size=45)


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example(  # all points of a settled window are deleted
    ways=World((), 0.0, "as_served"),
    steps=[("open", 0), ("points", 0, 5, 4000), ("poll",), ("time", 4000), ("poll",), ("delete", 0, 100_000)],
)
@given(ways=WORLDS.filter(lambda ways: "data-filters-ignored" not in ways.quirks), steps=STEPS)
async def test_the_final_summary_is_what_the_cloud_serves(
    ways: World, steps: list[Step], tmp_path_factory: pytest.TempPathFactory
) -> None:
    story = Story(ways, tmp_path_factory.mktemp("store") / "b.db")
    await story.start()
    try:
        for step in steps:
            await story.step(step)
        await story.come_to_rest()
        await story.check()
    finally:
        await story.stack.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def of_samples(clock: Clock, *, datatypes: tuple[int, ...] = (6000, 6001)) -> tuple[SimulatedCloud, str]:
    """A cloud that shows samples at their own time, with an active session of a device."""
    cloud = simulated(clock)
    cloud.resolution = Resolution(raw=3600)
    device = cloud.add_device("BaceGo-1", datatypes=datatypes)
    return cloud, cloud.open_session(device.id_group)


def measure(cloud: SimulatedCloud, session: str, times: list[float], value: float = 60.0) -> None:
    for number, series in enumerate(cloud.series_of(cloud.session(session))):
        made = [(at + number / 4, value + at % 7 + number) for at in times]
        cloud.add_points(session, series.id_container_data_latest, made)


async def test_an_end_has_the_summary_as_known_and_the_csv_the_final_one(clock: Clock, tmp_path: Path) -> None:
    cloud, session = of_samples(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        for _ in range(3):
            measure(cloud, session, [clock.now + 7 * one for one in range(20)])
            clock.forward(1500)
            await watch.poll()
        assert "summary" not in (await retained(watch))[session]
        cloud.end_session(session)
        known = recomputed(cloud, raw(cloud, session))
        ended = last_of(await watch.poll(), "session.ended")["summary"]
        assert shown(ended) == known
        assert (await retained(watch))[session]["summary"] == ended
        measure(cloud, session, [clock.now - 2000 + 9 * one for one in range(20)], value=20.0)
        cloud.finish_ingestion(session)
        clock.forward(15)
        ready = last_of(await watch.poll(), "session.csv_ready")["summary"]
        assert shown(ready) == recomputed(cloud, raw(cloud, session)) != known
        assert (await retained(watch))[session]["summary"] == ready
        measure(cloud, session, [clock.now - 900.0], value=5.0)
        clock.forward(15)
        again = last_of(await watch.poll(), "session.csv_ready")
        assert again["csv"]["revision"] == 1
        assert shown(again["summary"]) == recomputed(cloud, raw(cloud, session))


async def test_hours_that_were_deleted_count_no_more(clock: Clock, tmp_path: Path) -> None:
    """Of a session of so many hours a probe says where there is anything: nothing is where it was before."""
    cloud, session = of_samples(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        for _ in range(40):
            measure(cloud, session, [clock.now, clock.now + 600])
            clock.forward(3600)
            await watch.poll()
        cloud.end_session(session)
        assert last_of(await watch.poll(), "session.ended")["summary"]["datapoints"] == 160
        delete_points(cloud, session, clock.now - 20 * 3600)
        cloud.finish_ingestion(session)
        clock.forward(15)
        ready = last_of(await watch.poll(), "session.csv_ready")["summary"]
        assert shown(ready) == recomputed(cloud, raw(cloud, session))
        assert ready["datapoints"] == 80


async def test_without_a_point_it_has_none(clock: Clock, tmp_path: Path) -> None:
    cloud, session = of_samples(clock)
    nothing: dict[str, Any] = {
        "datapoints": 0,
        "first_at": None,
        "last_at": None,
        "longest_gap_seconds": None,
        "series": [],
    }
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        told = await watch.poll()
        assert [data(one)["summary"] for one in told] == [nothing, nothing]
        assert (await retained(watch))[session]["summary"] == nothing


async def test_a_reopened_session_has_none_until_it_ends_again(clock: Clock, tmp_path: Path) -> None:
    cloud, session = of_samples(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        await watch.poll()
        measure(cloud, session, [clock.now])
        cloud.end_session(session)
        await watch.poll()
        assert (await retained(watch))[session]["summary"]["datapoints"] == 2
        clock.forward(15)
        cloud.change(session, end=None, is_ingestion_finished=False)
        measure(cloud, session, [clock.now])
        assert "session.reopened" in types(await watch.poll())
        assert "summary" not in (await retained(watch))[session]
        clock.forward(15)
        cloud.end_session(session)
        assert last_of(await watch.poll(), "session.ended")["summary"]["datapoints"] == 4
        assert (await retained(watch))[session]["summary"]["datapoints"] == 4


class CountedJournal(Journal):
    """Lets something else happen between what a summary is made of and the commit of its event."""

    def __init__(self, file: SqliteFile) -> None:
        super().__init__(file)
        self.made = 0
        self.meanwhile: Callable[[], Awaitable[object]] = partial(asyncio.sleep, 0)

    async def series(self, ids: Any) -> dict[str, Series]:
        self.made += 1
        await self.meanwhile()
        return await super().series(ids)


async def test_the_list_is_polled_while_a_summary_is_made(clock: Clock, tmp_path: Path) -> None:
    cloud, session = of_samples(clock)
    journals: list[CountedJournal] = []

    def journal(file: SqliteFile) -> CountedJournal:
        journals.append(CountedJournal(file))
        return journals[-1]

    async with watching(cloud, tmp_path / "b.db", clock, journal=journal) as watch:
        measure(cloud, session, [clock.now])
        await watch.poll()
        assert journals[0].made == 0, "a summary costs nothing before the end"

        async def poll() -> None:
            clock.forward(10)
            async with asyncio.timeout(60):
                await watch.list_poll.poll()

        journals[0].meanwhile = poll
        cloud.end_session(session)
        assert types(await watch.poll()) == ["session.ended"]
        assert journals[0].made == 1
        # It is reopened while the summary of its end is made: then there is no end to report.
        clock.forward(10)
        cloud.change(session, end=None, is_ingestion_finished=False)
        await watch.poll()
        cloud.end_session(session)
        clock.forward(10)
        await watch.list_poll.poll()
        cloud.change(session, end=None, is_ingestion_finished=False)
        before = len(await watch.all_events())
        await watch.fetch_due()
        assert "session.ended" not in types((await watch.all_events())[before:])


@pytest.mark.parametrize("hours", [1, 40])
async def test_a_row_that_cannot_be_read_any_more_is_still_there(clock: Clock, tmp_path: Path, hours: int) -> None:
    """Also where hours are read by the day, of which the probe says no more."""
    cloud, session = of_samples(clock)
    cloud.quirks = Quirks.parse(["long-by-day 1d"])

    def odd(_: Any, answer: Any) -> Any:
        for row in answer.get("items", []):
            if row.get("timestamp_seconds") == NOON + 600:
                row["count_val"] = "many"
        return answer

    async with altered(cloud, tmp_path / "b.db", clock) as (between, watch):
        for _ in range(hours):
            measure(cloud, session, [clock.now, clock.now + 600])
            clock.forward(3600)
            await watch.poll()
        between.alter = odd
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        await watch.list_poll.poll()
        clock.forward(100)  # a little after the change it might be an answer that is behind
        ready = last_of(await watch.poll(), "session.csv_ready")["summary"]
        assert shown(ready) == recomputed(cloud, raw(cloud, session))


async def test_a_series_that_is_not_requested_is_not_gone(clock: Clock, tmp_path: Path) -> None:
    """More than 100 series come in parts, by a list of datatypes that BACE does not document: it lacks some here."""
    cloud, session = of_samples(clock, datatypes=tuple(range(7000, 7120)))
    series = list(cloud.series_of(cloud.session(session)))
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        for part in (series[:60], series[60:]):
            for number, one in enumerate(part):
                cloud.add_points(session, one.id_container_data_latest, [(clock.now + number / 4, 1.0)])
            clock.forward(20)
            if part == series[:60]:
                await watch.poll()
        axes = {"datatypes": [one.datatype for one in series[60:]], "physicalDevices": [series[0].source_device]}
        body = msgspec.json.encode(axes).decode()
        watch.server.faults.answer(VIEW, status=200, body=body, times=10**9, holding="datatypes")
        cloud.end_session(session)
        ended = last_of(await watch.poll(), "session.ended")["summary"]
        assert (ended["datapoints"], len(ended["series"]), ended["series_omitted"]) == (120, 100, 20)


@pytest.mark.parametrize("published", [False, True])
async def test_empty_answers_in_maintenance_say_nothing(clock: Clock, tmp_path: Path, published: bool) -> None:
    cloud, session = of_samples(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        if not published:
            await watch.poll()
        measure(cloud, session, [clock.now + 7 * one for one in range(20)])
        clock.forward(300)
        if published:
            await watch.poll()
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        await watch.list_poll.poll()
        clock.forward(100)
        cloud.quirks = Quirks.parse(["maintenance 100000s/100001s"])
        for _ in range(9):
            await watch.fetch_due()
            clock.forward(20)
        cloud.quirks = Quirks()
        told = await watch.poll()
        assert types(told)[-1] == "session.csv_ready"
        assert shown(last_of(told, "session.csv_ready")["summary"]) == recomputed(cloud, raw(cloud, session))
        assert (await retained(watch))[session]["summary"]["datapoints"] == 40


async def test_the_summary_has_what_was_published_while_it_was_made(clock: Clock, tmp_path: Path) -> None:
    """An end that has waited for too long, while a batch with the session is under way."""
    cloud, session = of_samples(clock)
    sessions = [session, *(cloud.open_session(cloud.add_device(f"Go-{one}").id_group) for one in range(LEAST_IDS))]
    journals: list[CountedJournal] = []

    def journal(file: SqliteFile) -> CountedJournal:
        journals.append(CountedJournal(file))
        return journals[-1]

    async with watching(cloud, tmp_path / "b.db", clock, journal=journal) as watch:
        for one in sessions:
            measure(cloud, one, [clock.now])
        await watch.list_poll.poll()
        for _ in range(2):
            clock.forward(15)
            await watch.fetch_round()
        clock.forward(15)
        live = await watch.journal.due_fetches(clock(), 100, late=False)
        plan = await watch.batches.plan(live, checks=0)
        measure(cloud, session, [clock.now - 1])
        cloud.end_session(session)
        await watch.list_poll.poll()
        clock.forward(END_PATIENCE + 1)

        async def publish() -> None:
            journals[0].meanwhile = partial(asyncio.sleep, 0)
            for batch in plan.batches:
                assert await watch.batches.read_batch(batch) is None

        journals[0].meanwhile = publish
        (known,) = await watch.journal.overdue_ends(clock() - END_PATIENCE)
        await watch.fetch(known).emit_end()
        told = [one for one in await watch.all_events() if one.event.session_id == session]
        assert types(told) == ["session.started", "session.datapoints", "session.datapoints", "session.ended"]
        assert shown(data(told[-1])["summary"]) == recomputed(cloud, raw(cloud, session))


def as_schema_8(path: Path) -> None:
    """Makes a store one of the version before, which knew nothing of summaries."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for window in connection.execute("select rowid, points from slices").fetchall():
            points = msgspec.msgpack.decode(unpack(window[1]))
            older = {series: {at: one[:5] for at, one in each.items()} for series, each in points.items()}
            packed = pack(msgspec.msgpack.encode(older))
            connection.execute("update slices set points = ? where rowid = ?", (packed, window[0]))
        connection.execute("drop trigger summary_of_windows")
        connection.execute("drop table summaries")
        connection.execute("drop table series")
        connection.execute("pragma user_version = 8")


@pytest.mark.parametrize("finished", [False, True])
async def test_a_session_in_progress_at_an_upgrade_gets_its_summary(
    clock: Clock, tmp_path: Path, finished: bool
) -> None:
    cloud, session = of_samples(clock, datatypes=(6000, 6001, 6002))
    store = tmp_path / "b.db"
    early = [one.id_container_data_latest for one in cloud.devices[cloud.session(session).id_group].series][2]
    async with watching(cloud, store, clock) as watch:
        # One series is in a window alone that is settled, and is read no more before the end.
        cloud.add_points(session, early, [(clock.now + 1, 97.0)])
        for _ in range(4):
            made = [(clock.now + 60 * one, 60.0 + one) for one in range(40)]
            for series in cloud.devices[cloud.session(session).id_group].series[:2]:
                cloud.add_points(session, series.id_container_data_latest, made)
            clock.forward(2400)
            await watch.poll()
    as_schema_8(store)
    async with watching(cloud, store, clock) as watch:
        cloud.end_session(session)
        if finished:
            cloud.finish_ingestion(session)
        told = await watch.poll()
        assert types(told) == ["session.ended", "session.csv_ready"][: 1 + finished]
        for one in told:
            assert shown(data(one)["summary"]) == recomputed(cloud, raw(cloud, session))


async def test_summaries_go_with_the_windows_but_for_the_one_that_is_shown(clock: Clock, tmp_path: Path) -> None:
    cloud, first = of_samples(clock)
    async with watching(cloud, tmp_path / "b.db", clock) as watch:
        sessions = [first]
        for _ in range(3):
            await watch.poll()
            measure(cloud, sessions[-1], [clock.now])
            cloud.end_session(sessions[-1])
            cloud.finish_ingestion(sessions[-1])
            await watch.poll()
            clock.forward(15)
            sessions.append(cloud.open_session(cloud.session(first).id_group))
        cloud.remove_session(sessions.pop())

        def forget(connection: sqlite3.Connection) -> list[tuple[str]]:
            forget_windows(connection, order=BY_ID, after=BEFORE_ALL, unchanged_since=NOON * 2)
            return connection.execute("select session_id from summaries").fetchall()

        assert await watch.file.write(forget) == [(sessions[-1],)]
        assert (await retained(watch))[sessions[-1]]["summary"]["datapoints"] == 2
