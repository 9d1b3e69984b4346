"""The store's faults: which side of it fails and why, so that each is reported once and not at each attempt."""

import contextlib
import errno
import os
import pwd
import sqlite3
from pathlib import Path
from typing import Literal

import msgspec

from bace_bridge.errors import StoreBusy, StoreCorrupt, StoreError, StoreFault, StoreFull, StoreReadOnly, StoreUnusable

FORGOTTEN_AFTER = 60.0
"""Seconds after which a failure counts no more, once anything was written: what failed need not come again."""

Side = Literal["reading", "known", "deliveries", "facts", "upkeep"]
"""Who uses the store. A small write may succeed where a large one finds no room, so each counts by itself."""


class Failure(msgspec.Struct, frozen=True):
    reason: str
    at: float


class StoreFailures(msgspec.Struct, frozen=True):
    """What fails now, by side, the first one first."""

    failing: dict[Side, Failure] = {}

    @property
    def reason(self) -> str | None:
        return next((failure.reason for failure in self.failing.values()), None)


def after_use(before: StoreFailures, side: Side, problem: str | None, *, now: float) -> StoreFailures:
    """What fails after one side has used the store; `problem` is why that failed, None where it did not."""
    if problem is not None:
        return StoreFailures({**before.failing, side: Failure(problem, now)})
    # That reading works proves nothing about writing: a full disk can be read.
    return StoreFailures(
        {
            other: failure
            for other, failure in before.failing.items()
            if other != side and (side == "reading" or now - failure.at < FORGOTTEN_AFTER)
        }
    )


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_LEAST_ROOM = 64 * 1024
"""Bytes: SQLite reports a disk that is full as an I/O error where it cannot enlarge its `-shm` file."""


def of_sqlite(error: sqlite3.Error, path: Path) -> StoreError:
    # Extended codes (SQLITE_IOERR_SHMSIZE, ...) begin with the plain one; errors of Python's own module have none.
    name = getattr(error, "sqlite_errorname", "") or ""
    code = "_".join(name.split("_")[:2])
    if code in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return corrupt(path, str(error))
    if code == "SQLITE_FULL" or (code in {"SQLITE_IOERR", "SQLITE_CANTOPEN"} and _is_full(path)):
        return StoreFull(f"{path}: the disk is full")
    if code in {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"}:
        return StoreBusy(f"{path}: another process holds a lock on it, perhaps an open sqlite3 shell ({error})")
    if code == "SQLITE_READONLY":
        return StoreReadOnly(f"{path} cannot be written to: {error}")
    if code in {"SQLITE_IOERR", "SQLITE_CANTOPEN"}:
        return StoreFault(f"{path}: the system failed to read or write it: {error} ({name})")
    return StoreError(f"{path}: {error}")


def of_system(error: OSError, path: Path, what: str) -> StoreError:
    """What kept the file from being made or opened at the start."""
    if error.errno in _NO_ROOM:
        return StoreFull(f"{path}: the disk is full")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return not_permitted(path, what)
    return StoreUnusable(f"{path}{what}: {error.strerror}")


def not_permitted(path: Path, what: str = "") -> StoreUnusable:
    """The file, or its folder, is another user's."""
    # By name, for the usual mistake is a command that was run as root once and has left a file of root's.
    owner = ""
    with contextlib.suppress(OSError, KeyError):
        owner = f" ({path.name} belongs to {pwd.getpwuid(path.stat().st_uid).pw_name})"
    return StoreUnusable(f"{path}{what}: permission denied: run it as the service's user{owner}")


def corrupt(path: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"{path} is not a usable database ({why}): restore it, or move it and its -wal and -shm away together"
    )


def _is_full(path: Path) -> bool:
    try:
        system = os.statvfs(path.parent)
    except OSError:
        return False
    # No blocks at all: a file system that does not count them.
    return system.f_blocks > 0 and system.f_bavail * system.f_frsize < _LEAST_ROOM
