"""What every store promises: one suite over `Journal`, `EventLog`, `Facts` and `DeviceStates` as a whole.

Another store is another entry in `STORES`: a factory that opens it and gives the four classes over it.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from bace_bridge.delivery.rules.outbox import Outbox, dead_letter_event
from bace_bridge.events.types import (
    BRIDGE_LANE,
    Announced,
    Claim,
    DeadLetter,
    Event,
    FailedAttempt,
    Filter,
    Lane,
    LaneRecord,
    Progress,
    Series,
    Share,
    Token,
    letter_lane,
)
from bace_bridge.polling.rules.changes import Changes, LatestSeen, PollState, WindowRead
from bace_bridge.polling.rules.datapoints import Emitted, EmittedPoint
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import Window, WindowState
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.eventlog import ATTEMPTS_KEPT, DeadLetters, EventLog, Which
from bace_bridge.store.facts import Facts, RetainedLedger, Schedules
from bace_bridge.store.journal import Journal
from bace_bridge.store.lanes import read_lane
from bace_bridge.store.sqlite import SqliteFile
from tests.delivered import backlogs, deliver, lanes_of

NOON = 1_764_590_400.0


@dataclass
class Store:
    path: Path
    file: SqliteFile
    journal: Journal
    log: EventLog
    facts: Facts
    device_states: DeviceStates
    grown: list[int] = field(default_factory=list)

    async def tell(self, *events: Event) -> list[int]:
        """Appends events; returns their places."""
        await self.journal.commit(Changes(events=events))
        places = {one.event.id: one.seq for one in await self.log.search()}
        return [places[one.id] for one in events]

    async def open(self, *sinks: str) -> None:
        for sink in sinks:
            await self.log.open_sink(sink, target="t")

    async def lanes(self, sink: str = "a") -> dict[str, int]:
        """Where the lanes stand that a sink has still to deliver."""
        return {one.key: one.seq for one in await lanes_of(self.file, sink)}

    async def know(self, *known: KnownSession) -> None:
        await self.journal.commit(Changes(known=known))


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Store]:
    async with SqliteFile(folder / "b.db") as file:
        grown: list[int] = []
        device_states = DeviceStates(file, csv_url=lambda session: f"https://cloud.example/{session}.csv")
        path = folder / "b.db"
        yield Store(
            path, file, Journal(file, grew=lambda: grown.append(1)), EventLog(file), Facts(file), device_states, grown
        )


STORES = [sqlite]

Opened = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=STORES, ids=lambda factory: factory.__name__)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens the same store each time: what it holds outlives it."""
    return lambda: request.param(tmp_path)


@pytest.fixture
async def store(opened: Opened) -> AsyncIterator[Store]:
    async with opened() as store:
        yield store


def event(
    number: int, *, session: str | None = "s1", kind: str = "session.started", at: float = NOON, size: int = 2
) -> Event:
    return Event(f"evt_{number}", kind, session, "g1" if session else None, at - 1, at, b"x" * size)


def known(identifier: str, *, end: float | None = None, ingested: bool = False, **more: Any) -> KnownSession:
    session = {name: more.pop(name) for name in ("start", "group_id", "updated_at") if name in more}
    row = DataSession(identifier, "g1", NOON, end=end, ingestion_finished=ingested)
    return KnownSession(session=replace(row, **session), **more)


def ids(found: Iterable[KnownSession]) -> list[str]:
    return [one.session.id for one in found]


# --- the journal


async def test_an_empty_store_knows_nothing(store: Store) -> None:
    assert await store.journal.poll_state() is None
    assert await store.journal.known([]) == {}
    assert await store.journal.known(["s1"]) == {}
    assert await store.journal.known_after("unfinished", "", 1000) == []
    assert await store.journal.due_fetches(NOON, 10) == []
    assert await store.journal.next_fetch_at(without=[]) is None
    assert (await store.journal.windows(["s1"]))["s1"] == {}
    assert await store.journal.emitted(Window(0, 3600), ["s1"]) == {"s1": {}}
    assert await store.log.read(after=0, limit=10) == []
    assert await store.log.search() == []
    assert await backlogs(store.log) == {}
    assert await store.device_states.devices(None, available=True) == []
    assert await store.device_states.sessions(state=None, limit=10) == []
    assert await store.facts.load_token("me") is None


async def test_what_is_known_comes_back_as_it_was_also_after_a_restart(opened: Opened) -> None:
    one = known(
        "s1",
        end=NOON + 0.1,
        updated_at=NOON + 0.3,
        device_label="BaceGo-1 ☾",
        probed={20_000: 3},
        csv_facts=(3, None, 1),
        fetch_at=NOON + 1 / 3,
        end_emitted=NOON + 0.1,
    )
    state = PollState(
        start_from=NOON + 0.1,
        watermark=NOON + 0.2,
        recheck_after="s1",
        joined={"g2": 1.5},
    )
    window = WindowState(0, 3600, 2, settled=True, samples=3, raw_until=NOON + 0.1)
    told: Emitted = {"x": {NOON + 0.1: EmittedPoint(1.5, None, 1.25, 2, 7)}}
    async with opened() as store:
        reads = (WindowRead("s1", window, told),)
        await store.journal.commit(Changes(known=(one,), windows=reads, watch=state))
    async with opened() as store:
        assert await store.journal.known(["s1", "s2"]) == {"s1": one}
        assert await store.journal.poll_state() == state
        assert (await store.journal.windows(["s1"]))["s1"] == {window.window: window}
        assert await store.journal.emitted(window.window, ["s1"]) == {"s1": told}


async def test_many_sessions_are_looked_up_at_once(store: Store) -> None:
    every = [known(f"s{number}") for number in range(2000)]
    await store.know(*every)
    assert len(await store.journal.known([f"s{number}" for number in range(1990, 2010)])) == 10
    assert len(await store.journal.known([one.session.id for one in every])) == 2000


