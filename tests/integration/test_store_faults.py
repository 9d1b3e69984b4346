"""What a store that fails does to those who use it: each fault has a name, is reported once, and loses nothing."""

import asyncio
import random
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from bace_bridge.cloud.tokens import Credentials, TokenReply, Tokens
from bace_bridge.errors import (
    CloudUnavailable,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreGone,
    StoreLocked,
    StoreReadOnly,
    StoreUnusable,
)
from bace_bridge.events.types import Event, FailedAttempt, Progress
from bace_bridge.polling.loops import SessionLoop
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.eventlog import DeadLetters, EventLog
from bace_bridge.store.facts import Facts
from bace_bridge.store.journal import Journal
from bace_bridge.store.ownership import is_held
from bace_bridge.store.sqlite import BUSY_TIMEOUT, SqliteFile
from tests.delivered import backlogs
from tests.integration.disks import fill_up, make_read_only, small_disk
from tests.integration.polling_line import Clock
from tests.integration.test_dispatcher import ScriptedSink, event, eventually, running


def events(first: int, count: int, *, size: int = 2) -> Changes:
    numbers = range(first, first + count)
    data = random.Random(size).randbytes(size)
    return Changes(events=tuple(Event(f"evt_{one}", "x", "s1", "g1", 1.0, 1.0, data) for one in numbers))


def known(identifier: str) -> KnownSession:
    return KnownSession(session=DataSession(identifier, "g1", 1.0))


async def away(file: SqliteFile, table: str) -> None:
    """Makes every write to a table fail, at once."""
    await file.read(lambda connection: connection.execute(f"alter table {table} rename to away"))


async def back(file: SqliteFile, table: str) -> None:
    await file.read(lambda connection: connection.execute(f"alter table away rename to {table}"))


