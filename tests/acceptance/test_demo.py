"""`bace-bridge demo` as a person starts it: piped, and on a terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "bace_bridge", "demo"]
# The workers of xdist have COLUMNS and LINES, which would overrule the size of our terminal.
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("BACE_", "COLUMNS", "LINES"))}
NEVER = ("Traceback", "whsec_", "simulator-secret", "Task was destroyed", "never awaited", "Unclosed")
AN_EVENT = re.compile(
    r"^\d\d:\d\d:\d\d (session\.\w+) +(\S+)  .*  (mqtt bace/[0-9a-f-]+/\w+)?( \+ )?(webhook, signature ✓)?$"
)
ON_BOTH_WAYS = re.compile(r"  mqtt bace/[0-9a-f-]+/\w+ \+ webhook, signature ✓$")
DRAWN_IN_TIME = ("session.started", "Heart rate", "bace/<device>/event")
"""What the picture shows once the first session has begun: before that it is not to be ended."""


def environment(folder: Path) -> dict[str, str]:
    return {
        **CLEAN,
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "TMPDIR": str(folder),
        "TERM": "xterm",
    }


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=folder,
        env=environment(folder),
    )


def read_until(process: subprocess.Popen[str], seen: Callable[[list[str]], bool]) -> list[str]:
    """The lines up to the one with which it is all there; pytest's timeout shows where it never is."""
    lines: list[str] = []
    assert process.stdout is not None
    while not seen(lines) and (line := process.stdout.readline()):
        lines.append(line.rstrip("\n"))
    return lines


def names_by_device(lines: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if match := AN_EVENT.match(line):
            found[match[2]].append(match[1])
    return found


def story_is_complete(lines: list[str]) -> bool:
    every = names_by_device(lines).values()
    return any("session.csv_ready" in names for names in every) and any("session.updated" in names for names in every)


@pytest.mark.slow
def test_piped_a_session_runs_through(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        lines = read_until(process, story_is_complete)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    lines += rest.splitlines()
    assert (process.returncode, errors) == (0, "")
    everything = "\n".join(lines)
    assert [bad for bad in (*NEVER, "\x1b") if bad in everything] == []

    # On a slow machine, or at the end, an event may be written before it has arrived on its second way.
    assert sum(" session." in line for line in lines) == sum(bool(AN_EVENT.match(line)) for line in lines)
    assert any(ON_BOTH_WAYS.search(line) for line in lines)
    names = next(names for names in names_by_device(lines).values() if "session.csv_ready" in names)
    ready = names.index("session.csv_ready")
    assert names[0] == "session.started"
    assert names[ready - 1] == "session.ended"
    assert set(names[1 : ready - 1]) == {"session.datapoints"}
    assert re.fullmatch(
        r"Stopped after \d+ s: [1-9]\d* events with [1-9]\d* datapoints; [1-9]\d* MQTT messages; "
        r"[1-9]\d* webhook deliveries, with valid signatures\.",
        lines[-1],
    )
    assert list(tmp_path.iterdir()) == []


def test_it_stops_by_itself_after_the_time_given(tmp_path: Path) -> None:
    with start(tmp_path, "--for", "1s") as process:
        lines, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert lines.splitlines()[-1].startswith("Stopped after ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_well_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "session.started" in line:
                break
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert rest.splitlines()[-1].startswith("Stopped after ")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_ends_it_without_a_traceback(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_two_at_once_find_their_ports(tmp_path: Path) -> None:
    with start(tmp_path) as one, start(tmp_path) as other:
        reported = [read_until(process, lambda lines: "session.started" in "".join(lines)) for process in (one, other)]
        for process in (one, other):
            process.send_signal(signal.SIGINT)
        errors = [process.communicate(timeout=60)[1] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0]
    assert errors == ["", ""]
    assert all("session.started" in "".join(lines) for lines in reported)
    ports = [set(re.findall(r"127\.0\.0\.1:(\d+)", "".join(lines))) for lines in reported]
    assert not ports[0] & ports[1]


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    missing = "import shutil, sys; shutil.which = lambda *_, **__: None; sys.modules['amqtt'] = None"
    code = f"{missing}; from bace_bridge.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert done.returncode == 1
    assert "pip install 'bace-bridge[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_duration_is_exit_2(tmp_path: Path) -> None:
    with start(tmp_path, "--for", "soon") as process:
        assert "not a duration" in process.communicate()[1]
    assert process.returncode == 2


@pytest.mark.parametrize("how", ["by a signal", "by Ctrl-C"])
def test_on_a_terminal_it_draws(tmp_path: Path, how: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        COMMAND,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(tmp_path),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # Ctrl-C needs a terminal of its own
    )
    os.close(theirs)
    drawn = ""
    asked = False
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            drawn += os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if not asked and all(part in drawn for part in DRAWN_IN_TIME):
            asked = True
            if how == "by Ctrl-C":
                os.write(ours, b"\x03")
            else:
                process.terminate()
    os.close(ours)
    assert process.wait(timeout=60) == 0
    entered, left = drawn.index("\x1b[?1049h"), drawn.index("\x1b[?1049l")
    assert drawn.startswith("bace-bridge demo: starting")
    for shown in (
        "Ctrl-C stops it",
        "mosquitto_sub -h 127.0.0.1 -p ",
        "session.started",
        "BaceGo-001-002-00020",
    ):
        assert shown in drawn[entered:left]
    last = drawn[left:]
    for shown in ("NEWEST VALUES", "Heart rate", "ARRIVED BY", "bace/<device>/event", "Stopped after "):
        assert shown in last
    assert [bad for bad in NEVER if bad in drawn] == []
    assert list(tmp_path.iterdir()) == []