async def test_sessions_by_how_far_they_are(store: Store) -> None:
    await store.know(
        known("a"),
        known("b", end=NOON),
        known("c", end=NOON, ingested=True),
        known("d", removed=True),
        known("e", ingested=True),
        known("f", end=NOON, ingested=True),
    )
    journal = store.journal
    assert ids(await journal.known_after("unfinished", "", 1000)) == ["a", "b", "e"]
    assert ids(await journal.known_after("unfinished", "", 2)) == ["a", "b"]
    assert ids(await journal.known_after("unfinished", "b", 2)) == ["e"]
    assert ids(await journal.known_after("active", "", 9)) == ["a", "e"]
    assert ids(await journal.known_after("finished", "", 1)) == ["c"]
    assert ids(await journal.known_after("finished", "c", 5)) == ["f"]
    await store.know(known("a", end=NOON, ingested=True), known("d"))
    assert ids(await journal.known_after("unfinished", "", 1000)) == ["b", "d", "e"]


async def test_visits_live_sessions_first_then_the_newest_history(store: Store) -> None:
    await store.know(
        known("history-old", over_when_found=True, fetch_at=NOON - 50, start=NOON - 900),
        known("history-new", over_when_found=True, fetch_at=NOON - 50, start=NOON - 100),
        known("live-late", fetch_at=NOON - 10),
        known("live-first", fetch_at=NOON - 20),
        known("not-yet", fetch_at=NOON + 0.5),
        known("never", fetch_at=None),
    )
    journal = store.journal
    every = ["live-first", "live-late", "history-new", "history-old"]
    assert ids(await journal.due_fetches(NOON, 10)) == every
    assert ids(await journal.due_fetches(NOON, 3)) == every[:3]
    assert ids(await journal.due_fetches(NOON, 10, late=False)) == every[:2]
    assert ids(await journal.due_fetches(NOON, 10, late=True)) == every[2:]
    assert await journal.next_fetch_at(without=[]) == NOON - 50
    assert await journal.next_fetch_at(without=["history-old", "history-new"]) == NOON - 20
    assert await journal.next_fetch_at(without=every) == NOON + 0.5
    assert await journal.next_fetch_at(without=[*every, "not-yet"]) is None


async def test_what_was_told_of_a_window_stays_where_nothing_new_came(store: Store) -> None:
    hour, other = Window(0, 3600), Window(3600, 7200)
    told: Emitted = {"x": {5.0: EmittedPoint(1.0, 1.0, 1.0, 1, 0)}}
    for reading, given in [(0, told), (1, None)]:
        read = WindowRead("s1", WindowState(hour.start, hour.end, reading), given)
        await store.journal.commit(Changes(windows=(read, WindowRead("s2", read.state, {}))))
    assert (await store.journal.windows(["s1"]))["s1"] == {hour: WindowState(0, 3600, 1)}
    assert await store.journal.emitted(hour, ["s1"]) == {"s1": told}
    assert await store.journal.emitted(other, ["s1"]) == {"s1": {}}
    await store.journal.commit(Changes(windows=(WindowRead("s1", WindowState(0, 3600, 1, split=True), {}),)))
    assert await store.journal.emitted(hour, ["s1"]) == {"s1": {}}


async def test_windows_of_several_sessions_are_read_at_once(store: Store) -> None:
    hour, other = Window(0, 3600), Window(3600, 7200)
    told: dict[str, Emitted] = {one: {one: {5.0: EmittedPoint(1.0, 1.0, 1.0, 1, 0)}} for one in ("s1", "s2", "s3")}
    reads = [WindowRead(one, WindowState(*hour, 0), told[one]) for one in told]
    await store.journal.commit(Changes(windows=(*reads, WindowRead("s1", WindowState(*other, 0), {}))))
    assert await store.journal.windows(["s1", "s2", "new"]) == {
        "s1": {hour: WindowState(*hour, 0), other: WindowState(*other, 0)},
        "s2": {hour: WindowState(*hour, 0)},
        "new": {},
    }
    assert await store.journal.emitted(hour, ["s1", "s2", "new"]) == {"s1": told["s1"], "s2": told["s2"], "new": {}}
    assert await store.journal.emitted(other, ["s1", "s2"]) == {"s1": {}, "s2": {}}


async def test_a_commit_happens_as_a_whole_or_not_at_all(store: Store) -> None:
    """What fails last takes along what came before it."""
    broken = replace(event(2), data="no bytes", time=None)
    with pytest.raises(Exception):  # noqa: B017, PT011  # each store has its own way to refuse it
        await store.journal.commit(
            Changes(
                known=(known("s1"),),
                windows=(WindowRead("s1", WindowState(0, 3600, 0), {}),),
                latest=(LatestSeen("g1", "d", 6000, NOON, b"{}"),),
                events=(event(1), broken),
                watch=PollState(start_from=0.0, watermark=0.0),
            )
        )
    assert await store.journal.known(["s1"]) == {}
    assert (await store.journal.windows(["s1"]))["s1"] == {}
    assert await store.journal.poll_state() is None
    assert await store.log.search() == []
    assert await store.device_states.devices(None, available=True) == []
    assert store.grown == []
    await store.tell(event(1))
    assert store.grown == [1]


# --- the event log


async def test_the_log_keeps_the_order_and_each_event_once(store: Store) -> None:
    first, second, third = await store.tell(event(1), event(2), event(3))
    assert first < second < third
    again, fourth = await store.tell(event(2), event(4))
    assert (again, fourth > third) == (second, True)
    logged = await store.log.read(after=0, limit=100)
    assert [one.event.id for one in logged] == ["evt_1", "evt_2", "evt_3", "evt_4"]
    assert logged[0].event == event(1)
    assert [one.seq for one in await store.log.read(after=second, limit=1)] == [third]


async def test_the_same_fact_again_is_no_backlog(store: Store) -> None:
    await store.log.open_sink("a", target="t")
    (place,) = await store.tell(event(1))
    await store.tell(event(1))
    assert await backlogs(store.log) == {"a": 1}
    await deliver(store.file, "a", through=place)
    assert await backlogs(store.log) == {"a": 0}


async def test_reading_stops_at_so_many_bytes_but_always_goes_on(store: Store) -> None:
    await store.tell(*(event(number, size=1000) for number in range(5)))
    assert len(await store.log.read(after=0, limit=100, most_bytes=2500)) == 3
    assert len(await store.log.read(after=0, limit=2, most_bytes=2500)) == 2
    assert len(await store.log.read(after=0, limit=100, most_bytes=1)) == 1


