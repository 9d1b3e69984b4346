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
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "bace_bridge", "demo"]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith("BACE_")}
NEVER = ("Traceback", "whsec_", "simulator-secret", "Task was destroyed", "never awaited", "Unclosed")
AN_EVENT = re.compile(r"^\d\d:\d\d:\d\d (session\.\w+) +(\S+)  .*mqtt bace/[0-9a-f-]+/\w+ \+ webhook, signature ✓$")


class Emitted(NamedTuple):
    after: float
    text: str


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


def listen(process: subprocess.Popen[str], began: float) -> list[Emitted]:
    """The lines of a process until it ends, each with its seconds since the start."""
    assert process.stdout is not None
    return [Emitted(time.monotonic() - began, text.rstrip("\n")) for text in process.stdout]


@pytest.mark.slow
def test_piped_a_session_runs_through_within_15_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with start(tmp_path, "--for", "20s") as process:
        told = listen(process, began)
        errors = process.communicate()[1]
    assert (process.returncode, errors) == (0, "")
    assert 19 < time.monotonic() - began < 30
    assert told[0].after < 5
    everything = "\n".join(line.text for line in told)
    assert [bad for bad in (*NEVER, "\x1b") if bad in everything] == []

    events = [(line.after, match[1], match[2]) for line in told if (match := AN_EVENT.match(line.text))]
    assert len(events) == sum(" session." in line.text for line in told)
    first_device = events[0][2]
    first = [(after, name) for after, name, device in events if device == first_device]
    names = [name for _, name in first]
    ready = names.index("session.csv_ready")
    assert names[0] == "session.started"
    assert set(names[1 : ready - 1]) == {"session.datapoints"}
    assert names[ready - 1] == "session.ended"
    assert first[ready][0] < 15
    assert {name for _, name, _ in events} >= {"session.updated"}
    assert re.fullmatch(
        r"Stopped after \d+ s: (\d+) events with \d+ datapoints; \d+ MQTT messages; \1 webhook deliveries, "
        r"rightly signed\.",
        told[-1].text,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_well_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "session.started" in line:
                break
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
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
        process.wait(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_two_at_once_find_their_ports(tmp_path: Path) -> None:
    with start(tmp_path, "--for", "6s") as one, start(tmp_path, "--for", "6s") as other:
        told = [process.communicate(timeout=60) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0]
    ports = [set(re.findall(r"127\.0\.0\.1:(\d+)", out)) for out, _ in told]
    assert not ports[0] & ports[1]
    for out, errors in told:
        assert errors == ""
        assert "session.started" in out


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['amqtt'] = None; from bace_bridge.__main__ import main; main()"
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
        assert "no duration" in process.communicate()[1]
    assert process.returncode == 2


@pytest.mark.parametrize("how", ["by itself", "by Ctrl-C"])
def test_on_a_terminal_it_draws(tmp_path: Path, how: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    arguments = ["--for", "7s"] if how == "by itself" else []
    process = subprocess.Popen(
        [*COMMAND, *arguments],
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
    pressed = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            drawn += os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if how == "by Ctrl-C" and not pressed and "Heart rate" in drawn:
            os.write(ours, b"\x03")
            pressed = True
    os.close(ours)
    assert process.wait(timeout=30) == 0
    entered, left = drawn.index("\x1b[?1049h"), drawn.index("\x1b[?1049l")
    assert drawn.startswith("bace-bridge demo: starting")
    for shown in (
        "Ctrl-C ends it",
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
