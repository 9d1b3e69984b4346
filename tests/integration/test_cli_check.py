"""The real command in a process of its own, and the mapping of exceptions to exit codes."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import structlog

from bace_bridge import logs
from bace_bridge.cli.main import explain
from bace_bridge.errors import BridgeError, ConfigError, Mistake, StoreLocked, StoreUnusable

ROOT = Path(__file__).parents[2]
GOOD = """
cloud: {access_token: s3cr3t-token}
mqtt: [{name: home, url: "mqtt://broker.lan", username: u, password: s3cr3t-mqtt}]
webhooks:
  - name: alerts
    url: https://example.org/s3cr3t-path
    secret: whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
"""
TWO_MISTAKES = ConfigError([Mistake("a.b", "is odd", "mend it"), Mistake("c", "is off")])


def bridge(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BACE_")}
    return subprocess.run(
        [sys.executable, "-m", "bace_bridge", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
    )


def test_a_good_configuration_is_reported_in_a_few_lines_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(GOOD, encoding="utf-8")
    done = bridge("check", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bridge.yaml is fine" in done.stdout
    assert "home: mqtt://broker.lan as u" in done.stdout
    assert "alerts: example.org" in done.stdout
    assert "warning: mqtt[0].url: the password goes over the network in the clear" in done.stdout
    assert "s3cr3t" not in done.stdout
    assert "AAAA" not in done.stdout


def test_as_json(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(GOOD, encoding="utf-8")
    done = bridge("check", "--json", cwd=tmp_path)
    printed = json.loads(done.stdout)
    assert (done.returncode, printed["ok"], printed["mistakes"]) == (0, True, [])
    assert "s3cr3t" not in done.stdout
    (tmp_path / "bridge.yaml").write_text("cloud: {access_token: t}\nmqtt: [{name: a}]", encoding="utf-8")
    done = bridge("check", "--json", cwd=tmp_path)
    printed = json.loads(done.stdout)
    assert (done.returncode, printed["ok"]) == (78, False)
    assert printed["mistakes"] == [{"path": "mqtt[0].url", "problem": "is missing", "hint": ""}]


def test_every_mistake_is_a_line_on_stderr(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(
        "cloud: {access_token: t}\nmqtt: [{name: a}]\nwebhooks: [{name: a, url: x, secret: y}]\n", encoding="utf-8"
    )
    done = bridge("check", cwd=tmp_path, BACE_BRIDGE_CONFIG=str(file))
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == [
        "webhooks[0].name",
        "mqtt[0].url",
        "webhooks[0].url",
        "webhooks[0].secret",
    ]


def test_a_missing_file_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    done = bridge("check", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr.startswith("bridge.yaml: does not exist (copy bridge.example.yaml")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["check", "--help"], 0),
        (["chekc"], 2),
        (["check", "--nope"], 2),
        ([], 2),
    ],
)
def test_the_command_line(tmp_path: Path, arguments: list[str], code: int) -> None:
    assert bridge(*arguments, cwd=tmp_path).returncode == code


@pytest.mark.parametrize("of", ["config", "events"])
def test_schemas_are_json(tmp_path: Path, of: str) -> None:
    assert json.loads(bridge("schema", of, cwd=tmp_path).stdout)["$schema"].endswith("schema")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    shell = f"'{sys.executable}' -m bace_bridge schema config | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def in_shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = f"'{sys.executable}' -m bace_bridge"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", line.replace("bace-bridge", command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=60,
        env=env,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["check", "check --json", "schema config", "--help", "simulate --list-quirks"])
def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "bridge.yaml").write_text(GOOD, encoding="utf-8")
    done = in_shell(f"bace-bridge {command} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: cannot write to standard output: No space left on device\n",
    )


def test_a_full_disk_is_reported_by_what_runs_for_long_too(tmp_path: Path) -> None:
    done = in_shell("bace-bridge simulate --port 0 --for 30s > /dev/full", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_closed_stdout_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(GOOD, encoding="utf-8")
    done = in_shell("bace-bridge check >&-", tmp_path)
    assert (done.returncode, done.stderr) == (1, "Error: cannot write to standard output: Bad file descriptor\n")


def test_without_a_stderr_the_exit_code_is_right_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(f"{GOOD}store: {{url: 'sqlite:////dev/null/no.db'}}\n", encoding="utf-8")
    assert in_shell("bace-bridge run 2>&-", tmp_path).returncode == 70


def imported_by(module: str, folder: Path) -> set[str]:
    """What a Python that imports the module has imported, by full names."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return set(done.stdout.split())


def test_loading_a_configuration_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    unwanted = {"aiohttp", "rich", "click", "paho", "structlog"}
    assert not unwanted & imported_by("bace_bridge.config.load", tmp_path)


def test_the_service_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """Each of these is memory that it would keep for good; a kind of sink is imported when one is configured."""
    imported = imported_by("bace_bridge.__main__, bace_bridge.cli.run", tmp_path)
    unwanted = {"amqtt", "rich", "paho", "aiohttp.web", "difflib", "html", "statistics"}
    ours = {f"bace_bridge.{one}" for one in ("demo", "simulator", "cli.check", "sinks.mqtt.sink", "sinks.webhook.sink")}
    assert not (unwanted | ours) & imported
    assert "bace_bridge.app.outlets" in imported


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (TWO_MISTAKES, 78, "a.b: is odd (mend it)\nc: is off\n"),
        (StoreLocked("held by process 7"), 75, "bace-bridge: held by process 7\n"),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [StoreLocked("held")])]), 75, "bace-bridge: held\n"),
        (StoreUnusable("of a newer version"), 70, "bace-bridge: of a newer version\n"),
        (BridgeError("x"), 70, "bace-bridge: x\n"),
        (BridgeError("a folder j\udce4"), 70, "bace-bridge: a folder j\\udce4\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("tasks", [KeyboardInterrupt(), ValueError()]), 130, ""),
        (click.Abort(), 130, ""),
        (click.UsageError("no"), 2, "Error: no\n"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, printed: str) -> None:
    assert explain(error, debug=False) == code
    assert capsys.readouterr().err == printed


def test_a_broken_connection_is_not_taken_for_a_reader_that_left(logged: io.StringIO) -> None:
    with Path("/dev/null").open("w", encoding="utf-8") as stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        assert explain(BrokenPipeError(32, "Broken pipe"), debug=False) == 70
    assert json.loads(logged.getvalue())["error"] == "BrokenPipeError"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    processors, handlers = list(structlog.get_config()["processors"]), list(logging.getLogger().handlers)
    stream = io.StringIO()
    logs.configure(fmt="json", level="info", stream=stream)
    yield stream
    structlog.get_config()["processors"][:] = processors
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize("debug", [False, True])
def test_an_internal_error_is_one_line_without_its_message(debug: bool, logged: io.StringIO) -> None:
    try:
        Path("/dev/null/geheim").read_text(encoding="utf-8")
    except OSError as error:
        group = ExceptionGroup("tasks", [StoreLocked("a consequence"), error])
    assert explain(group, debug=debug) == 70
    line = json.loads(logged.getvalue())
    assert (line["event"], line["error"]) == ("internal_error", "NotADirectoryError")
    assert "in " in line["place"]
    assert ("geheim" in str(line)) is debug