async def test_a_lane_is_one_session_or_the_bridge_itself(store: Store) -> None:
    places = await store.tell(
        event(1),
        event(2, session="s2"),
        event(3, session=None, kind="cloud.unreachable"),
        event(4),
        event(5, session=None, kind="cloud.recovered"),
        event(6),
    )

    async def lane(key: str, start: int, limit: int = 10) -> tuple[list[str], bool]:
        found, complete = await store.file.read(lambda connection: read_lane(connection, key, start, limit))
        return [one.event.id for one in found], complete

    assert await lane("s1", 0) == (["evt_1", "evt_4", "evt_6"], True)
    assert await lane("s1", places[0] + 1, limit=1) == (["evt_4"], False)
    assert await lane(BRIDGE_LANE, 0) == (["evt_3", "evt_5"], True)
    assert await lane("s9", 0) == ([], True)


async def test_a_new_sink_begins_at_the_end_of_the_log(store: Store) -> None:
    await store.open("first")
    first, second = await store.tell(event(1), event(2, session=None))
    await store.open("first", "second")
    assert await store.lanes("first") == {"s1": first, BRIDGE_LANE: second}
    assert await store.lanes("second") == {}
    assert await backlogs(store.log) == {"first": 2, "second": 0}


async def test_a_sink_goes_on_where_it_was_after_a_restart(opened: Opened) -> None:
    async with opened() as store:
        await store.open("a", "b")
        first, second, third = await store.tell(event(1), event(2, session="s2"), event(3, session="s2"))
        one, other = Lane("s1", first, 3, NOON + 0.1, "500", behind=True), Lane("s2", third)
        await deliver(store.file, "a", waits={"s1": one, "s2": other})
        await deliver(store.file, "b", waits={"s1": replace(one, attempts=9)}, through=second)
    async with opened() as store:
        await store.open("a", "b")
        assert await lanes_of(store.file, "a") == [replace(one, version=first), replace(other, version=second)]
        assert [(lane.key, lane.seq, lane.attempts) for lane in await lanes_of(store.file, "b")] == [
            ("s1", first, 9),
            ("s2", third, 0),
        ]
        await deliver(store.file, "a")
        assert await store.lanes("a") == {}
        assert await backlogs(store.log) == {"a": 0, "b": 2}


async def test_a_lane_is_kept_only_where_a_sink_wants_the_event(store: Store) -> None:
    filters = {
        "ends": Filter(events=("session.ended",), sink="ends"),
        "device": Filter(groups=("g2",), sink="device"),
        "a": Filter(sink="a"),
    }
    for name, filter_ in filters.items():
        await store.log.open_sink(name, target="t", filter_=filter_)
    about = replace(event(4, session=None, kind="sink.disabled"), data=b'{"sink":"a"}')
    first, second, third, fourth = await store.tell(
        event(1), event(2, kind="session.ended"), event(3, session="s2"), about
    )
    assert await store.lanes("ends") == {"s1": second}
    assert await store.lanes("device") == {BRIDGE_LANE: fourth}
    assert await store.lanes("a") == {"s1": first, "s2": third}, "it is not told of itself"


@pytest.mark.parametrize("gone", ["disabled", "retired"])
async def test_a_sink_that_comes_back_misses_nothing_that_is_still_recorded(opened: Opened, gone: str) -> None:
    async with opened() as store:
        await store.open("a", "b")
        (first,) = await store.tell(event(1))
        await deliver(store.file, "b")
        if gone == "disabled":
            await store.log.disable("a", "410", event(90, session=None))
        else:
            await store.log.retire_others(["b"])
        places = await store.tell(event(2), event(3, session="s2"), event(4, session="s2"))
        assert await store.lanes("a") == {"s1": first}, "what waited stays, and nothing is added"
        assert await store.log.backlog("b") == 3 + (gone == "disabled")
    async with opened() as store:
        if gone == "disabled":
            await store.log.open_sink("a", target="t")
            assert await store.lanes("a") == {"s1": first}
        assert await store.log.open_sink("a", target="other" if gone == "disabled" else "t") is None
        found = await store.lanes("a")
        assert {key: seq for key, seq in found.items() if key != BRIDGE_LANE} == {"s1": first, "s2": places[1]}
        assert {one.replay_through for one in await lanes_of(store.file, "a")} == {0}, "none of it is a replay"
        (new,) = await store.tell(event(5, session="s3"))
        assert (await store.lanes("a"))["s3"] == new
        await deliver(store.file, "a")
    async with opened() as store:
        await store.open("a")
        assert await store.lanes("a") == {}, "only once"


async def test_a_disabled_sink_stays_so_until_its_target_changes(opened: Opened) -> None:
    async with opened() as store:
        await store.log.open_sink("a", target="t1")
        (place,) = await store.tell(event(1))
        await store.log.disable("a", "410 Gone", replace(event(9, session=None), type="cloud.recovered"))
    async with opened() as store:
        assert await store.log.open_sink("a", target="t1") == "410 Gone"
        assert await store.log.open_sink("a", target="t2") is None
        assert (await store.lanes("a"))["s1"] == place
        assert await store.log.open_sink("a", target="t2") is None


async def test_a_filter_that_is_narrowed_or_widened(opened: Opened) -> None:
    """Narrowing counts for what waits, too; widening for what comes later."""
    async with opened() as store:
        await store.open("narrowed")
        await store.log.open_sink("widened", target="t", filter_=Filter(events=("session.ended",)))
        await store.tell(event(1), event(2, session="s2", kind="session.ended"), event(3, session="s3"))
    async with opened() as store:
        ends = Filter(events=("session.ended",))
        await store.log.open_sink("narrowed", target="t", filter_=ends)
        await store.log.open_sink("widened", target="t", filter_=Filter())
        found = await claimed(store, "narrowed", ends)
        assert found == {"s1": [], "s2": ["evt_2"], "s3": []}
        assert await claimed(store, "widened", Filter()) == {"s2": ["evt_2"]}
        await store.tell(event(4, session="s4"))
        assert await claimed(store, "widened", Filter()) == {"s2": ["evt_2"], "s4": ["evt_4"]}
        assert await claimed(store, "narrowed", ends) == found


