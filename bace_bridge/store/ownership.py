"""Whose file it is, and the locks that keep a second instance out, whatever path leads to the file."""

import contextlib
import errno
import fcntl
import os
import sqlite3
import stat
import struct
from pathlib import Path

import msgspec
import structlog

from bace_bridge.errors import StoreForeign, StoreLocked, StoreUnusable
from bace_bridge.store import faults
from bace_bridge.store.migrations import newest, refuse_newer, tables_in, tables_of

log = structlog.get_logger()

_TAKEN = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}

_FLOCK = "hhqqi"
"""The system's `struct flock`: kind, whence, start, length, process."""

_WAL_HEADER = 32
"""Bytes: a WAL that is not longer holds nothing."""

_OUR_BYTE = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 2**62, 1, 0)
"""The byte of the database that is locked, far beyond its end: SQLite locks others, and no data is there."""


def hold(path: Path) -> list[int]:
    """Keeps other instances out until these descriptors are closed, which must be after SQLite's.

    Creates the file readable by its owner alone: it holds the cloud's tokens. Raises StoreError.
    """
    held: list[int] = []
    try:
        held.append(_open_lock(path))
        fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            held.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise faults.of_system(error, path, " is not writable") from None
        # An open file description's lock: flock would be one on every byte, SQLite's as well, of a network file system.
        try:
            fcntl.fcntl(held[1], fcntl.F_OFD_SETLK, _OUR_BYTE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel that knows no such locks; the one beside is held
                raise
        _make_private(held[1], path)
    except OSError as error:
        let_go(held)
        if error.errno in _TAKEN:
            text = f"{path} is held by another running bace-bridge: stop it, or choose another store.url"
            raise StoreLocked(text) from None
        if error.errno in _NO_LOCKS:
            text = f"{path}: its file system has no locks ({error.strerror}): put the store on a local disk"
            raise StoreUnusable(text) from None
        raise faults.of_system(error, path, " cannot be locked") from None
    except BaseException:
        let_go(held)
        raise
    return held


def let_go(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def is_held(path: Path) -> bool:
    """True while a running instance holds the store.

    Not to be asked by a process that has it open: SQLite's locks end with the first descriptor that is closed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        (kind, *_) = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _OUR_BYTE))
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(kind != fcntl.F_UNLCK)


def refuse_other_path(path: Path) -> None:
    """Raises StoreLocked where a running instance has the file by another path: its -wal is beside that one.

    So by a hard link, or a mount of the file alone. A second WAL would damage the store.
    """
    if is_held(path) and not Path(f"{path}-wal").exists():
        raise StoreLocked(f"{path} is held by a bace-bridge that has it by another path: use that one's store.url")


def _open_lock(path: Path) -> int:
    beside = Path(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if os.access(path.parent, os.W_OK | os.X_OK):
            raise faults.of_system(error, beside, " cannot be opened") from None
        raise faults.of_system(error, path, ": the folder is not writable") from None


def _make_private(fd: int, path: Path) -> None:
    """What others may read they read on, where the file is another user's: that is said."""
    found = os.fstat(fd)
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o077:
        return
    try:
        os.fchmod(fd, 0o600)
    except OSError as error:
        log.warning(
            "store.not_private",
            path=str(path),
            mode=f"{mode:04o}",
            owner=found.st_uid,
            reason=error.strerror,
            then="others may read the cloud's tokens in it: chown it to the service's user",
        )


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
    if found.st_size == 1:  # SQLite takes it for an empty one
        raise _foreign(path, "it holds a single byte")
    try:
        _refuse_foreign(_read(path), path)
    except sqlite3.Error as error:
        raise faults.of_sqlite(error, path) from error
    return True


def _refuse_foreign(found: Found, path: Path) -> None:
    """Raises StoreForeign or StoreNewer."""
    if found.application_id not in {0, APPLICATION_ID}:
        raise _foreign(path, f"its application_id is {found.application_id:#x}")
    # A file without our mark: an earlier version has made it, no version has yet, or others have.
    if found.application_id == 0 and not found.tables and not found.whole:
        raise _foreign(path, "what it holds is in its -wal, and the -shm is missing")
    if found.application_id == 0 and (found.tables or found.version):
        ours = tables_of(min(found.version, newest()))
        if found.version <= newest() and (others := sorted(found.tables - ours)):
            more = ", ..." if len(others) > _MOST_NAMED else ""
            raise _foreign(path, f"it has other tables: {', '.join(others[:_MOST_NAMED])}{more}")
        if ours - found.tables or found.version < 0:
            raise _foreign(path, f"it says schema {found.version}, and has not the tables of that")
    refuse_newer(path, found.version)


def _foreign(path: Path, why: str) -> StoreForeign:
    return StoreForeign(f"{path} is not a store of bace-bridge ({why}), and is left as it is: choose another store.url")


def _read(path: Path) -> Found:
    """Opens it so that SQLite makes no file beside it, and changes none."""
    wal = Path(f"{path}-wal")
    in_wal = wal.exists() and wal.stat().st_size > _WAL_HEADER
    readable = in_wal and _is_initialised(Path(f"{path}-shm"))
    how = "readonly_shm=1" if readable else "immutable=1"
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&{how}", uri=True)) as connection:
        (application_id,) = connection.execute("pragma application_id").fetchone()
        (version,) = connection.execute("pragma user_version").fetchone()
        return Found(application_id, version, tables_in(connection), whole=readable or not in_wal)


def _is_initialised(shm: Path) -> bool:
    """False for one that a kill left half made: a reader would wait 10 s for its writer, and then fail.

    It begins with two copies of a header of 48 bytes, with `isInit` in its byte 12 (SQLite's "WAL-mode file format").
    """
    try:
        with shm.open("rb") as file:
            first, second = file.read(48), file.read(48)
    except OSError:
        return False
    return first == second and bool(first[12:13].strip(b"\0"))


def _ensure_access(path: Path, *, to_write: bool) -> None:
    mode = os.R_OK | os.W_OK if to_write else os.R_OK
    files = (path, Path(f"{path}-wal"), Path(f"{path}-shm"))
    denied = next(((one, "") for one in files if one.exists() and not os.access(one, mode)), None)
    if denied is None and to_write and not os.access(path.parent, os.W_OK | os.X_OK):
        denied = path, ": the folder is not writable"
    if denied is not None:
        one, what = denied
        if os.statvfs(one).f_flag & os.ST_RDONLY:
            raise StoreUnusable(f"{one}{what}: Read-only file system")
        raise faults.not_permitted(one, what)
