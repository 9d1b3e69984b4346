"""The real process and the texts that it is given: files of editors, an environment that is not UTF-8, pipes."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, configuration, receiver, running, until

OTHER = "whsec_" + "B" * 40
LOGIN = {"client_id": "c", "client_secret": "s", "username": "u", "password": "p"}
LATIN_1 = "j\udce4ger"
"""As Python shows the bytes `j\\xe4ger` of the environment and of a command line."""


def ended(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, shell: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command that must end by itself; `shell` is a line of bash in which BRIDGE stands for the program."""
    program = [sys.executable, "-m", "bace_bridge"]
    line = ["bash", "-c", shell.replace("BRIDGE", shlex.join(program))] if shell else [*program, *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, errors="surrogateescape", check=False, cwd=cwd, timeout=120,
        stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
    )  # fmt: skip


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "bridge.yaml"
    path.write_text(json.dumps({"cloud": LOGIN, **sections}))
    return path


def without_secrets(config: Path, **files: bytes) -> None:
    """Moves secrets of the cloud's login into files with this content."""
    settings = json.loads(config.read_text())
    for key, content in files.items():
        del settings["cloud"][key]
        settings["cloud"][f"{key}_file"] = key
        (config.parent / key).write_bytes(content)
    config.write_text(json.dumps(settings))


@pytest.mark.parametrize("around", [b"\xef\xbb\xbf%s\r\n", b"\r\n\r\n%s \r\n\r\n", b"\n\xef\xbb\xbf%s\r"])
async def test_the_login_is_accepted_however_an_editor_saved_its_files(tmp_path: Path, around: bytes) -> None:
    async with SimulatedServer(SimulatedCloud()) as server:
        config = configuration(tmp_path, cloud_url=server.url)
        without_secrets(config, password=around % b"demo", client_secret=around % b"simulator-secret")
        config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b"\n", b"\r\n"))
        async with running(config) as bridge:
            await until(
                lambda: (
                    "cloud.auth_failed" in bridge.log
                    or any(seen.path == "/api/v2/data-session" for seen in server.requests)
                ),
                within=60,
                what="the login",
            )
            assert "cloud.auth_failed" not in bridge.log
            assert await bridge.stop() == 0


@pytest.mark.parametrize("between", [b"\r\n", b"\r\n\r\n", b"\n\n", b"\n \n\xef\xbb\xbf"])
async def test_a_delivery_is_signed_with_both_secrets_of_a_file(tmp_path: Path, between: bytes) -> None:
    cloud = SimulatedCloud()
    cloud.open_session(cloud.add_device("BaceGo-1").id_group)
    async with SimulatedServer(cloud) as server, receiver() as hook:
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url)
        settings = json.loads(config.read_text())
        del settings["webhooks"][0]["secret"]
        settings["webhooks"][0]["secret_file"] = "signing"
        (tmp_path / "signing").write_bytes(b"\xef\xbb\xbf" + SECRET.encode() + between + OTHER.encode() + b"\r\n")
        config.write_text(json.dumps(settings))
        async with running(config) as bridge:
            await until(
                lambda: bool(hook.arrivals) or bridge.process.returncode is not None, within=60, what="an event"
            )
            assert bridge.process.returncode is None, bridge.log
            assert await bridge.stop() == 0