async def claimed(store: Store, sink: str, filter_: Filter) -> dict[str, list[str]]:
    asked = Outbox(window=10, pipelined=True).claim()
    found = await store.log.claim(sink, filter_, asked, now=NOON)
    return {piece.lane.key: [one.event.id for one in piece.events] for piece in found.begun}


async def test_lanes_come_when_they_are_due_those_that_wait_longest_first(store: Store) -> None:
    await store.open("a")
    await store.tell(*(event(number, session=f"s{number}") for number in range(1, 6)))
    rests = {"s1": NOON + 50, "s2": NOON - 5, "s3": NOON - 9}
    waits = {key: Lane(key, int(key[1:]), 1, at, "500", behind=True) for key, at in rests.items()}
    await deliver(store.file, "a", waits=waits, through=0)
    asked = Outbox(window=10, pipelined=True).claim()
    found = await store.log.claim("a", Filter(), replace(asked, behind=replace(asked.behind, lanes=1)), now=NOON)
    assert [piece.lane.key for piece in found.begun] == ["s4", "s5", "s3"]
    assert (found.more_fresh, found.more_behind, found.next_due) == (False, True, NOON + 50)
    found = await store.log.claim("a", Filter(), replace(asked, held=frozenset({"s3", "s4"})), now=NOON)
    assert [piece.lane.key for piece in found.begun] == ["s5", "s2"]


async def test_what_somebody_has_moved_is_recorded_by_nobody_else(store: Store) -> None:
    await store.open("a")
    first, second, _ = await store.tell(event(1), event(2), event(3, session="s2"))
    before = {one.key: one for one in await lanes_of(store.file, "a")}
    await store.log.replay("a", session="s1", since=None)
    letter = DeadLetter(first, "s1", 1, "rejected", report=lambda _: event(9, session=None))
    records = (
        LaneRecord(replace(before["s1"], seq=second + 1), drained=True, dead=(letter,)),
        LaneRecord(replace(before["s2"], seq=9), drained=True),
    )
    _, recorded = await store.log.record("a", lambda: Progress(records), now=NOON)
    assert recorded.moved == {"s1"}
    assert await store.lanes("a") == {"s1": first}
    assert await DeadLetters(store.file).dead(Which()) == [], "it comes again"
    assert len(await store.log.search()) == 3


async def test_a_row_that_was_deleted_and_made_again_is_another_one(store: Store) -> None:
    await store.open("a")
    await store.tell(event(1))
    (before,) = await lanes_of(store.file, "a")
    await deliver(store.file, "a")
    (second,) = await store.tell(event(2))
    record = LaneRecord(replace(before, seq=second + 1), drained=True)
    _, recorded = await store.log.record("a", lambda: Progress((record,)), now=NOON)
    assert recorded.moved == {"s1"}
    assert await store.lanes("a") == {"s1": second}


async def test_it_is_seen_when_another_process_has_written(opened: Opened) -> None:
    async with opened() as store:
        await store.open("a")
        await store.file.changed_elsewhere()
        await store.tell(event(1))
        assert not await store.file.changed_elsewhere(), "it was the bridge itself"
        async with SqliteFile(store.path, beside=True) as file:
            await EventLog(file).replay("a", session="s1", since=None)
        assert await store.file.changed_elsewhere()
        assert not await store.file.changed_elsewhere()


async def test_a_lane_that_has_got_more_meanwhile_stays(store: Store) -> None:
    await store.open("a")
    first, second = await store.tell(event(1), event(2))
    recorded = await deliver(store.file, "a", through=first)
    assert (recorded.more, await store.lanes("a")) == (True, {"s1": second})
    recorded = await deliver(store.file, "a", through=second)
    assert (recorded.more, await store.lanes("a")) == (False, {})


async def test_what_a_dispatcher_asks_is_found_by_an_index(store: Store) -> None:
    await store.open("a")
    await store.tell(*(event(number, session=f"s{number % 7}") for number in range(50)), event(90, session=None))
    statements: list[str] = []
    await store.file.read(lambda connection: connection.set_trace_callback(statements.append))
    await claimed(store, "a", Filter())
    await deliver(store.file, "a", through=20)
    await store.journal.commit(Changes(events=(event(91),)))
    await store.file.read(lambda connection: connection.set_trace_callback(None))
    asked = [one for one in statements if ("lanes" in one or "from events" in one) and "order by seq, lane" not in one]
    assert len(asked) > 10
    for one in asked:
        plan = await store.file.read(lambda connection, one=one: list(connection.execute(f"explain query plan {one}")))  # type: ignore[misc]  # binds now; our own text
        assert not [detail for *_, detail in plan if "SCAN" in detail or "TEMP B-TREE" in detail], (one, plan)


async def test_replay_begins_at_each_session_s_first_event(store: Store) -> None:
    await store.open("a")
    places = await store.tell(
        event(1, at=NOON),
        event(2, session="s2", at=NOON + 10),
        event(3, at=NOON + 20),
        event(4, session=None, at=NOON + 30),
        event(5, at=NOON + 40),
    )

    async def lanes(session: str | None, since: float | None) -> tuple[dict[str, int], int]:
        await deliver(store.file, "a")
        count = await store.log.replay("a", session=session, since=since)
        assert {one.replay_through for one in await lanes_of(store.file, "a")} <= {places[-1]}
        return await store.lanes("a"), count

    assert await lanes("s1", None) == ({"s1": places[0]}, 3)
    assert await lanes(None, NOON + 15) == ({"s1": places[2], BRIDGE_LANE: places[3]}, 3)
    assert await lanes("s1", NOON + 30) == ({"s1": places[4]}, 1)
    assert await lanes("s9", None) == ({}, 0)


