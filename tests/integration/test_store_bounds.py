"""The store grows no larger than it may, and nothing that is not delivered ever goes for that."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.app.service import keep_store
from bace_bridge.errors import StoreAtCap
from bace_bridge.events.types import DeadLetter, Event, Lane
from bace_bridge.polling.rules.changes import Changes, PollState, WindowRead
from bace_bridge.polling.rules.datapoints import EmittedPoint
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import WindowState
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.housekeeping import CROWDED, EVERY, SESSIONS_A_PIECE, WINDOWS_A_PIECE, Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import JOURNAL_SIZE_LIMIT, SqliteFile
from tests.delivered import deliver
from tests.integration.polling_line import NOON, Clock, points, simulated, types, watching

CAP = 16 * 2**20
DAY = 86400.0
AT_ONCE = 10


class Kept:
    """A store with a cap, and what keeps it."""

    def __init__(self, file: SqliteFile, max_size: int) -> None:
        self.file, self.log = file, EventLog(file)
        self.woken = 0
        self.due = asyncio.Event()
        self.told = 0
        self.cap = Cap(file, max_size, crowded=self._crowded)
        self.journal = Journal(file, ensure_room=self.cap.ensure_room)
        self.upkeep = Upkeep(file, self.log, self.cap, retention=7 * DAY, session_retention=90 * DAY)

    def _crowded(self) -> None:
        self.woken += 1
        self.due.set()

    async def round(self, now: float = NOON) -> float:
        """Piece after piece, until one says that it can wait; returns for how long."""
        while (rest := await self.upkeep.piece(now)) < 1.0:
            pass
        return rest

    async def tell(self, *, size: int = 20_000, at: float = NOON, count: int = AT_ONCE) -> None:
        numbers = range(self.told + 1, self.told + 1 + count)
        told = (
            Event(f"evt_{one}", "session.updated", "s1", "g1", at, at, random.Random(one).randbytes(size))
            for one in numbers
        )
        await self.journal.commit(Changes(events=tuple(told)))
        self.told += count

    async def fill(self) -> None:
        """Tells events until the store refuses them and its upkeep finds nothing that can go."""
        for _ in range(1000):
            try:
                await self.tell()
            except StoreAtCap:
                await self.round()
                if self.cap.judge().paused:
                    return
        raise AssertionError("it takes everything")

    async def delivered(self, sink: str, through: int) -> None:
        await deliver(self.file, sink, through=through)

    async def left(self) -> list[int]:
        query = "select seq from events order by seq"
        return await self.file.read(lambda connection: [row[0] for row in connection.execute(query)])


@asynccontextmanager
async def kept(folder: Path, max_size: int = CAP) -> AsyncIterator[Kept]:
    async with SqliteFile(folder / "b.db") as file:
        yield Kept(file, max_size)


async def test_a_backlog_is_never_dropped_and_the_store_stays_at_its_cap(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        with capture_logs() as logs:
            await store.fill()
        names = [one["event"] for one in logs]
        assert names[0] == names[-1] == "store.at_its_cap"
        assert all(one != other for one, other in pairwise(names)), "each begin and end once"
        assert store.file.used < CAP * 1.02
        assert sum(one.stat().st_size for one in tmp_path.iterdir()) < CAP + JOURNAL_SIZE_LIMIT
        assert await store.left() == list(range(1, store.told + 1))
        assert store.upkeep.pruned_early == 0
        assert store.woken
        assert "store.max_size (16 MiB)" in (store.upkeep.problem or "")


async def test_deliveries_make_room_and_it_goes_on_by_itself(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        await store.fill()
        was_due = store.upkeep.is_due
        assert was_due
        with capture_logs() as logs:
            await store.delivered("a", store.told // 2)
            await store.round()
        assert [one["event"] for one in logs] == ["store.has_room_again", "store.pruned_early"]
        assert logs[1]["events"] == store.upkeep.pruned_early
        left = await store.left()
        assert left == list(range(store.upkeep.pruned_early + 1, store.told + 1)), "the oldest go"
        assert 0 < store.upkeep.pruned_early < store.told // 5, "no more than there has to be room for"
        assert store.upkeep.problem is None
        assert not store.upkeep.is_due
        await store.tell()


async def test_while_nothing_can_go_upkeep_rests_between_its_pieces(tmp_path: Path) -> None:
    rests: list[tuple[float, bool]] = []
    enough = asyncio.Event()
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        await store.fill()

        async def pause(due: asyncio.Event, seconds: float) -> None:
            with pytest.raises(StoreAtCap):
                await store.tell()
            rests.append((seconds, due.is_set()))
            if len(rests) == 5:
                enough.set()
                await asyncio.Event().wait()

        loop = asyncio.create_task(keep_store(store.upkeep, store.due, clock=lambda: NOON, pause=pause))
        async with asyncio.timeout(60):
            await enough.wait()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert rests == [(CROWDED, False)] * 5, "none of them was cut short, though the watcher went on asking for room"


async def test_upkeep_is_woken_once_each_time_the_store_becomes_crowded(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        for times in (1, 2):
            while store.woken < times:
                await store.tell(count=1)
            for _ in range(5):
                with contextlib.suppress(StoreAtCap):
                    await store.tell()
            assert store.woken == times
            await store.delivered("a", store.told)
            await store.round()


async def test_with_everything_delivered_it_never_pauses(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        with capture_logs() as logs:
            for _ in range(200):
                await store.tell()
                await store.delivered("a", store.told)
                if store.upkeep.is_due:
                    await store.round()
        assert {one["event"] for one in logs} == {"store.pruned_early"}
        assert store.file.used < CAP


async def test_what_waits_or_was_given_up_stays_also_at_the_cap(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        for name in ("a", "b"):
            await store.log.open_sink(name, target="t")
        await store.fill()
        waits = {"s1": Lane("s1", 40, 1, NOON, behind=True)}
        await deliver(store.file, "a", waits=waits, dead=(DeadLetter(3, "s1", 10, "x"),))
        await store.delivered("b", store.told)
        await store.round()
        assert [seq for seq in await store.left() if seq <= 40] == [3, 40]


async def test_at_the_cap_the_bridge_may_still_speak_of_itself(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        await store.fill()
        own = Event("evt_own", "cloud.unreachable", None, None, NOON, NOON, b"{}")
        await store.journal.commit(Changes(events=(own,), watch=PollState(start_from=0.0, watermark=0.0)))
        with pytest.raises(StoreAtCap):
            await store.journal.commit(Changes(known=(known("s1"),)))


async def test_what_is_old_goes_in_pieces_and_what_is_younger_is_not_even_looked_at(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.tell(size=10, at=NOON - 8 * DAY, count=450)
        await store.tell(size=10, at=NOON - 6 * DAY, count=50)
        assert await store.upkeep.piece(NOON) < 1.0
        assert len(await store.left()) == 300
        assert await store.round() == EVERY
        assert await store.left() == list(range(451, 501))
        assert store.file.wal_bytes == 0


async def test_an_event_of_a_clock_that_was_ahead_does_not_keep_what_follows(tmp_path: Path) -> None:
    async with kept(tmp_path) as store:
        await store.tell(size=10, at=NOON + 900 * DAY, count=3)
        await store.tell(size=10, at=NOON - 8 * DAY, count=3)
        await store.tell(size=10, at=NOON, count=3)
        await store.round()
        assert await store.left() == [7, 8, 9]


# --- what is remembered of finished sessions


def known(identifier: str, *, updated_at: float = NOON, fetch_at: float | None = None) -> KnownSession:
    start = NOON - 999 * DAY
    row = DataSession(identifier, "g1", start, end=start + 60, updated_at=updated_at, ingestion_finished=True)
    return KnownSession(session=row, fetch_at=fetch_at)


def windows(session: str, count: int) -> tuple[WindowRead, ...]:
    told = {"series": {5.0: EmittedPoint(1.0, 1.0, 1.0, 1, 0)}}
    states = (WindowState(one * 3600, (one + 1) * 3600, 0, settled=True) for one in range(count))
    return tuple(WindowRead(session, state, told) for state in states)


async def test_old_finished_sessions_are_forgotten_but_stay_known(tmp_path: Path) -> None:
    old = NOON - 91 * DAY
    sessions = [known(f"old{one:03}", updated_at=old) for one in range(SESSIONS_A_PIECE + 20)]
    kept_ones = [known("new"), known("visited", updated_at=old, fetch_at=NOON)]
    async with kept(tmp_path) as store:
        large = windows(sessions[7].session.id, 2 * WINDOWS_A_PIECE + 1)
        reads = tuple(read for one in [*sessions, *kept_ones] for read in windows(one.session.id, 2)) + large
        await store.journal.commit(Changes(known=(*sessions, *kept_ones), windows=reads))
        assert await store.upkeep.piece(NOON) < 1.0, "in pieces"
        last = sessions[-1].session.id
        assert (await store.journal.windows([last]))[last]
        assert await store.round() == EVERY
        remembered = await store.file.read(
            lambda connection: connection.execute("select distinct session_id from windows").fetchall()
        )
        assert [row[0] for row in remembered] == ["new", "visited"]
        assert len(await store.journal.known([one.session.id for one in sessions])) == len(sessions)


async def test_the_memory_of_what_is_over_does_not_stop_the_watching_of_what_is_not(tmp_path: Path) -> None:
    """Months of windows can be larger than the cap; those that changed last stay longest."""
    ages = {"old": 3.0, "older": 4.0, "young": 0.5}
    sessions = {name: known(name, updated_at=NOON - days * DAY) for name, days in ages.items()}
    told = {
        f"series{one}": {float(stamp): EmittedPoint(1.0, 1.0, 1.0, 1, 0) for stamp in range(3600)} for one in range(5)
    }
    async with kept(tmp_path) as store:
        await store.log.open_sink("a", target="t")
        for start in range(0, 10 * 3600, 3600):
            reads = tuple(WindowRead(name, WindowState(start, start + 3600, 0), told) for name in sessions)
            with contextlib.suppress(StoreAtCap):
                await store.journal.commit(Changes(known=tuple(sessions.values()), windows=reads))
        with capture_logs() as logs:
            await store.fill()
        assert not (await store.journal.windows(["older"]))["older"]
        assert not (await store.journal.windows(["old"]))["old"]
        assert (await store.journal.windows(["young"]))["young"]
        assert store.upkeep.figures()["windows_forgotten_early"] > 10
        assert sum(int(one.get("windows", 0)) for one in logs) == store.upkeep.forgotten_early
        assert await store.left() == list(range(1, store.told + 1))
        assert len(await store.journal.known(list(ages))) == 3


@asynccontextmanager
async def full_of_memory(folder: Path, sessions: Sequence[KnownSession]) -> AsyncIterator[Kept]:
    """At the cap, where nothing can go yet; after a day without a change these sessions' windows can."""
    async with kept(folder) as store:
        await store.log.open_sink("a", target="t")
        reads = tuple(read for one in sessions for read in windows(one.session.id, 1))
        await store.journal.commit(Changes(known=tuple(sessions), windows=reads))
        await store.fill()
        assert store.upkeep.forgotten_early == 0
        yield store


