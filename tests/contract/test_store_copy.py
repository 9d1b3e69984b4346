"""The copy of a store that is made before it is migrated."""

import shutil
import sqlite3
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from tests.contract.test_migrations import SCRIPTS, opened, store_of_schema_3, version_of

COPY = f"b.db.before-v{len(SCRIPTS)}"


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of an earlier version."""
    path = tmp_path / "b.db"
    store_of_schema_3(path)
    return path


async def test_an_older_store_is_copied_before_it_is_migrated(store: Path) -> None:
    before = dump(store)
    with capture_logs() as logs:
        await opened(store)
    copy = store.with_name(COPY)
    assert (version_of(copy), version_of(store)) == (3, len(SCRIPTS))
    assert dump(copy) == before
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600, "it holds the cloud's tokens"
    (copied,) = [one for one in logs if one["event"] == "store.copied"]
    assert copied["to"] == str(copy)


async def test_what_lies_in_the_wal_is_copied_as_well(store: Path) -> None:
    writer = sqlite3.connect(store)
    writer.execute("pragma journal_mode = wal")
    writer.execute("insert into facts values ('late', 'yes')")
    writer.commit()
    shutil.copy(store, store.with_name("c.db"))
    shutil.copy(f"{store}-wal", store.with_name("c.db-wal"))
    writer.close()
    await opened(store.with_name("c.db"))
    assert "INSERT INTO \"facts\" VALUES('late','yes');" in dump(store.with_name(f"c.db.before-v{len(SCRIPTS)}"))


async def test_a_new_store_and_one_of_this_version_are_not_copied(tmp_path: Path) -> None:
    await opened(tmp_path / "b.db")
    await opened(tmp_path / "b.db")
    assert not [one.name for one in tmp_path.iterdir() if "before" in one.name or "part" in one.name]


async def test_without_room_the_migration_goes_on_and_says_so(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2 * store.stat().st_size - 1
    monkeypatch.setattr("bace_bridge.store.migrations.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with capture_logs() as logs:
        await opened(store)
    assert version_of(store) == len(SCRIPTS)
    assert not store.with_name(COPY).exists()
    (refused,) = [one for one in logs if one["event"] == "store.not_copied"]
    assert refused["reason"] == "there is not enough room"


async def test_a_copy_that_fails_does_not_hold_up_the_migration(store: Path) -> None:
    store.with_name(f"{COPY}.part").mkdir()
    with capture_logs() as logs:
        await opened(store)
    assert version_of(store) == len(SCRIPTS)
    assert "store.not_copied" in [one["event"] for one in logs]
    assert not store.with_name(COPY).exists()


async def test_a_copy_that_was_cut_off_is_made_anew(store: Path) -> None:
    before = dump(store)
    store.with_name(f"{COPY}.part").write_bytes(b"half of it")
    await opened(store)
    assert dump(store.with_name(COPY)) == before
    assert not store.with_name(f"{COPY}.part").exists()


async def test_a_copy_that_was_cut_off_takes_no_room_from_the_next(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = store.with_name(f"{COPY}.part")
    part.write_bytes(b"half of it")
    free = lambda _: SimpleNamespace(free=0 if part.exists() else 2 * store.stat().st_size)  # noqa: E731
    monkeypatch.setattr("bace_bridge.store.migrations.shutil.disk_usage", free)
    await opened(store)
    assert version_of(store.with_name(COPY)) == 3
    assert not part.exists()


async def test_one_that_went_back_to_the_version_before_gets_a_new_copy(store: Path) -> None:
    await opened(store)
    store.with_name(COPY).replace(store)
    connection = sqlite3.connect(store)
    connection.execute("insert into facts values ('since', 'then')")
    connection.commit()
    connection.close()
    before = dump(store)
    await opened(store)
    assert dump(store.with_name(COPY)) == before


async def test_copies_before_earlier_migrations_go(store: Path) -> None:
    store.with_name("b.db.before-v3").write_bytes(b"older")
    store.with_name("another.db.before-v3").write_bytes(b"not ours")
    await opened(store)
    assert sorted(one.name for one in store.parent.glob("*before*")) == ["another.db.before-v3", COPY]