async def test_what_was_asked_for_goes_back_and_never_forward(opened: Opened) -> None:
    async with opened() as store:
        await store.open("a")
        places = await store.tell(*(event(number, at=NOON + number) for number in range(5)))
        failing = Lane("s1", places[2], 3, NOON + 300, "HTTP 500", behind=True)
        await deliver(store.file, "a", waits={"s1": failing})
        await store.log.replay("a", session=None, since=NOON + 3)
        (lane,) = await lanes_of(store.file, "a")
        assert replace(lane, version=0) == replace(failing, due_at=0.0), "it is tried at once"
        await store.log.replay("a", session="s1", since=None)
        await store.log.replay("a", session=None, since=NOON + 1)
    async with opened() as store:
        (lane,) = await lanes_of(store.file, "a")
        assert (lane.key, lane.seq, lane.attempts, lane.due_at) == ("s1", places[0], 0, 0.0)
        assert lane.replay_through == places[2] - 1, "what was never delivered is no replay"


async def test_a_replay_of_what_a_sink_has_not_come_to_leaves_nothing_out(store: Store) -> None:
    await store.open("a")
    places = await store.tell(*(event(number, at=NOON + number) for number in range(5)))
    await deliver(store.file, "a", through=places[1])
    await store.log.replay("a", session=None, since=NOON + 3)
    (lane,) = await lanes_of(store.file, "a")
    assert (lane.seq, lane.replay_through) == (places[2], 0)


async def test_a_replay_for_a_new_sink_is_there_at_its_first_start(opened: Opened) -> None:
    async with opened() as store:
        places = await store.tell(event(1), event(2))
        await store.log.replay("a", session="s1", since=None)
        (third,) = await store.tell(event(3, session="s3"))
    async with opened() as store:
        await store.open("a")
        assert await store.lanes("a") == {"s1": places[0], "s3": third}
        replayed = {one.key: one.replay_through for one in await lanes_of(store.file, "a")}
        assert replayed == {"s1": places[1], "s3": 0}


@pytest.mark.parametrize("gone", ["disabled", "retired"])
async def test_what_waits_for_a_sink_that_is_not_called_holds_up_no_pruning(store: Store, gone: str) -> None:
    await store.open("a", "b")
    places = await store.tell(*(event(number) for number in range(4)))
    await deliver(store.file, "a", dead=(DeadLetter(places[1], "s1", 10, "gave up"),))
    await deliver(store.file, "b")
    assert await DeadLetters(store.file).retry(Which()) == 1
    await store.log.replay("a", session="s1", since=None)
    assert await store.log.prune(observed_before=NOON + 9) == 0
    if gone == "disabled":
        await store.log.disable("a", "410", event(9, session=None, at=NOON + 99))
    else:
        await store.log.retire_others(["b"])
    assert await store.log.prune(observed_before=NOON + 9) == len(places)


async def test_a_dead_letter_is_tried_again_or_dropped(opened: Opened) -> None:
    async with opened() as store:
        await store.open("a")
        places = await store.tell(event(1), event(2, session="s2"), event(3))
        lost = tuple(DeadLetter(seq, key, 10, "gave up") for seq, key in zip(places, ("s1", "s2", "s1"), strict=True))
        await deliver(store.file, "a", dead=lost, now=NOON)
        assert (await store.log.waiting("a"), await store.log.waiting("b")) == ((0, 3), (0, 0))
        letters = DeadLetters(store.file)
        await store.file.write(
            lambda one: one.execute(
                "insert into dead_letters values ('gone', ?, 's1', 1, '', ?)", (places[0], NOON - 1)
            )
        )
        assert [one.sink for one in await letters.dead(Which())] == ["a", "a", "a", "gone"]
        assert await letters.retry(Which(sink="gone")) == 0, "nobody would take it"
        assert await letters.drop(Which(sink="gone")) == 1
        assert [one.event_id for one in await letters.dead(Which())] == ["evt_3", "evt_2", "evt_1"]
        assert [one.seq for one in await letters.dead(Which(session="s1"), limit=1)] == [places[2]]
        assert await letters.dead(Which(sink="b")) == []
        assert await letters.retry(Which(events=("evt_1",))) == 1
        assert await letters.drop(Which(session="s2")) == 1
        assert [one.event_id for one in await letters.dead(Which())] == ["evt_3"]
        await store.log.prune(observed_before=NOON + 9)
        assert [one.event.id for one in await store.log.search()] == ["evt_1", "evt_3"], "those two are still needed"
    async with opened() as store:
        await store.open("a")
        (lane,) = await lanes_of(store.file, "a")
        assert (lane.key, lane.seq, lane.attempts, lane.replay_through) == (letter_lane(places[0]), places[0], 0, 0)
        assert await claimed(store, "a", Filter()) == {lane.key: ["evt_1"]}
        await deliver(store.file, "a", waits={lane.key: replace(lane, attempts=1, due_at=NOON, reason="500")})
        (waits,) = await DeadLetters(store.file).parked(Which())
        assert (waits.event_id, waits.behind) == ("evt_1", 0)
        await store.log.prune(observed_before=NOON + 9)
        assert [one.event.id for one in await store.log.search()] == ["evt_1", "evt_3"]
        await deliver(store.file, "a")
        await store.log.prune(observed_before=NOON + 9)
        assert [one.event.id for one in await store.log.search()] == ["evt_3"]


async def test_parked_deliveries_are_listed_with_what_waits_behind_them(store: Store) -> None:
    await store.log.open_sink("a", target="t")
    places = await store.tell(event(1), event(2, session=None), event(3), event(4), event(5, session=None))
    waits = {
        "s1": Lane("s1", places[2], 2, NOON + 9, "HTTP 500", behind=True),
        BRIDGE_LANE: Lane(BRIDGE_LANE, places[1], 1, NOON + 5, "HTTP 502", behind=True),
    }
    await deliver(store.file, "a", waits=waits)
    found = [(one.event_id, one.attempts, one.behind) for one in await DeadLetters(store.file).parked(Which())]
    assert found == [("evt_2", 1, 1), ("evt_3", 2, 1)]


async def test_the_last_failed_attempts_are_kept_a_sink(store: Store) -> None:
    def failed(number: int) -> FailedAttempt:
        return FailedAttempt(1, number, NOON + number, 0.5, "HTTP 500: no", 500, "no")

    for first in range(0, ATTEMPTS_KEPT + 500, 500):
        await store.log.record("a", partial(Progress, failed=tuple(map(failed, range(first, first + 500)))), now=NOON)
    await store.log.record("b", lambda: Progress(failed=(failed(7),)), now=NOON)
    kept = await DeadLetters(store.file).attempts("a", 1)
    assert kept == list(map(failed, range(500, ATTEMPTS_KEPT + 500)))
    assert await DeadLetters(store.file).attempts("b", 1) == [failed(7)]