async def test_a_full_database_is_reported_once_and_its_end_too(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db", max_pages=40) as file:
        journal, log = Journal(file), EventLog(file)
        await log.open_sink("a", target="t")
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(StoreFull, match="disk is full"):
                    await journal.commit(events(1, 50, size=5000))
                await log.open_sink("a", target="other")
            reported = file.failures.reason
            assert reported is not None, "a small write that succeeds says nothing of a large one"
            await file.read(lambda connection: connection.execute("pragma max_page_count = 10000").fetchall())
            await journal.commit(events(1, 50, size=5000))
        reported = file.failures.reason
        assert reported is None
        assert [one["event"] for one in logs] == ["store.unusable", "store.usable_again"]
        assert logs[0]["error"] == "StoreFull"
        assert len(await log.read(after=0, limit=100)) == 50


async def test_a_full_disk_is_a_full_store_whatever_sqlite_calls_it(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        filler = fill_up(disk)
        with pytest.raises(StoreFull):
            await SqliteFile(disk / "b.db").__aenter__()
        filler.unlink()
        async with SqliteFile(disk / "b.db") as file:
            journal = Journal(file)
            await journal.commit(events(1, 5))
            filler = fill_up(disk)
            with pytest.raises(StoreFull):
                await journal.commit(events(10, 500, size=5000))
            filler.unlink()
            await journal.commit(events(9000, 1))
            assert (await EventLog(file).search())[-1].event.id == "evt_9000"
        filler = fill_up(disk)
        with pytest.raises(StoreFull):
            await SqliteFile(disk / "b.db").__aenter__()
        filler.unlink()
        async with SqliteFile(disk / "b.db") as file:
            assert (await EventLog(file).search())[-1].event.id == "evt_9000"


async def test_a_lock_of_another_process_is_waited_for_only_so_long(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        other = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
        other.execute("begin immediate")
        with capture_logs() as logs:
            async with asyncio.timeout(BUSY_TIMEOUT + 30):  # far more than it takes, for a slow machine
                with pytest.raises(StoreBusy, match="another process holds a lock"):
                    await Journal(file).commit(events(1, 1))
            assert await EventLog(file).read(after=0, limit=9) == [], "to read goes on"
            assert file.failures.reason is not None
            other.close()
            await Journal(file).commit(events(1, 1))
        assert [one["event"] for one in logs] == ["store.unusable", "store.usable_again"]


@pytest.mark.parametrize("beside", [False, True], ids=["the service", "a command beside it"])
async def test_no_other_process_writes_between_what_a_transaction_reads_and_writes(
    tmp_path: Path, beside: bool
) -> None:
    """It would not be waited for: SQLite fails at once where what was read is no longer what is there."""
    path = tmp_path / "b.db"
    async with SqliteFile(path) as service, SqliteFile(path, beside=True) as command:
        other = sqlite3.connect(path, isolation_level=None, timeout=0.0, check_same_thread=False)

        def work(connection: sqlite3.Connection) -> None:
            (count,) = connection.execute("select count(*) from sinks").fetchone()
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("insert into sinks (name, target) values ('other', 't')")
            connection.execute("insert into sinks (name, target) values ('mine', ?)", (count,))

        await (command if beside else service).write(work)
        other.execute("insert into sinks (name, target) values ('other', 't')")
        other.close()
        assert await backlogs(EventLog(service)) == {"mine": 0, "other": 0}


@pytest.mark.parametrize("beside", [False, True], ids=["the service", "a command beside it"])
async def test_what_is_committed_is_on_the_disk(tmp_path: Path, beside: bool) -> None:
    """A power cut cannot be had in a test: SQLite is asked whether it waits for the disk at each commit."""
    full = 2
    async with SqliteFile(tmp_path / "b.db") as service, SqliteFile(tmp_path / "b.db", beside=True) as command:
        asked = command if beside else service
        assert await asked.read(lambda one: one.execute("pragma synchronous").fetchone()) == (full,)


async def test_pages_that_break_while_it_runs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    async with SqliteFile(path) as file:
        await Journal(file).commit(events(1, 500, size=5000))
        assert await file.checkpoint()
        await file.read(lambda connection: connection.execute("pragma cache_size = 1; "))
        await file.read(lambda connection: connection.execute("pragma shrink_memory"))
        middle = path.stat().st_size // 2 // 4096 * 4096
        with path.open("r+b") as raw:
            raw.seek(middle)
            raw.write(random.Random(1).randbytes(40 * 4096))
        with capture_logs() as logs, pytest.raises(StoreCorrupt, match="not a usable database"):
            await EventLog(file).read(after=0, limit=1000, most_bytes=10**9)
        assert [(one["event"], one["error"]) for one in logs] == [("store.unusable", "StoreCorrupt")]
        assert file.failures.reason is not None


Asks = Callable[[SqliteFile], Awaitable[object]]


@pytest.mark.parametrize(
    ("damage", "asks"),
    [
        ("update events set data = substr(data, 1, 20)", lambda file: EventLog(file).read(after=0, limit=9)),
        ("update sessions set known = substr(known, 1, 20)", lambda file: Journal(file).known(["s1"])),
        ("insert into facts values ('watch', '{')", lambda file: Journal(file).poll_state()),
        ("insert into facts values ('trouble', '{')", lambda file: Journal(file).outage()),
        ("insert into facts values ('token:a', '{')", lambda file: Facts(file).load_token("a")),
    ],
    ids=["a compressed event", "a session", "the poll's state", "an outage", "a token"],
)
async def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, damage: str, asks: Asks) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        await Journal(file).commit(replace(events(1, 1, size=5000), known=(known("s1"),)))
        await file.write(lambda connection: connection.execute(damage))
        with capture_logs() as logs, pytest.raises(StoreCorrupt, match="a row is damaged"):
            await asks(file)
        assert [one["event"] for one in logs] == ["store.unusable"]


async def test_a_commit_whose_caller_is_cut_off_is_announced(tmp_path: Path) -> None:
    """As by a reload: what the store's thread has begun it ends, and nothing would deliver it before the next event."""
    grew, changed, begun = list[bool](), list[str](), threading.Event()
    async with SqliteFile(tmp_path / "b.db") as file:
        journal = Journal(file, grew=lambda: grew.append(True), changed=changed.extend)
        other = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
        other.execute("begin immediate")
        await file.read(lambda connection: connection.set_trace_callback(lambda _: begun.set()))
        committing = asyncio.create_task(journal.commit(replace(events(1, 1), known=(known("s1"),))))
        assert await asyncio.to_thread(begun.wait, 60)
        committing.cancel()
        await asyncio.wait((committing,))
        other.close()
        assert committing.cancelled()
        assert len(await EventLog(file).read(after=0, limit=9)) == 1
        assert (grew, changed) == ([True], ["g1"])


async def test_a_record_that_was_cut_off_and_made_again_keeps_each_attempt_once(tmp_path: Path) -> None:
    begun, failed = (
        threading.Event(),
        tuple(FailedAttempt(1, number, 1.0, 0.1, "HTTP 500", 500, "") for number in (1, 2)),
    )
    async with SqliteFile(tmp_path / "b.db") as file:
        other = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
        other.execute("begin immediate")
        await file.read(lambda connection: connection.set_trace_callback(lambda _: begun.set()))
        recording = asyncio.create_task(EventLog(file).record("a", lambda: Progress((), failed), now=2.0))
        assert await asyncio.to_thread(begun.wait, 60)
        recording.cancel()
        await asyncio.wait((recording,))
        other.close()
        await EventLog(file).record("a", lambda: Progress((), failed), now=2.0)
        assert await DeadLetters(file).attempts("a", 1) == list(failed)


async def test_a_link_to_a_store_is_that_store(tmp_path: Path) -> None:
    link, real = tmp_path / "link.db", tmp_path / "real" / "b.db"
    real.parent.mkdir()
    link.symlink_to(real)
    async with SqliteFile(link) as file:
        await Journal(file).commit(events(1, 100, size=1000))
        assert file.wal_bytes == Path(f"{real}-wal").stat().st_size > 0
        assert is_held(link)
        assert is_held(real)
        with pytest.raises(StoreLocked):
            async with SqliteFile(real):
                pass
        Path(f"{real}-wal").rename(tmp_path / "moved")
        with pytest.raises(StoreGone):
            await Journal(file).commit(events(200, 1))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.db", "moved", "real"]


@pytest.mark.parametrize("what", ["b.db", "b.db-wal"])
async def test_a_file_that_is_deleted_or_replaced_is_not_written_to_any_more(tmp_path: Path, what: str) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        await Journal(file).commit(events(1, 1))
        (tmp_path / what).rename(tmp_path / "moved")
        with pytest.raises(StoreGone, match="moved or deleted under the running bridge"):
            await Journal(file).commit(events(2, 1))
        (tmp_path / what).write_bytes((tmp_path / "moved").read_bytes())
        with pytest.raises(StoreGone):
            await EventLog(file).read(after=0, limit=9)
        (tmp_path / "moved").rename(tmp_path / what)
        await Journal(file).commit(events(3, 1))


async def test_a_file_system_that_takes_no_writes_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        async with SqliteFile(disk / "b.db"):
            pass
        make_read_only(disk)
        with pytest.raises(StoreUnusable, match="Read-only file system"):
            await SqliteFile(disk / "b.db").__aenter__()


async def test_a_connection_that_may_only_read_is_named(tmp_path: Path) -> None:
    async with SqliteFile(tmp_path / "b.db") as file:
        await file.read(lambda connection: connection.execute("pragma query_only = on"))
        with pytest.raises(StoreReadOnly):
            await Journal(file).commit(events(1, 1))


# --- those who use it


def acknowledge(sink: ScriptedSink) -> None:
    for identifier in list(sink.flying):
        sink.answer(int(identifier.removeprefix("evt_")))


async def test_while_progress_cannot_be_recorded_nothing_more_is_sent(tmp_path: Path) -> None:
    """What is sent without a record of it comes again after a crash: that must stay a few."""
    sink = ScriptedSink()
    async with running(tmp_path / "b.db", Clock(), sink) as line:
        await line.tell(*(event(number) for number in range(1, 51)))
        await eventually(lambda: len(sink.flying) == sink.window)
        await away(line.file, "lanes")
        for number in (1, 2, 3):
            sink.answer(number)
        for rounds in range(5, 40):
            await eventually(lambda rounds=rounds: len(line.pauses) > rounds)  # type: ignore[misc]  # binds now
            acknowledge(sink)
        assert len(sink.sent) <= 3 * sink.window
        await back(line.file, "lanes")
        async with asyncio.timeout(60):
            while len(sink.sent) < 50 or sink.flying:
                acknowledge(sink)
                await asyncio.sleep(0)
        assert sink.sent == [f"evt_{number}" for number in range(1, 51)]
        await line.done()


async def test_a_token_that_cannot_be_saved_is_kept_and_saved_later(tmp_path: Path) -> None:
    """The refresh token rotates: to ask once more with the old one would be refused."""
    asked: list[str] = []

    async def ask(form: dict[str, str]) -> TokenReply:
        asked.append(form.get("refresh_token", "login"))
        return TokenReply(access_token=f"access{len(asked)}", refresh_token=f"refresh{len(asked)}", expires_in=100)

    clock = Clock()
    async with SqliteFile(tmp_path / "b.db") as file:
        facts = Facts(file)
        tokens = Tokens("me", Credentials("i", "s", "u", "p"), facts, ask, clock=clock)
        assert await tokens.current() == "access1"
        await away(file, "facts")
        clock.forward(90)
        for _ in range(3):
            with pytest.raises(StoreError):
                await tokens.current()
        await back(file, "facts")
        assert await tokens.current() == "access2"
        kept = await facts.load_token("me")
        assert kept is not None
        assert (kept.access, kept.refresh) == ("access2", "refresh2")
        assert asked == ["login", "refresh1"]


class Polls:
    """Polls a cloud that is away until a test brings it back."""

    def __init__(self) -> None:
        self.away = True
        self.made = 0

    async def poll(self) -> None:
        self.made += 1
        if self.away:
            raise CloudUnavailable("no answer")


async def test_an_outage_of_the_cloud_that_cannot_be_written_is_emitted_once_it_can(tmp_path: Path) -> None:
    polls, clock = Polls(), Clock()
    async with SqliteFile(tmp_path / "b.db") as file:

        async def let_pass(_: asyncio.Event, seconds: float) -> None:
            clock.forward(seconds)
            await asyncio.sleep(0)

        loop = SessionLoop(
            polls.poll,
            Journal(file),
            interval=10.0,
            clock=clock,
            monotonic=clock,
            jitter=lambda: 0.0,
            after_poll=lambda: None,
            pause=let_pass,
        )
        await away(file, "events")
        task = asyncio.create_task(loop.run())
        await eventually(lambda: loop.outage.failures > 4)
        assert loop.store_problem is not None
        await back(file, "events")
        log = EventLog(file)
        await _until(log, ["cloud.unreachable"])
        await away(file, "events")
        polls.away = False
        made = polls.made
        await eventually(lambda: polls.made > made + 3)
        assert loop.last_success_at is None
        await back(file, "events")
        await _until(log, ["cloud.unreachable", "cloud.recovered"])
        task.cancel()


async def _until(log: EventLog, types: list[str]) -> None:
    async def reached() -> None:
        while [one.event.type for one in await log.search()] != types:
            await asyncio.sleep(0)

    waiting: Awaitable[None] = reached()
    await asyncio.wait_for(waiting, 60)