def test_files_that_hold_no_secret_are_mistakes_with_the_path_of_their_key(tmp_path: Path) -> None:
    contents = {
        "nul": (b"geheim\0", "holds a control character on line 1 (U+0000)"),
        "utf16": ("geheim".encode("utf-16"), "is UTF-16 text (save it as UTF-8)"),
        "latin": (b"gehei\xe4m", "is not UTF-8 text (byte 6)"),
        "empty": (b"\xef\xbb\xbf\r\n", "is empty"),
        "lines": (b"geheim\r\nzweites", "holds 2 lines, not password alone"),
        "huge": (b"geheim" * 2**14, "is larger than 64KiB"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    problems = {
        **{name: f"{name} {problem}" for name, (_, problem) in contents.items()},
        "pipe": "pipe is not a regular file",
        "none": "cannot read none: No such file or directory",
        ".": "cannot read .: Is a directory",
    }
    brokers = [
        {"name": f"m{index}", "url": f"mqtt://h{index}", "username": "u", "password_file": name}
        for index, name in enumerate(problems)
    ]
    written(tmp_path, mqtt=brokers)
    for command in ("check", "run"):
        done = ended(command, "-c", "bridge.yaml", cwd=tmp_path)

        assert done.returncode == 78
        lines = done.stderr.splitlines()
        assert len(lines) == len(problems)
        for index, (line, problem) in enumerate(zip(lines, problems.values(), strict=True)):
            assert line.startswith(f"mqtt[{index}].password_file: {problem}")
        assert "geheim" not in done.stderr


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_variable_that_is_not_utf_8_is_named(tmp_path: Path, command: str) -> None:
    keys = {**LOGIN, "url": "http://${ODD}", "username": "${ODD}", "password": "${ODD}"}
    broker = {"name": "m", "url": "mqtt://h", "username": "${ODD}", "tls": {"ca_file": "${ODD}"}}
    written(tmp_path, cloud=keys, mqtt=[broker], store={"url": "sqlite:///${ODD}"})
    done = ended(command, "-c", "bridge.yaml", cwd=tmp_path, env={"ODD": LATIN_1})

    assert done.returncode == 78
    named = {line.removesuffix(": the environment variable ODD is not UTF-8 text") for line in done.stderr.splitlines()}
    assert named == {
        "cloud.url", "cloud.username", "cloud.password", "mqtt[0].username", "mqtt[0].tls.ca_file", "store.url"
    }  # fmt: skip


async def test_a_folder_whose_name_is_not_utf_8_can_hold_everything(tmp_path: Path) -> None:
    folder = tmp_path / LATIN_1
    folder.mkdir()
    async with SimulatedServer(SimulatedCloud()) as server:
        settings = json.loads(configuration(tmp_path, cloud_url=server.url).read_text())
        settings["store"]["url"] = "sqlite:///bridge.db"
        config = folder / "bridge.yaml"
        config.write_text(json.dumps(settings))
        without_secrets(config, password=b"demo")
        checked = ended("check", "-c", str(config), cwd=folder)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert json.loads(ended("check", "--json", "-c", str(config), cwd=folder).stdout)["ok"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bace_bridge", "run", "-c", str(config), cwd=folder, stderr=subprocess.DEVNULL
        )
        await until(
            lambda: any(seen.path == "/api/v2/data-session" for seen in server.requests), within=60, what="a poll"
        )
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.parametrize(
    "line",
    [
        "events --session",
        "replay --sink m --session",
        "dead-letters list --sink",
        "dead-letters retry",
        "simulate --quirk",
    ],
)
def test_an_argument_that_is_not_utf_8_is_a_wrong_command_line(tmp_path: Path, line: str) -> None:
    written(tmp_path)
    done = ended(*line.split(), LATIN_1, cwd=tmp_path)

    assert done.returncode == 2
    assert "'j\\udce4ger' is not UTF-8 text" in done.stderr


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
@pytest.mark.parametrize("json_too", [False, True])
def test_a_terminal_without_utf_8_gets_what_it_can_show(tmp_path: Path, env: dict[str, str], json_too: bool) -> None:
    written(tmp_path, cloud={**LOGIN, "username": "😀", "groups": ["Küche", "😀"]})
    done = ended("check", *(["--json"] if json_too else []), cwd=tmp_path, env=env)

    assert (done.returncode, done.stderr) == (0, "")
    if json_too:
        assert "😀" in json.loads(done.stdout)["plan"]["cloud"][0]


@pytest.mark.parametrize(
    "line",
    [
        "cat bridge.yaml | BRIDGE check -c /dev/stdin",
        "BRIDGE check -c /dev/stdin < bridge.yaml",
        "BRIDGE check -c <(cat bridge.yaml)",
        "mkfifo pipe; cat bridge.yaml > pipe & BRIDGE check -c pipe",
    ],
)
def test_a_configuration_may_come_through_a_pipe(tmp_path: Path, line: str) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "bridge.yaml").write_text("cloud: {access_token_file: token}\n")
    done = ended(cwd=tmp_path, shell=line)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        "mkfifo pipe; BRIDGE check -c pipe",
        "mkfifo pipe; BRIDGE run -c pipe",
        "mkfifo pipe; sleep 600 > pipe & BRIDGE check -c pipe; code=$?; kill $!; exit $code",
        "mkfifo pipe; BRIDGE simulate --scenario pipe",
    ],
)
def test_a_pipe_that_nobody_writes_is_not_waited_for(tmp_path: Path, line: str) -> None:
    done = ended(cwd=tmp_path, shell=line)

    assert done.returncode == (2 if "simulate" in line else 78)
    assert "pipe: is a pipe that did not end within 5 s" in done.stderr


