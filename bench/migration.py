"""What the migration of a large store of schema 3 costs, killed or not, and that it loses and doubles nothing.

    python -m bench.migration [--mib 1024] [--kills 10] [--folder FOLDER]

The store is written by the code of that time, out of this repository's history.
"""

import argparse
import asyncio
import io
import logging
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import structlog

from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.sqlite import SqliteFile

WRITTEN_BY = "f8ef53d8e14e371b3456d93e28f8528e7d00f3f8"
"""The last commit of schema 3."""

WRITER = """
import asyncio, sys
from pathlib import Path
from bace_bridge.events.types import Event
from bace_bridge.events.types import DeadLetter, FailedAttempt, Parked, Progress, letter_lane
from bace_bridge.polling.rules.changes import Changes, WindowRead
from bace_bridge.polling.rules.datapoints import EmittedPoint
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.polling.rules.windows import WindowState
from bace_bridge.store.eventlog import DeadLetters, Which
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile

path, count, sessions = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
NOW = 1_764_590_400.0

def event(number):
    own = number % 1000 == 0
    session = f"86d70a1b-0000-4000-8000-{number * 7919 % sessions:012d}"
    return Event(f"evt_{number:032x}", "bridge.note" if own else "session.updated", None if own else session,
        None if own else f"4c1c81ca-0000-4000-8000-{number % 20:012d}", NOW + number, NOW + number, b"x" * 640)

def known(number):
    session = DataSession(f"86d70a1b-0000-4000-8000-{number:012d}", f"g{number % 20}", NOW + number,
        end=NOW + number + 60, ingestion_finished=True, updated_at=NOW + number)
    return KnownSession(session=session)

async def main():
    async with SqliteFile(path) as file:
        log, journal = EventLog(file), Journal(file)
        for name in ("home", "hook", "off", "left", "calm"):
            await log.open_sink(name, target="t")
        points = {"x": {NOW + one: EmittedPoint(1.5, 1.0, 1.2, 1, 0) for one in range(60)}}
        for first in range(0, sessions, 500):
            numbers = range(first, min(sessions, first + 500))
            reads = tuple(WindowRead(known(n).session.id, WindowState(int(NOW), int(NOW) + 3600, 0), points)
                for n in numbers if n % 4 == 0)
            await journal.commit(Changes(known=tuple(map(known, numbers)), windows=reads))
        for first in range(0, count, 2000):
            await journal.commit(Changes(events=tuple(map(event, range(first, min(count, first + 2000))))))
        lane = lambda n: f"86d70a1b-0000-4000-8000-{n * 7919 % sessions:012d}"
        at = lambda part: max(1, int(count * part))
        # parked: places that the cursor has passed; under way: the same without a failure; letters: single events
        parked = {}
        for n in range(at(0.1), at(0.2), max(1, at(0.1) // 1500)):
            if n % 1000:
                parked.setdefault(lane(n), Parked(lane(n), n + 1, n % 9, NOW + n, "HTTP 500", n % 2 * (n - 500)))
        for n in range(at(0.21), at(0.22), max(1, at(0.01) // 200)):
            if n % 1000:
                parked.setdefault(lane(n), Parked(lane(n), n + 1, 0, 0.0, "under way"))
        letters = [Parked(letter_lane(n), n, 1, NOW + n, "HTTP 500") for n in range(at(0.01), at(0.011) + 50, 17)]
        dead = tuple(DeadLetter(n, lane(n - 1), 10, "gave up: HTTP 500")
            for n in range(at(0.02), at(0.03), max(1, at(0.01) // 1000)))
        failed = tuple(FailedAttempt(n.seq, 1, NOW, 0.1, "HTTP 500", 500, "no") for n in dead)
        await log.record("hook", Progress(at(0.25), (*parked.values(), *letters), (), dead, failed), now=NOW)
        await log.record("home", Progress(at(0.6)), now=NOW)
        await log.record("off", Progress(at(0.3), tuple(parked.values())[:50]), now=NOW)
        await log.record("left", Progress(at(0.26), tuple(parked.values())[50:90]), now=NOW)
        await log.record("calm", Progress(count), now=NOW)
        await log.disable("off", "HTTP 410", event(count + 1), now=NOW)
        await log.retire_others(["home", "hook", "off", "calm"])
        await log.ask_replay("home", session=None, since=NOW + count * 0.55)
        await log.ask_replay("calm", session=lane(1), since=None)
        await log.ask_replay("hook", session=None, since=NOW + count * 0.18)
        await log.ask_replay("left", session=lane(5), since=None)
        await log.ask_replay("new", session=lane(7), since=None)
        which = Which(sink="hook", events=tuple(f"evt_{one.seq - 1:032x}" for one in dead[:100]))
        await DeadLetters(file).retry(which)

asyncio.run(main())
"""

OPENER = """
import logging, structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
import asyncio, sys
from pathlib import Path
from bace_bridge.store.sqlite import SqliteFile
async def main():
    async with SqliteFile(Path(sys.argv[1])):
        pass
asyncio.run(main())
"""

Places = dict[tuple[str, str], int]
"""The place of the first event that a sink has still to get of a lane, by sink and lane."""

BYTES_OF_AN_EVENT = 900
BRIDGE_LANE, LETTER = ":bridge", "letter:"


