"""The SQLite file: one connection in one thread, one instance a file, numbered migrations."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from bace_bridge.errors import StoreError, StoreLocked, StoreUnusable

log = structlog.get_logger()

T = TypeVar("T")

JOURNAL_SIZE_LIMIT = 16 * 1024 * 1024


class SqliteFile:
    """Runs functions on the connection, each in a transaction, in the order in which they were asked for."""

    def __init__(self, path: Path, *, read_only: bool = False, beside: bool = False) -> None:
        """With `beside` it is written to without the lock, as a command does whose bridge is running."""
        self._path = path
        self._read_only = read_only
        self._beside = beside
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None
        self._lock_fd: int | None = None

    async def __aenter__(self) -> Self:
        """Raises StoreLocked, StoreUnusable or StoreError."""
        loop = asyncio.get_running_loop()
        try:
            if not (self._read_only or self._beside):
                self._lock_fd = _lock(self._path)
            self._connection = await loop.run_in_executor(self._thread, self._open)
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._release()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One durable transaction. Raises StoreError; then nothing of it has happened."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_transaction, work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._translated, work)

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("begin immediate")
            try:
                result = work(connection)
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
            return result

        return self._translated(transaction)

    def _translated(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error

    def _open(self) -> sqlite3.Connection:
        try:
            if self._read_only:
                uri = f"{self._path.resolve().as_uri()}?mode=ro"
                connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
                connection.execute("pragma query_only = on")
                _refuse_newer(connection, self._path)
                return connection
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute(f"pragma journal_size_limit = {JOURNAL_SIZE_LIMIT}")
            if self._beside:
                _refuse_other(connection, self._path)
                return connection
            migrate(connection, self._path)
        except sqlite3.Error as error:
            raise _translate(error, self._path) from error
        return connection

    def _release(self) -> None:
        self._thread.shutdown()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the schema to this version: each numbered step in a transaction of its own."""
    version = _refuse_newer(connection, path)
    for number, script in _migrations():
        if number > version:
            connection.executescript(f"begin immediate;\n{script}\npragma user_version = {number};\ncommit;")
            log.debug("store.migrated", version=number)


def _refuse_newer(connection: sqlite3.Connection, path: Path) -> int:
    (version,) = connection.execute("pragma user_version").fetchone()
    newest = max(number for number, _ in _migrations())
    if version > newest:
        raise StoreUnusable(
            f"{path} was written by a newer bace-bridge (schema {version}, this one knows {newest}): run that version"
        )
    return int(version)


def _refuse_other(connection: sqlite3.Connection, path: Path) -> None:
    """Migrations belong to the service: what stands beside it takes the store as this very version left it."""
    version, newest = _refuse_newer(connection, path), max(number for number, _ in _migrations())
    if version < newest:
        raise StoreUnusable(
            f"{path} was written by an older bace-bridge (schema {version}, this one knows {newest}): "
            "start this version's service once"
        )


def is_held(path: Path) -> bool:
    """True while a running instance holds the store."""
    try:
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _migrations() -> list[tuple[int, str]]:
    scripts = sorted((one for one in (files("bace_bridge") / "store" / "schema").iterdir()), key=lambda one: one.name)
    return [(int(one.name[:4]), one.read_text("utf-8")) for one in scripts if one.name.endswith(".sql")]


def _lock(path: Path) -> int:
    """Holds `<file>.lock` and creates the database readable by its owner alone: it holds the cloud's tokens."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"{path}: the folder is not writable: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreLocked(
            f"{path} is held by another running bace-bridge: stop it, or choose another store.url"
        ) from None
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as error:
        os.close(fd)
        raise StoreUnusable(f"{path} is not writable: {error.strerror}") from None
    return fd


def _translate(error: sqlite3.Error, path: Path) -> StoreError:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreUnusable(f"{path} is not a usable database ({error}): restore it or move it away")
    if code.startswith("SQLITE_FULL"):
        return StoreError(f"{path}: the disk is full")
    return StoreError(f"{path}: {error}")