async def test_a_dead_letter_and_the_event_that_tells_of_it_are_one_transaction(store: Store) -> None:
    await store.log.open_sink("a", target="t")
    (place,) = await store.tell(event(1))
    report = partial(dead_letter_event, sink="a", event=event(1), attempts=10, reason="gave up", now=NOON)
    await store.open("b")
    await deliver(store.file, "a", dead=(DeadLetter(place, "s1", 10, "gave up", report),))
    assert await store.lanes("b") == {BRIDGE_LANE: place + 1}
    (said,) = await store.log.read(after=place, limit=9)
    assert (said.event.type, msgspec.json.decode(said.event.data)["count"]) == ("sink.dead_letter", 1)


async def test_only_old_events_that_every_sink_is_past_are_pruned(store: Store) -> None:
    await store.open("a", "b", "off")
    places = await store.tell(*(event(number, at=NOON + number) for number in range(6)))
    await store.log.disable("off", "410", event(99, session=None, at=NOON + 99))

    async def left() -> list[str]:
        await store.log.prune(observed_before=NOON + 5)
        left = [one.event.id.removeprefix("evt_") for one in await store.log.search()]
        return [one for one in left if one != "99"]

    await deliver(store.file, "a")
    assert await left() == ["0", "1", "2", "3", "4", "5"]
    await deliver(store.file, "b", through=places[0])
    assert await left() == ["1", "2", "3", "4", "5"]
    await deliver(store.file, "b", waits={"s1": Lane("s1", places[2], 1, NOON, behind=True)})
    assert await left() == ["2", "3", "4", "5"]
    await deliver(store.file, "b")
    assert await left() == ["5"], "the last is too young"


async def test_a_dead_letter_keeps_its_event_and_no_other(store: Store) -> None:
    """A letter may lie for months; it must not hold up the whole log."""
    await store.log.open_sink("a", target="t")
    places = await store.tell(*(event(number) for number in range(4)))
    letter = DeadLetter(places[1], "s1", 10, "gave up")
    await deliver(store.file, "a", dead=(letter,))
    assert await store.log.prune(observed_before=NOON + 1) == 3
    assert [one.seq for one in await store.log.search()] == [places[1]]


async def test_pruning_goes_in_small_steps_and_places_are_never_given_again(opened: Opened) -> None:
    async with opened() as store:
        places = await store.tell(*(event(number) for number in range(5)))
        assert [await store.log.prune(observed_before=NOON + 1, limit=2) for _ in range(4)] == [2, 2, 1, 0]
    async with opened() as store:
        await store.open("new")
        assert await store.lanes("new") == {}
        (place,) = await store.tell(event(9))
        assert place > places[-1]
        assert await backlogs(store.log) == {"new": 1}


async def test_people_search_the_log(store: Store) -> None:
    places = await store.tell(
        event(1),
        event(2, session="s2"),
        event(3, kind="session.ended"),
        event(4, session=None, kind="cloud.unreachable"),
    )

    async def found(**what: Any) -> list[str]:
        return [one.event.id.removeprefix("evt_") for one in await store.log.search(**what)]

    assert await found(limit=2) == ["3", "4"]
    assert await found(type_glob="session.*") == ["1", "2", "3"]
    assert await found(type_glob="*.ended") == ["3"]
    assert await found(session="s1", limit=1) == ["3"]
    assert await found(after=places[1]) == ["3", "4"]


# --- facts


async def test_tokens_are_kept_by_account(opened: Opened) -> None:
    one, other = Token("a", None, NOON + 0.1), Token("b", "refresh", NOON)
    async with opened() as store:
        await store.facts.save_token("me", Token("old", "old", 0.0))
        await store.facts.save_token("me", one)
        await store.facts.save_token("you", other)
    async with opened() as store:
        assert await store.facts.load_token("me") == one
        assert await store.facts.load_token("you") == other


async def test_an_installation_keeps_its_name(opened: Opened) -> None:
    async with opened() as store:
        assert await store.facts.installation("one") == "one"
        assert await store.facts.installation("other") == "one"
    async with opened() as store:
        assert await store.facts.installation("other") == "one"


# --- how things stand


async def shown(store: Store, device: str = "g1") -> dict[str, Any] | None:
    (state,) = await store.device_states.devices([device], available=True)
    return None if state.session is None else msgspec.json.decode(state.session, type=dict[str, Any])


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], None),
        ([known("old", start=NOON), known("new", start=NOON + 1)], "new"),
        ([known("active", start=NOON), known("over", start=NOON + 1, end=NOON + 2)], "active"),
        ([known("old", end=NOON + 1), known("new", start=NOON + 1, end=NOON + 2)], "new"),
        ([known("here", end=NOON + 1), known("gone", start=NOON + 9, removed=True)], "here"),
        ([known("gone", removed=True)], None),
        ([known("other", group_id="g2")], None),
    ],
)
async def test_a_device_shows_its_newest_active_session_else_its_newest(
    store: Store, sessions: list[KnownSession], expected: str | None
) -> None:
    await store.know(*sessions)
    found = await shown(store)
    assert (found and found["id"]) == expected


async def test_the_csv_is_linked_once_it_is_ready(store: Store) -> None:
    one = known("s1", end=NOON + 1, ingested=True)
    await store.know(one)
    before = await shown(store)
    assert before is not None
    assert "csv_url" not in before
    assert before["device"] == {"id": one.session.group_id, "label": one.device_label}
    await store.know(replace(one, csv_revision=0))
    assert await shown(store) == before | {"csv_url": "https://cloud.example/s1.csv"}


