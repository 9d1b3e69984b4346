"""Whose file `store.url` names: found out before anything of it, or beside it, is changed."""

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

import msgspec

from bace_bridge.errors import StoreForeign, StoreUnusable
from bace_bridge.store import faults
from bace_bridge.store.migrations import newer, newest, tables_in, tables_of

APPLICATION_ID = 0x62616365
"""`bace` in the header of each of our stores; `docs/delivery.md` names it. Stores of earlier versions have 0."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)

_MOST_NAMED = 3


class Found(msgspec.Struct, frozen=True):
    """What SQLite shows of a file. Not `whole`: some of it lies in a WAL that only a writer could read."""

    application_id: int
    version: int
    tables: frozenset[str]
    whole: bool = True


def recognise(path: Path, *, to_write: bool) -> bool:
    """True where there is a store of ours; False where there is none yet: no file, or an empty one.

    Raises StoreUnusable: it is something else, of a newer version, or not for this user.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        no_folder = isinstance(error, NotADirectoryError)
        raise faults.of_system(
            error, path, ": the folder is not writable" if no_folder else " cannot be opened"
        ) from None
    if kind := next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), None):
        raise StoreUnusable(f"{path} is {kind}, not a file: choose another store.url")
    _ensure_access(path, to_write=to_write)
    if not found.st_size:
        return False
    try:
        refuse_foreign(_read(path), path)
    except sqlite3.Error as error:
        raise faults.of_sqlite(error, path) from error
    return True


def refuse_foreign(found: Found, path: Path) -> None:
    """Raises StoreForeign or StoreNewer."""
    if found.application_id not in {0, APPLICATION_ID}:
        raise _foreign(path, f"its application_id is {found.application_id:#x}")
    if found.application_id == 0:
        _refuse_other_tables(found, path)
    if found.version > newest():
        raise newer(path, found.version)


def _refuse_other_tables(found: Found, path: Path) -> None:
    """Of a file without our mark: an earlier version has made it, nobody has yet, or others have."""
    if not found.tables and not found.whole:
        raise _foreign(path, "what it holds is in its -wal, and the -shm is missing")
    if not found.tables and not found.version:
        return
    ours = tables_of(min(found.version, newest()))
    if found.version <= newest() and (others := sorted(found.tables - ours)):
        more = ", ..." if len(others) > _MOST_NAMED else ""
        raise _foreign(path, f"it has other tables: {', '.join(others[:_MOST_NAMED])}{more}")
    if ours - found.tables or found.version < 0:
        raise _foreign(path, f"it says schema {found.version}, and has not the tables of that")


def _foreign(path: Path, why: str) -> StoreForeign:
    return StoreForeign(f"{path} is not a store of bace-bridge ({why}), and is left as it is: choose another store.url")


def _read(path: Path) -> Found:
    """Opens it so that SQLite makes no file beside it, and changes none."""
    wal = Path(f"{path}-wal")
    in_wal = wal.exists() and wal.stat().st_size > 0
    readable = in_wal and Path(f"{path}-shm").exists()
    how = "readonly_shm=1" if readable else "immutable=1"
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&{how}", uri=True)) as connection:
        (application_id,) = connection.execute("pragma application_id").fetchone()
        (version,) = connection.execute("pragma user_version").fetchone()
        return Found(application_id, version, tables_in(connection), whole=readable or not in_wal)


def _ensure_access(path: Path, *, to_write: bool) -> None:
    for one in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if one.exists() and not os.access(one, os.R_OK | os.W_OK if to_write else os.R_OK):
            raise _no_access(one, "")
    if to_write and not os.access(path.parent, os.W_OK | os.X_OK):
        raise _no_access(path, ": the folder is not writable")


def _no_access(path: Path, what: str) -> StoreUnusable:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return StoreUnusable(f"{path}{what}: Read-only file system")
    return faults.not_permitted(path, what)
