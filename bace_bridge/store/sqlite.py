"""The SQLite file: one connection in one thread, one instance a file."""

import asyncio
import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import structlog

from bace_bridge.errors import StoreError, StoreGone, StoreMissing, StoreUnusable
from bace_bridge.store import faults
from bace_bridge.store.faults import Side, StoreFailures, after_use
from bace_bridge.store.migrations import migrate, refuse_other
from bace_bridge.store.ownership import APPLICATION_ID, hold, let_go, recognise, refuse_other_path

log = structlog.get_logger()

T = TypeVar("T")

Identity = tuple[int, int] | None
"""Device and inode; None where there is no such file."""

JOURNAL_SIZE_LIMIT = 16 * 1024 * 1024

BUSY_TIMEOUT = 2.0
"""Seconds that another process's lock is waited for: everything else waits behind it, so no longer than this."""


class SqliteFile:
    """Runs functions on the connection, each in a transaction, in the order in which they were asked for.

    `max_pages` bounds the database as a full disk would. With `beside` it is written to without the lock, as a command
    does whose bridge is running.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        beside: bool = False,
        max_pages: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = real_path(path)
        self._wal = Path(f"{self._path}-wal")
        self._read_only = read_only
        self._beside = beside
        self._max_pages = max_pages
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._held: list[int] = []
        self._at_rest: tuple[int, int] | None = None
        self._identity: list[Identity] | None = None
        self._data_version = 0
        self.wal_bytes = 0
        self.used = 0
        """Bytes in use after the last write: the pages that hold something, and the WAL."""
        self.failures = StoreFailures()

    async def __aenter__(self) -> Self:
        """Raises StoreLocked, StoreUnusable, StoreMissing (where it may not be made) or StoreError."""
        loop = asyncio.get_running_loop()
        try:
            self._connection = await loop.run_in_executor(self._thread, self._open)
        except BaseException:
            self._thread.shutdown()
            let_go(self._held)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()
        let_go(self._held)

    async def write(self, work: Callable[[sqlite3.Connection], T], *, side: Side = "deliveries") -> T:
        """One durable transaction. Raises StoreError; then nothing of it has happened."""
        return await self._run(lambda connection: self._in_transaction(connection, work), side)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(work, "reading")

    async def changed_elsewhere(self) -> bool:
        """True where another process has written since the last call."""
        before = self._data_version
        (self._data_version,) = await self.read(lambda one: one.execute("pragma data_version").fetchone())
        return before != self._data_version

    @property
    def outdated(self) -> bool:
        """True where it was read as a file without a writer, and that has changed: open it again."""
        if self._at_rest is None:
            return False
        return self._wal.exists() or self._size_and_time() != self._at_rest

    async def checkpoint(self) -> bool:
        """Brings the WAL into the database and empties it; False where another process's reading keeps it."""

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("pragma busy_timeout = 0")
            try:
                (busy, _, _) = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
            finally:
                connection.execute(f"pragma busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
            self._measure(connection)
            return not busy

        return await self._run(work, "upkeep")

    async def _run(self, work: Callable[[sqlite3.Connection], T], side: Side) -> T:
        """In the store's thread; notes how it went."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._translated, work)
        except StoreError as error:
            self._say(before := self.failures, after_use(before, side, str(error), now=self._clock()), error)
            raise
        if self.failures.failing:
            self._say(before := self.failures, after_use(before, side, None, now=self._clock()))
        return result

    def _say(self, before: StoreFailures, after: StoreFailures, error: StoreError | None = None) -> None:
        """Each outage once, and its end; by the instance that holds the store, since a command says it by itself."""
        self.failures = after
        if not self._held:
            return
        if after.failing and not before.failing:
            final = isinstance(error, StoreUnusable)
            then = "needs repair by hand; the bridge stops" if final else "nothing is skipped; retrying"
            log.error("store.unusable", error=type(error).__name__, reason=str(error), then=then)
        elif before.failing and not after.failing:
            log.info("store.usable_again")

    def _in_transaction(self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        if connection.in_transaction:
            connection.execute("rollback")
        connection.execute("begin immediate")
        try:
            result = work(connection)
            connection.execute("commit")
        except BaseException:
            # Where even this fails, the first error says why, and the next transaction begins with it.
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("rollback")
            raise
        self._measure(connection)
        return result

    def _translated(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None
        # SQLite would go on with a file that has no name any more, and a restart would find nothing of it.
        if self._identity is not None and self._identities() != self._identity:
            raise StoreGone(f"{self._path} was moved or deleted under the running bridge: put it back, and start again")
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise faults.of_sqlite(error, self._path) from error
        except (zlib.error, msgspec.DecodeError) as error:
            # What SQLite gave without complaint and cannot be read: a page has no checksum.
            raise faults.corrupt(self._path, f"a row is damaged: {error}") from error

    def _identities(self) -> list[Identity]:
        """Of the database and its WAL."""
        found: list[Identity] = []
        for path in (self._path, self._wal):
            try:
                one = os.stat(path)  # noqa: PTH116  # before each use: twice as fast as Path
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((one.st_dev, one.st_ino))
        return found

    def _measure(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("pragma page_count").fetchone()
        (free,) = connection.execute("pragma freelist_count").fetchone()
        (size,) = connection.execute("pragma page_size").fetchone()
        with contextlib.suppress(FileNotFoundError):  # the next use says that it is gone
            self.wal_bytes = os.stat(self._wal).st_size  # noqa: PTH116  # after each write: twice as fast as Path
        self.used = (pages - free) * size + self.wal_bytes

    def _open(self) -> sqlite3.Connection:
        """Nothing is changed, and no file made, before it is known that the file is ours."""
        there = recognise(self._path, to_write=not self._read_only)
        if not there and (self._read_only or self._beside):
            raise StoreMissing(f"no store at {self._path} yet")
        if self._read_only or self._beside:
            refuse_other_path(self._path)
        else:
            self._held = hold(self._path)
        try:
            connection = self._connect()
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise faults.of_sqlite(error, self._path) from error
        return connection

    def _connect(self) -> sqlite3.Connection:
        if not self._read_only:
            return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT)
        how = "mode=ro"
        if not self._wal.exists():
            # No process has it open. SQLite would make -wal and -shm, and leave them.
            self._at_rest, how = self._size_and_time(), "mode=ro&immutable=1"
        return sqlite3.connect(f"{self._path.as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False)

    def _size_and_time(self) -> tuple[int, int]:
        """Zeros where it has just been moved away."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def _set_up(self, connection: sqlite3.Connection) -> None:
        if self._read_only:
            connection.execute("pragma query_only = on")
            refuse_other(connection, self._path)
            return
        if self._beside:
            refuse_other(connection, self._path)
        # First of all, and so not into a WAL: whatever ends the first start, the file itself says whose it is.
        elif connection.execute("pragma application_id").fetchone() != (APPLICATION_ID,):
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute(f"pragma journal_size_limit = {JOURNAL_SIZE_LIMIT}")
        if self._max_pages is not None:
            connection.execute(f"pragma max_page_count = {self._max_pages}")
        if self._beside:
            return
        migrate(connection, self._path)
        self._identity = self._identities()
        self._measure(connection)


def real_path(path: Path) -> Path:
    """SQLite puts its WAL beside the file that a link leads to; the lock and the copies belong there as well."""
    return Path(os.path.realpath(path))


PACKED_FROM = 2048
"""Bytes from which on it is compressed: session events stay readable for people."""

_PACKED = b"\0z"
"""Neither JSON nor a map of MessagePack begins so."""

_LEVEL = 1  # the fastest: the store has one thread, and wear counts more than the last tenth of room


def pack(data: bytes) -> bytes:
    return _PACKED + zlib.compress(data, _LEVEL) if len(data) >= PACKED_FROM else data


def unpack(data: bytes) -> bytes:
    return zlib.decompress(data[len(_PACKED) :]) if data.startswith(_PACKED) else data