async def test_the_ledger_keeps_what_was_announced_also_by_a_sink_of_another_name(tmp_path: Path) -> None:
    one, both = Announced({"a": "sensor"}), Announced({"a": "sensor"}, {"b": "sensor"})
    async with SqliteFile(tmp_path / "b.db") as file:
        old, new = (RetainedLedger(file, sink=name, broker="b:1883") for name in ("old", "new"))
        await old.note(["x/config", "bace/g1/session"])
        await old.note_announced({"x/config": one})
        assert await new.announced() == {"x/config": one}
        await new.note_announced({"x/config": both})
        assert await new.announced() == {"x/config": both}, "its own counts"
        assert await new.topics() == {"x/config", "bace/g1/session"}
        await new.forget(["x/config"])
        assert await new.announced() == await old.announced() == {}
        assert await RetainedLedger(file, sink="new", broker="c:1883").announced() == {}


async def test_the_ledger_keeps_what_was_announced_on_a_topic_that_is_cleared(tmp_path: Path) -> None:
    cleared = Announced({}, {"a": "sensor"})
    async with SqliteFile(tmp_path / "b.db") as file:
        old, new = (RetainedLedger(file, sink=name, broker="b:1883") for name in ("old", "new"))
        await old.note_announced({"x/config": Announced({"a": "sensor"})})
        await old.note_announced({"x/config": cleared})
        await old.forget(["x/config"])
        assert await new.topics() == set(), "there is nothing to clear"
        assert await new.announced() == {"x/config": cleared}
        await new.note_announced({"x/config": Announced()})
        assert await new.topics() == {"x/config"}
        await new.forget(["x/config"])
        assert await new.announced() == await old.announced() == {}


def point_of(text: str, **named: str) -> bytes:
    return msgspec.json.encode({"text": text} | named)


async def test_the_newest_point_of_each_series_stays(store: Store) -> None:
    def seen(at: float, text: str, *, datatype: int = 6000, device: str = "g1") -> Changes:
        return Changes(latest=(LatestSeen(device, "d", datatype, at, point_of(text)),))

    for changes in (
        seen(NOON, "first"),
        seen(NOON + 1, "newest"),
        seen(NOON, "late"),
        seen(NOON + 1, "corrected"),
        seen(NOON, "other", datatype=6001),
        seen(NOON, "else", device="g2"),
    ):
        await store.journal.commit(changes)
    (state,) = await store.device_states.devices(["g1"], available=False)
    assert not state.available
    points = {(one.datatype, one.payload) for one in state.latest}
    assert points == {(6000, point_of("corrected")), (6001, point_of("other"))}
    assert {one.device_id for one in await store.device_states.devices(None, available=True)} == {"g1", "g2"}


async def latest_of(store: Store, device: str) -> set[tuple[str, str]]:
    """By source device; each of its series is there as long as the device has a data session that can be seen."""
    (state,) = await store.device_states.devices([device], available=True)
    return {(one.source_device, msgspec.json.decode(one.payload)["text"]) for one in state.latest}


async def series_of(store: Store, device: str) -> set[str]:
    (state,) = await store.device_states.devices([device], available=True)
    return {one.source_device for one in state.series}


def latest(source: str, at: float, session: str | None = None, text: str | None = None) -> LatestSeen:
    return LatestSeen("g1", source, 6000, at, point_of(text or f"of {session}"), session)


async def test_the_newest_point_goes_with_its_removed_data_session_and_comes_back_with_it(store: Store) -> None:
    one, other = known("s1", start=NOON), known("s2", start=NOON + 9)
    points = latest("a", NOON + 5, "s1"), latest("b", NOON + 9, "s2"), latest("c", NOON + 9, text="of any")
    await store.journal.commit(Changes(known=(one, other), latest=points))
    assert await latest_of(store, "g1") == {("a", "of s1"), ("b", "of s2"), ("c", "of any")}
    await store.know(replace(other, removed=True))
    assert await latest_of(store, "g1") == {("a", "of s1"), ("c", "of any")}
    assert await series_of(store, "g1") == {"a", "b", "c"}
    await store.know(replace(one, removed=True))
    assert not await latest_of(store, "g1")
    assert not await series_of(store, "g1")
    await store.know(other)
    assert await latest_of(store, "g1") == {("b", "of s2"), ("c", "of any")}


async def test_the_newest_points_of_a_finished_session_go_when_the_next_one_starts(store: Store) -> None:
    over, seen = known("s1", start=NOON, end=NOON + 8), (latest("a", NOON + 5, "s1"), latest("b", NOON + 5))
    await store.journal.commit(Changes(known=(over,), latest=seen))
    assert await latest_of(store, "g1") == {("a", "of s1"), ("b", "of None")}
    await store.know(known("s2", start=NOON + 9))
    assert await latest_of(store, "g1") == set()
    assert await series_of(store, "g1") == {"a", "b"}
    await store.journal.commit(Changes(latest=(latest("a", NOON + 10, "s2"),)))
    assert await latest_of(store, "g1") == {("a", "of s2")}
    await store.know(replace(over, session=replace(over.session, end=None)))
    await store.journal.commit(Changes(latest=(latest("c", NOON + 6, "s1"),)))
    assert await latest_of(store, "g1") == {("a", "of s2"), ("c", "of s1")}, "both are active"


async def test_a_finished_session_whose_clock_was_ahead_hides_no_point_of_the_next_one(store: Store) -> None:
    over, now = known("s1", start=NOON, end=NOON + 8), known("s2", start=NOON + 9)
    await store.journal.commit(Changes(known=(over,), latest=(latest("a", NOON + 9e9, "s1"),)))
    await store.journal.commit(Changes(known=(now,), latest=(latest("a", NOON + 10, "s2"),)))
    await store.journal.commit(Changes(latest=(latest("a", NOON + 9, "s2", "late"),)))
    assert await latest_of(store, "g1") == {("a", "of s2")}


async def test_the_newest_point_goes_with_a_data_session_that_belongs_to_another_device_now(store: Store) -> None:
    here, stays = known("s1", start=NOON), known("s2", start=NOON)
    await store.journal.commit(Changes(known=(here, stays), latest=(latest("a", NOON + 5, "s1"),)))
    await store.know(replace(here, session=replace(here.session, group_id="g2")))
    assert not await latest_of(store, "g1")
    assert not await series_of(store, "g1")
    await store.journal.commit(Changes(latest=(latest("a", NOON + 1, "s2"),)))
    assert await latest_of(store, "g1") == {("a", "of s2")}, "though it is older than what is not shown any more"


