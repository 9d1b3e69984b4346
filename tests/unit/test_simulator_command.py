import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from bace_bridge.cli.simulate import simulate

START = "from bace_bridge.cli.simulate import simulate; simulate()"


def test_quirks_are_listed() -> None:
    result = CliRunner().invoke(simulate, ["--list-quirks"])
    assert result.exit_code == 0
    assert "tie-shuffle " in result.output
    assert "rate-limit 5/20s " in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--quirk", "tie-shufle"], "unknown quirk 'tie-shufle'"),
        (["--scenario", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--speed", "0"], "--speed"),
        (["--for", "soon"], "not a duration"),
        (["--port", "70000"], "--port"),
    ],
)
def test_a_wrong_command_line_is_exit_2_without_a_traceback(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(simulate, arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output


def test_a_wrong_scenario_is_exit_2_and_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("devices: [{label: go}]\nsessions: [{device: stay}]\n")
    result = CliRunner().invoke(simulate, ["--scenario", str(file)])
    assert result.exit_code == 2
    assert "sessions[0].device: there is no device 'stay'" in result.output


def test_a_taken_port_is_exit_1_and_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(simulate, ["--port", str(port), "--for", "1s"])
    assert result.exit_code == 1
    assert "try another --port" in result.output


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.9"])
def test_a_wrong_host_is_not_blamed_on_the_port(host: str) -> None:
    result = CliRunner().invoke(simulate, ["--host", host, "--for", "1s"])
    assert result.exit_code == 1
    assert "--host is no address of this machine" in result.output
    assert "--port" not in result.output


def test_a_printed_scenario_can_be_played(tmp_path: Path) -> None:
    printed = CliRunner().invoke(simulate, ["--print-scenario", "default"])
    (tmp_path / "my.yaml").write_text(printed.output)
    played = CliRunner().invoke(simulate, ["--scenario", str(tmp_path / "my.yaml"), "--port", "0", "--for", "100ms"])
    assert (printed.exit_code, played.exit_code) == (0, 0), played.output


def test_it_stops_by_itself_and_tells_what_to_copy() -> None:
    result = CliRunner().invoke(simulate, ["--port", "0", "--scenario", "quick", "--speed", "200", "--for", "1s"])
    assert result.exit_code == 0, result.output
    snippet = re.search(r"^cloud:\n(?:  .+\n)+", result.output, re.MULTILINE)
    assert snippet
    copied = yaml.safe_load(snippet[0])["cloud"]
    assert copied["url"].startswith("http://127.0.0.1:")
    assert set(copied) == {"url", "client_id", "client_secret", "username", "password"}
    for happened in ("session opened", "session ended", "ingestion finished", "session renamed", "Stopped."):
        assert happened in result.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_exit_0(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert "Simulated BACE cloud at" in process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