def test_a_reload_does_not_wait_for_the_pipe_that_the_configuration_came_from(tmp_path: Path) -> None:
    configuration(tmp_path, cloud_url="http://127.0.0.1:9")
    shell = (
        "mkfifo pipe; cat bridge.yaml > pipe & exec 3> >(cat > log); BRIDGE run -c pipe 2>&3 & bridge=$!\n"
        "until grep -q bridge.running log; do kill -0 $bridge || exit 1; sleep 0.1; done; kill -HUP $bridge\n"
        "until grep -q config.not_reloaded log; do kill -0 $bridge || exit 2; sleep 0.1; done\n"
        "kill $bridge; wait $bridge; code=$?; cat log >&2; exit $code"
    )
    done = ended(cwd=tmp_path, shell=shell)

    assert done.returncode == 0, done.stderr
    assert "pipe: is not a regular file" in done.stderr


def test_a_text_that_is_not_closed_takes_no_minutes(tmp_path: Path) -> None:
    written(tmp_path, cloud={**LOGIN, "password": "${A:-" * 150_000})
    done = ended("check", cwd=tmp_path)

    assert done.returncode == 78
    assert done.stderr == "cloud.password: holds ${ without a variable (write ${NAME}, or $${ for a plain ${)\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("cloud:\n\taccess_token: t\n", "bridge.yaml: line 2, column 1: a tab; indent with spaces"),
        ('cloud: {access_token: "\\ud800"}', "cloud.access_token: holds the character U+D800"),
        ("cloud: !!bool perhaps", "bridge.yaml: line 1, column 8: a value that is no bool"),
        ("cloud: {access_token: t, timeout: 1" + "0" * 400 + "}", "bridge.yaml: line 1, column 35: a number"),
        ("cloud: {access_token: t, timeout: 0x" + "f" * 90 + "}", "cloud.timeout: must be a duration"),
        ("cloud: {access_token: t}\nwebhooks: [{max_in_flight: 99999999}]", "webhooks[0].max_in_flight: "),
        ('cloud: {access_token: t}\nstore: {url: "sqlite:///a\\0b"}', "store.url: must name an SQLite file"),
        ("cloud: {access_token: t}\nstore: {url: sqlite:///" + "n" * 256 + "}", "store.url: must name an SQLite file"),
        ("cloud: {access_token: t, url: 'http://a\\b'}", "cloud.url: must be a URL"),
    ],
)  # fmt: skip
def test_run_and_check_name_the_same_mistake(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "bridge.yaml").write_text(content)
    for command in ("check", "run"):
        done = ended(command, cwd=tmp_path)

        assert done.returncode == 78
        assert any(line.startswith(problem) for line in done.stderr.splitlines()), done.stderr
