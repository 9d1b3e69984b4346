"""The real process and a store that it may not have: another instance holds it, or it belongs to another user."""

import asyncio
import errno
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bace_bridge.events.types import Event
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.integration.test_foreign_stores import COMMANDS, ENV, bridge, configured, opened, state_of

# --- one store by several paths


def link(tmp_path: Path, path: Path) -> str:
    (tmp_path / "link.db").symlink_to(path)
    return "../link.db"


def links_of_links(tmp_path: Path, path: Path) -> str:
    (tmp_path / "more").symlink_to(path.parent)
    (tmp_path / "link.db").symlink_to("more/b.db")
    return "../link.db"


def hard_link(tmp_path: Path, path: Path) -> str:
    (tmp_path / "hard.db").hardlink_to(path)
    return f"/{tmp_path}/hard.db"


def bound(tmp_path: Path, path: Path) -> str:
    (tmp_path / "bound.db").touch()
    mount = ["mount", "--bind", str(path), str(tmp_path / "bound.db")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    return f"/{tmp_path}/bound.db"


def without_its_lock(_: Path, path: Path) -> str:
    Path(f"{path}.lock").unlink()
    return "b.db"


PATHS: dict[str, Callable[[Path, Path], str]] = {
    "the same": lambda _, __: "b.db",
    "another spelling": lambda _, path: f"..//{path.parent.name}/./b.db",
    "absolute": lambda _, path: f"/{path}",
    "a link": link,
    "links of links": links_of_links,
    "a hard link": hard_link,
    "a bind mount": bound,
    "its lock was deleted": without_its_lock,
}


@pytest.mark.parametrize("how", PATHS)
async def test_a_store_is_held_whatever_path_leads_to_it(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    async with SqliteFile(folder / "b.db") as file:
        log = EventLog(file)
        await log.open_sink("a", target="t")
        await Journal(file).commit(Changes(events=(Event("evt_1", "x", "s1", "g1", 1.0, time.time(), b"{}"),)))
        store = PATHS[how](tmp_path, folder / "b.db")
        try:
            ended = await asyncio.to_thread(bridge, folder, "run", store=store)
            assert ended.returncode == 75
            assert ended.stderr.splitlines()[-1].endswith("stop it, or choose another store.url")
            asked = await asyncio.to_thread(bridge, folder, *COMMANDS["replay"], store=store)
            if how in {"a hard link", "a bind mount"}:  # there the WAL is another one
                shown = await asyncio.to_thread(bridge, folder, *COMMANDS["events"], store=store)
                assert (asked.returncode, shown.returncode) == (75, 75)
                assert "by another path" in asked.stderr
            else:
                assert (asked.returncode, asked.stdout) == (0, "1 event for a: the running bridge starts at once\n")
        finally:
            if how == "a bind mount":
                subprocess.run(["umount", "-l", str(tmp_path / "bound.db")], check=False)
        await Journal(file).commit(Changes(known=(KnownSession(session=DataSession("s1", "g1", 5.0)),)))


@pytest.mark.parametrize("call", ["flock", "fcntl"])
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_to_have_none(tmp_path: Path, call: str, code: int) -> None:
    """Such a file system cannot be had in a test: the system's call fails in the process, as it does there."""
    program = f"""
import fcntl, os, sys
def fail(*_): raise OSError({code}, os.strerror({code}))
fcntl.{call} = fail
from bace_bridge.__main__ import main
main()
"""
    (tmp_path / "b.yaml").write_text("cloud: {url: 'http://127.0.0.1:9', access_token: token}\nhttp: {listen: ''}\n")
    ended = subprocess.run(
        [sys.executable, "-c", program, "run", "-c", "b.yaml"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60, env=ENV,
    )  # fmt: skip
    assert ended.returncode == 70
    said = f"its file system has no locks ({os.strerror(code)}): put the store on a local disk"
    assert ended.stderr.splitlines()[-1].endswith(said)
    assert "held by another" not in ended.stderr


# --- other users

AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of root's in which another user may write, as far as the file system is concerned."""
    if os.geteuid() or shutil.which("setpriv") is None:
        pytest.skip("only root may run a process as another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        folder.mkdir()
        for one in (folder.parent, folder):
            one.chmod(0o777)
        may = as_nobody([sys.executable, "-c", "import bace_bridge.cli.run"], folder)
        if may.returncode:
            pytest.skip("another user may not read this installation")
        yield folder


def as_nobody(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_NOBODY, *command], capture_output=True, text=True, check=False, cwd=folder, timeout=60, env=ENV
    )


def bridge_of_nobody(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = configured(folder, "b.db")
    return as_nobody([sys.executable, "-m", "bace_bridge", *arguments, "-c", str(config)], folder)


def unsearchable(folder: Path) -> str:
    folder.chmod(0o700)
    return "b.db cannot be opened: "


def private(folder: Path) -> str:
    (folder / "b.db").chmod(0o600)
    return "b.db: "


def wal_of_root(folder: Path) -> str:
    Path(folder / "b.db-wal").touch(mode=0o600)
    return "b.db-wal: "


def read_only_folder(folder: Path) -> str:
    folder.chmod(0o755)
    return "b.db: the folder is not writable: "


def lock_of_root(folder: Path) -> str:
    (folder / "b.db.lock").touch()
    (folder / "b.db.lock").chmod(0o600)
    return "b.db.lock cannot be opened: "


READS_ON = (read_only_folder, lock_of_root)


@pytest.mark.parametrize("deny", [private, unsearchable, wal_of_root, *READS_ON], ids=lambda one: one.__name__)
async def test_what_belongs_to_another_user_is_permission_denied(shared: Path, deny: Callable[[Path], str]) -> None:
    await opened(shared / "b.db")
    (shared / "b.db.lock").unlink()
    (shared / "b.db").chmod(0o666)
    said = deny(shared) + "permission denied: run it as the service's user"
    before = state_of(shared)
    for command, arguments in COMMANDS.items():
        if deny is lock_of_root and command != "run":
            continue
        ended = bridge_of_nobody(shared, *arguments)
        if deny is read_only_folder and command in {"sessions", "events", "devices", "list"}:
            assert (command, ended.returncode) == (command, 0)
        else:
            assert (command, ended.returncode) == (command, 70)
            assert said in ended.stderr.splitlines()[-1]
        assert state_of(shared) == before


async def test_a_file_of_another_owner_that_may_be_written_is_used_with_a_warning(shared: Path) -> None:
    await opened(shared / "b.db")
    (shared / "b.db.lock").unlink()
    (shared / "b.db").chmod(0o666)
    config = configured(shared, "b.db")
    command = [*AS_NOBODY, sys.executable, "-m", "bace_bridge", "run", "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=shared, env=ENV) as running:
        assert running.stderr is not None
        said = list(itertools.takewhile(lambda line: "bridge.running" not in line, running.stderr))
        running.terminate()
    assert '"mode":"0666","owner":0,"reason":"Operation not permitted"' in said[-1]
    assert running.returncode == 0