async def test_of_sessions_that_changed_at_once_those_that_must_stay_do_not_keep_the_others(tmp_path: Path) -> None:
    stay = [known(f"a{one:03}", fetch_at=NOON) for one in range(SESSIONS_A_PIECE + 20)]
    go = [known(f"b{one:03}") for one in range(10)]
    async with full_of_memory(tmp_path, [*stay, *go]) as store:
        await store.upkeep.piece(NOON + 2 * DAY)
        await store.upkeep.piece(NOON + 2 * DAY)
        assert store.upkeep.forgotten_early == len(go)
        assert (await store.journal.windows(["a000"]))["a000"]


async def test_a_session_that_had_to_stay_is_forgotten_the_next_time_round(tmp_path: Path) -> None:
    sessions = [known("a", fetch_at=NOON), known("b", updated_at=NOON + 1, fetch_at=NOON)]
    async with full_of_memory(tmp_path, sessions) as store:
        await store.upkeep.piece(NOON + 2 * DAY)
        assert store.upkeep.forgotten_early == 0
        await Journal(store.file).commit(Changes(known=(known("a"),)))
        await store.upkeep.piece(NOON + 2 * DAY)
        assert store.upkeep.forgotten_early == 1
        assert (await store.journal.windows(["b"]))["b"]


