"""The numbered steps that bring a store of an earlier version to this one, and the copy that is made before them."""

import contextlib
import os
import shutil
import sqlite3
import time
from importlib.resources import files
from pathlib import Path

import structlog

from bace_bridge.errors import StoreMissing, StoreNewer, StoreOlder

log = structlog.get_logger()

PAGES_AT_ONCE = 10_000
"""Pages that are copied in one step."""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the schema to this version: each numbered step in a transaction of its own."""
    (version,) = connection.execute("pragma user_version").fetchone()
    refuse_newer(path, version)
    if version == (to := newest()):
        return
    started = time.monotonic()
    if version > 0:
        log.info("store.migrating", path=str(path), schema=version, to=to)
        _copy(connection, path, version, to)
    for number, script in _steps():
        if number > version:
            # The version with the step, in its transaction: a migration that is killed goes on where it was.
            connection.executescript(f"begin immediate;\n{script}\npragma user_version = {number};\ncommit;")
            log.debug("store.migration_step", schema=number)
    if version > 0:
        log.info("store.migrated", schema=to, seconds=round(time.monotonic() - started, 1))


def refuse_newer(path: Path, version: int) -> None:
    """Raises StoreNewer where this bace-bridge does not know the version."""
    if version > newest():
        raise StoreNewer(
            f"{path} was written by a newer bace-bridge (schema {version}, this one knows {newest()}): run that version"
        )


def refuse_other(connection: sqlite3.Connection, path: Path) -> None:
    """Migrations belong to the service: what stands beside it takes the store as this very version left it.

    Raises StoreMissing where nothing has been made in the file yet, StoreNewer or StoreOlder.
    """
    (version,) = connection.execute("pragma user_version").fetchone()
    refuse_newer(path, version)
    if not version:
        raise StoreMissing(f"no store at {path} yet")
    if version < newest():
        raise StoreOlder(
            f"{path} was written by an older bace-bridge (schema {version}, this one knows {newest()}): "
            "start this version's service once"
        )


def newest() -> int:
    """The version of the schema that this bace-bridge makes."""
    return _steps()[-1][0]


def tables_of(version: int) -> frozenset[str]:
    """The tables of a store of that version."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for number, script in _steps():
            if number <= version:
                connection.executescript(script)
        return tables_in(connection)


def tables_in(connection: sqlite3.Connection) -> frozenset[str]:
    """Tables and views, without SQLite's own."""
    rows = connection.execute("select name from sqlite_master where type in ('table', 'view')")
    return frozenset(name for (name,) in rows if not name.startswith("sqlite_"))


def _steps() -> list[tuple[int, str]]:
    scripts = sorted((one for one in (files("bace_bridge") / "store" / "schema").iterdir()), key=lambda one: one.name)
    return [(int(one.name[:4]), one.read_text("utf-8")) for one in scripts if one.name.endswith(".sql")]


def _copy(connection: sqlite3.Connection, path: Path, version: int, to: int) -> None:
    """Copies the store where there is room; where there is none, or it fails, the migration goes on without.

    A migration that was killed has left the copy already. Of a copy and the store the older one is kept: that is what
    its people may want back. Copies before earlier migrations go.
    """
    copy = path.with_name(f"{path.name}.before-v{to}")
    part = copy.with_name(f"{copy.name}.part")
    if _version_of(copy) in range(1, version):
        return
    (pages,) = connection.execute("pragma page_count").fetchone()
    (page_size,) = connection.execute("pragma page_size").fetchone()
    try:
        part.unlink(missing_ok=True)  # a start that was killed has left it: it must not take the room
        free = shutil.disk_usage(path.parent).free
        if free < 2 * pages * page_size:  # the migration needs room as well
            log.warning("store.not_copied", reason="there is not enough room", free=free, store=pages * page_size)
            return
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # readable by its owner, as the store is
        # By SQLite, so that what is in the WAL is in it. It is synced as a whole, and deleted where it is not finished.
        with contextlib.closing(sqlite3.connect(part)) as target:
            target.execute("pragma journal_mode = off")
            target.execute("pragma synchronous = off")
            connection.backup(target, pages=PAGES_AT_ONCE, sleep=0)
        _sync(part)
        part.replace(copy)
        _sync(path.parent)  # a new name is durable only with its folder
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        log.warning("store.not_copied", reason=str(error))
        return
    log.info("store.copied", to=str(copy), then="it may be deleted when this version is known to work")
    for other in range(1, to):
        path.with_name(f"{path.name}.before-v{other}").unlink(missing_ok=True)


def _version_of(copy: Path) -> int | None:
    """The version of a copy, or None where there is none that can be read."""
    if not copy.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{copy.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as one:
            return int(one.execute("pragma user_version").fetchone()[0])
    except sqlite3.Error:
        return None


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
