"""One instance a store: by a lock beside it, and by one on the file itself, whatever path leads to it."""

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

import structlog

from bace_bridge.errors import StoreError, StoreLocked, StoreUnusable
from bace_bridge.store import faults

log = structlog.get_logger()

_TAKEN = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}

_FLOCK = "hhqqi"
"""The system's `struct flock`: kind, whence, start, length, process."""

_FAR_BEYOND = 2**62
"""The byte of the database that is locked: SQLite locks others, and no data is there."""


def hold(path: Path) -> list[int]:
    """Keeps other instances out until these descriptors are closed, which must be after SQLite's.

    Creates the file readable by its owner alone: it holds the cloud's tokens. Raises StoreError.
    """
    held: list[int] = []
    try:
        held.append(_open_lock(path))
        _lock_beside(held[0], path)
        held.append(_open_private(path))
        _lock_itself(held[1], path)
        _make_private(held[1], path)
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
        (kind, *_) = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _our_byte()))
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(kind != fcntl.F_UNLCK)


def _open_lock(path: Path) -> int:
    beside = Path(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if os.access(path.parent, os.W_OK | os.X_OK):
            raise faults.of_system(error, beside, " cannot be opened") from None
        raise faults.of_system(error, path, ": the folder is not writable") from None


def _lock_beside(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _not_locked(error, path) from None


def _open_private(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise faults.of_system(error, path, " is not writable") from None


def _lock_itself(fd: int, path: Path) -> None:
    """An open file description's lock: flock would be one on every byte, SQLite's as well, of a network file system."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _our_byte())
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that knows no such locks; the one beside is held
            raise _not_locked(error, path) from None


def _our_byte() -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _FAR_BEYOND, 1, 0)


def _not_locked(error: OSError, path: Path) -> StoreError:
    if error.errno in _TAKEN:
        return StoreLocked(f"{path} is held by another running bace-bridge: stop it, or choose another store.url")
    if error.errno in _NO_LOCKS:
        return StoreUnusable(f"{path}: its file system has no locks ({error.strerror}): put the store on a local disk")
    return faults.of_system(error, path, " cannot be locked")


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