async def test_a_session_with_more_windows_than_go_in_a_piece_is_forgotten_to_its_end(tmp_path: Path) -> None:
    async with full_of_memory(tmp_path, [known("a"), known("b")]) as store:
        await Journal(store.file).commit(Changes(windows=windows("a", 2 * WINDOWS_A_PIECE + 1)))
        for _ in range(3):
            await store.upkeep.piece(NOON + 2 * DAY)
        assert store.upkeep.forgotten_early == 2 * WINDOWS_A_PIECE + 2


async def test_a_forgotten_session_that_changes_is_told_again_with_the_same_ids(tmp_path: Path) -> None:
    clock = Clock()
    cloud = simulated(clock)
    device = cloud.add_device("BaceGo-1")
    series = device.series[0].id_container_data_latest
    async with watching(cloud, tmp_path / "w.db", clock) as watch:
        await watch.poll()
        session = cloud.open_session(device.id_group)
        cloud.add_points(session, series, [(clock.now + one, 60.0 + one) for one in range(300)])
        clock.forward(3600)
        cloud.end_session(session)
        cloud.finish_ingestion(session)
        first = await watch.poll()
        assert types(first)[-1] == "session.csv_ready"
        clock.forward(91 * DAY)
        assert types(await watch.poll()) == []
        log = EventLog(watch.file)
        upkeep = Upkeep(watch.file, log, Cap(watch.file, 2**30), retention=7 * DAY, session_retention=90 * DAY)
        while await upkeep.piece(clock.now) < 1.0:
            pass
        assert (await watch.journal.windows([session]))[session] == {}
        assert await watch.all_events() == []
        clock.forward(10)
        assert types(await watch.poll()) == [], "it is known, and nothing has changed"
        cloud.add_points(session, series, [(clock.now - 92 * DAY, 99.0)])
        clock.forward(60)
        again = await watch.poll()
        assert types(again)[-1] == "session.csv_ready"
        assert "session.started" not in types(again)
        by_id = {one.event.id for one in first if one.event.type == "session.datapoints"}
        assert by_id & {one.event.id for one in again}, "where a batch is the same its id is"
        assert {point["revision"] for point in points(again)} == {0}