def old_code(folder: Path) -> Path:
    packed = subprocess.run(["git", "archive", WRITTEN_BY, "bace_bridge"], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def write(path: Path, mib: int, code: Path) -> None:
    events = mib * 2**20 // BYTES_OF_AN_EVENT
    command = [sys.executable, "-c", WRITER, str(path), str(events), str(max(50, events // 20))]
    subprocess.run(command, check=True, cwd=code, env={**os.environ, "PYTHONPATH": str(code)})


def expected(path: Path) -> tuple[Places, Places]:
    """What waits in a store of schema 3: of sinks that are called, and of those that are not once they come back."""
    connection = sqlite3.connect(path)
    last = dict(connection.execute("select coalesce(session_id, ':bridge'), max(seq) from events group by session_id"))
    called, others = Places(), Places()
    sinks = connection.execute("select name, cursor, disabled_at is null and not retired from sinks").fetchall()
    (end,) = connection.execute("select max(seq) from events").fetchone()
    names = {name for name, *_ in sinks}
    asking = [name for (name,) in connection.execute("select distinct sink from asked") if name not in names]
    for sink, cursor, is_called in [*sinks, *((name, end, False) for name in asking)]:
        query = "select coalesce(session_id, ':bridge'), min(seq) from events where seq > ? group by session_id"
        places = dict(connection.execute(query, (cursor,)))
        places.update(connection.execute("select key, seq from parked where sink = ?", (sink,)))
        for lane, seq in connection.execute("select key, seq from asked where sink = ?", (sink,)):
            places[lane] = min(seq, places.get(lane, seq))
        for lane, seq in places.items():
            if lane.startswith(LETTER) or seq <= last.get(lane, 0):
                (called if is_called else others)[sink, lane] = seq
    connection.close()
    return called, others


def found(path: Path, *, called: bool) -> Places:
    connection = sqlite3.connect(path)
    last = dict(connection.execute("select coalesce(session_id, ':bridge'), max(seq) from events group by session_id"))
    sinks = {
        row[0] for row in connection.execute("select name from sinks where (routed_through is null) = ?", (called,))
    }
    rows = connection.execute("select sink, lane, seq from lanes").fetchall()
    connection.close()
    return {
        (sink, lane): seq
        for sink, lane, seq in rows
        if sink in sinks and (lane.startswith(LETTER) or seq <= last.get(lane, 0))
    }


def content(path: Path) -> list[tuple[object, ...]]:
    """What a migration must not touch: the events, dead letters and attempts, and how many there are of the rest."""
    connection = sqlite3.connect(path)
    rows = [
        connection.execute("select count(*), sum(seq), max(seq), sum(length(data)), min(id), max(id) from events"),
        connection.execute("select count(*), sum(seq), min(sink), max(key), sum(attempts) from dead_letters"),
        connection.execute("select count(*), sum(seq), sum(id) from attempts"),
        connection.execute("select count(*), min(id), max(id), sum(updated_at) from sessions"),
        connection.execute("select count(*), min(session_id), max(session_id) from windows"),
    ]
    all_rows = [row for cursor in rows for row in cursor]
    connection.close()
    return all_rows


def migrate(path: Path, *, kill_after: float | None = None) -> tuple[float, bool]:
    """The seconds that opening took in a process of its own, and whether it was killed before its end."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", OPENER, str(path)])
    try:
        code = process.wait(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return time.perf_counter() - started, True
    assert code == 0, code
    return time.perf_counter() - started, False


async def bring_back(path: Path) -> None:
    async with SqliteFile(path) as file:
        for sink in ("off", "left", "new"):
            await EventLog(file).open_sink(sink, target="another")


def check(path: Path, before: list[tuple[object, ...]], places: tuple[Places, Places]) -> None:
    assert content(path) == before
    called, others = places
    assert found(path, called=True) == called
    started = time.perf_counter()
    asyncio.run(bring_back(path))
    print(f"  three sinks came back in {time.perf_counter() - started:.1f} s")
    assert found(path, called=True) == {**called, **others}


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(prog="python -m bench.migration")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the stores are written, default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        old = folder / "old.db"
        write(old, given.mib, old_code(folder / "code"))
        places, before = expected(old), content(old)
        print(f"{old.stat().st_size / 2**20:.0f} MiB, {before[0][0]} events, lanes with a backlog: {len(places[0])}")
        path = folder / "bridge.db"
        shutil.copy(old, path)
        seconds, _ = migrate(path)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"copied and migrated in {seconds:.1f} s; largest process so far {peak:.0f} MiB")
        check(path, before, places)
        kill(old, path, seconds, given.kills, before, places)


def kill(
    old: Path, path: Path, seconds: float, kills: int, before: list[tuple[object, ...]], places: tuple[Places, Places]
) -> None:
    """Kills migrations over and over, each time at another moment, until they come through."""
    randomly, killed = random.Random(1), 0
    while killed < kills:
        for one in path.parent.glob(f"{path.name}*"):
            one.unlink()
        shutil.copy(old, path)
        while migrate(path, kill_after=randomly.uniform(0.1, seconds))[1]:
            killed += 1
        check(path, before, places)
        (copy,) = path.parent.glob(f"{path.name}.before-v*")
        assert expected(copy) == places
        assert content(copy) == before
    print(f"killed {killed} times: nothing lost or doubled, and the copies are whole")


if __name__ == "__main__":
    main()