async def test_a_device_has_the_label_of_its_sessions_and_the_names_of_its_series(store: Store) -> None:
    one = replace(known("s1"), device_label="BaceGo-1")
    named = LatestSeen("g1", "a", 6000, NOON, point_of("", name="Heart rate", unit="bpm"), "s1")
    await store.journal.commit(Changes(known=(one,), latest=(named,)))
    (state,) = await store.device_states.devices(["g1"], available=True)
    assert (state.label, state.series) == ("BaceGo-1", (Series("a", 6000, "Heart rate", "bpm"),))
    await store.know(replace(known("s2", start=NOON + 9), device_label="BaceGo-2"))
    (state,) = await store.device_states.devices(["g1"], available=True)
    assert state.label == "BaceGo-2"


async def test_of_devices_that_are_not_watched_there_is_no_state(store: Store) -> None:
    labelled = replace(known("s3", group_id="g3"), device_label="Bed 3")
    await store.know(known("s1", group_id="g1"), replace(known("s2", group_id="g2"), device_label="Bed 2"), labelled)

    async def watched(*groups: str) -> set[str]:
        device_states = DeviceStates(store.file, csv_url=str, groups=groups)
        return {one.device_id for one in await device_states.devices(None, available=True)}

    assert await watched() == {"g1", "g2", "g3"}
    assert await watched("g2") == {"g1", "g2"}, "g1 has no label, which may be the one"
    assert await watched("Bed 3", "g1") == {"g1", "g3"}
    assert await watched("7ceb5723-ab12-4cde-8f01-23456789abcd") == set()


async def test_the_ledger_of_a_sink_holds_what_was_noted_of_it_at_its_broker(opened: Opened) -> None:
    def ledger(store: Store, sink: str, *, broker: str = "b:1883") -> RetainedLedger:
        return RetainedLedger(store.file, sink=sink, broker=broker)

    async def configure(store: Store, *names: str) -> None:
        await store.log.retire_others(names)
        for name in names:
            await store.log.open_sink(name, target=name, filter_=Filter(sink=name))

    async with opened() as store:
        await configure(store, "home", "hall")
        assert await ledger(store, "home").topics() == set()
        await ledger(store, "home").note(["a/1", "a/2"])
        await ledger(store, "home").note(["a/2", "a/3"])
        await ledger(store, "hall").note(["a/1", "h/1"])
        await ledger(store, "home", broker="other:1883").note(["o/1"])
    async with opened() as store:
        home, hall = ledger(store, "home"), ledger(store, "hall")
        assert await home.topics() == {"a/1", "a/2", "a/3"}
        assert await hall.topics() == {"a/1", "h/1"}
        await home.forget(["a/1", "a/2", "never/there"])
        assert (await home.topics(), await hall.topics()) == ({"a/3"}, {"a/1", "h/1"})
        await configure(store, "house", "hall")
        renamed = ledger(store, "house")
        assert await renamed.topics() == {"a/3"}
        await renamed.forget(["a/3", "a/1"])
        assert (await renamed.topics(), await hall.topics()) == (set(), {"a/1", "h/1"})


async def test_a_device_is_available_while_its_datapoints_are_current(store: Store) -> None:
    now = time.time()
    fresh, stale, over = (
        KnownSession(session=DataSession(f"s{one}", f"g{one}", now - 900), fetched_at=now - age)
        for one, age in enumerate((0.0, 600.0, 600.0))
    )
    await store.know(fresh, stale, replace(over, session=replace(over.session, end=now - 500)))
    states = await store.device_states.devices(["g0", "g1", "g2"], available=True)
    assert [one.available for one in states] == [True, False, True]
    devices, oldest = await store.device_states.stale()
    assert devices == {"g1"}
    assert 600.0 <= oldest < 660.0
    assert not any(one.available for one in await store.device_states.devices(None, available=False))
    await Schedules(store.file).move(600.0)
    assert (await store.device_states.stale())[0] == {"g0"}, "one that was read in the future is not current either"


async def test_the_oldest_view_is_that_of_an_active_session(store: Store) -> None:
    assert (await store.device_states.stale())[1] == 0.0
    await store.know(KnownSession(session=DataSession("over", "g", NOON, end=NOON + 60), fetched_at=NOON))
    await store.know(KnownSession(session=DataSession("not to be had", "g", NOON), fetched_at=None))
    assert (await store.device_states.stale())[1] == 0.0
    now = time.time()
    await store.know(
        *(KnownSession(session=DataSession(f"s{age}", "g", NOON), fetched_at=now - age) for age in (5, 90))
    )
    assert 90.0 <= (await store.device_states.stale())[1] < 150.0


async def test_people_list_the_sessions_newest_first(store: Store) -> None:
    await store.know(
        known("a"), known("b", start=NOON + 1, end=NOON + 2), known("c", start=NOON + 2), known("d", start=NOON - 1)
    )
    device_states = store.device_states
    assert ids(await device_states.sessions(state=None, limit=3)) == ["c", "b", "a"]
    assert ids(await device_states.sessions(state="active", limit=2)) == ["c", "a"]
    assert ids(await device_states.sessions(state="ended", limit=9)) == ["b"]
    assert ids(await device_states.sessions(state="ingested", limit=9)) == []


async def test_a_retry_does_not_wait_for_a_whole_replay(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        log = EventLog(file)
        await log.open_sink("hook", target="t")
        events = tuple(Event(f"evt_{one}", "t", f"s{one}", "g", 1.0, float(one), b"{}") for one in range(9))
        await Journal(file).commit(Changes(events=events))
        (failed, *_) = await lanes_of(file, "hook")
        await deliver(file, "hook", waits={"s0": replace(failed, attempts=1, due_at=5.0, reason="x", behind=True)})
        assert await log.replay("hook", session=None, since=1.0) == 8
        asked = Claim(frozenset(), (), Share(3, 99, 9999), Share(3, 99, 9999))
        claimed = await log.claim("hook", Filter(), asked, now=5.0)
        assert [one.lane.key for one in claimed.begun] == ["s0", "s1", "s2"]
        claimed = await log.claim("hook", Filter(), asked, now=4.0)
        assert [one.lane.key for one in claimed.begun] == ["s1", "s2", "s3"]