# --- the WAL


async def test_the_wal_is_bounded_under_load_and_emptied_when_there_is_nothing_else_to_do(tmp_path: Path) -> None:
    async with kept(tmp_path, max_size=2**30) as store:
        reader = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
        largest = 0
        for number in range(300):
            await store.tell(size=5_000, count=50)
            if number % 10 == 0:  # short readings, as a listing makes them
                reader.execute("select count(*) from (select seq from events limit 500)").fetchall()
            largest = max(largest, store.file.wal_bytes)
        reader.close()
        assert 2**20 < largest < JOURNAL_SIZE_LIMIT
        assert (tmp_path / "b.db-wal").stat().st_size > 0
        assert await store.round() == EVERY
        assert (tmp_path / "b.db-wal").stat().st_size == 0


async def test_a_reader_that_never_ends_makes_the_wal_count_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bace_bridge.store.sqlite.BUSY_TIMEOUT", 3600.0)
    reader = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
    async with kept(tmp_path) as store, contextlib.AsyncExitStack() as stack:
        stack.callback(reader.close)
        await store.tell()
        reader.execute("begin")
        reader.execute("select count(*) from events").fetchall()
        async with asyncio.timeout(60):  # its end is not waited for
            await store.fill()
        assert store.file.used < CAP * 1.03
        assert "another process keeps a read transaction open" in (store.upkeep.problem or "")
        assert len(await store.left()) == store.told, "to delete would only make the WAL larger"
        reader.close()
        await store.round()
        assert store.upkeep.problem is None
        await store.tell()


# --- what is asked while a million events lie in the log


@pytest.mark.parametrize(
    ("query", "plan"),
    [
        ("select coalesce(max(seq), 0) from events", "SEARCH events"),
        (
            "select seq, observed_at, length(data) from events where seq < 9 order by seq limit 5",
            "SEARCH events USING INT",
        ),
        ("select id from events where seq > 9 order by seq limit 5", "SEARCH events USING INT"),
        ("select id from events where session_id = 's' and seq between 1 and 9 order by seq", "events_of_session"),
        (
            "select known from sessions where (updated_at, id) > (1, 's') and updated_at < 9 order by updated_at, id",
            "SEARCH sessions USING INDEX sessions_by_update",
        ),
        (
            "select min(known) from sessions where unfinished and active",
            "SEARCH sessions USING INDEX sessions_unfinished",
        ),
        ("select min(session_id) from windows where session_id > 's'", "SEARCH windows USING PRIMARY KEY"),
    ],
)
async def test_no_query_of_the_running_bridge_walks_through_the_log(tmp_path: Path, query: str, plan: str) -> None:
    async with kept(tmp_path) as store:
        steps = await store.file.read(
            lambda connection: [row[3] for row in connection.execute(f"explain query plan {query}")]
        )
    assert len(steps) == 1, steps
    assert plan in steps[0]
