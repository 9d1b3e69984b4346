"""The files under deploy/: they must fit one another, the program, and the programs that read them."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bace_bridge.cli.main import CONFIG_WRONG
from bace_bridge.config.load import load
from bace_bridge.config.models import HttpConfig
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.status.listener import MOST_CONNECTIONS
from bace_bridge.status.server import HealthServer
from tests.integration.test_health import listening

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
UNIT = DEPLOY / "systemd" / "bace-bridge.service"
DOCKER = DEPLOY / "docker"
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def dockerfile_steps() -> list[tuple[str, str]]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def dockerfile(word: str) -> list[str]:
    return [rest for step, rest in dockerfile_steps() if step == word]


def compose() -> Any:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


# --- systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    program = unit_values("ExecStart")[0].split()[0]
    copy.write_text(UNIT.read_text().replace(program, "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    said = (verified.stdout + verified.stderr).splitlines()
    assert [line for line in said if UNIT.name in line] == []  # other units of the machine are not ours to judge


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_calls_the_unit_s_exposure_low() -> None:
    command = ["systemd-analyze", "security", "--offline=true", str(UNIT)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= 1.7


def test_the_unit_bounds_files_and_memory() -> None:
    """With room for the connections of `most` webhooks, each with ten of them, beside those to the health server."""
    most = 200
    assert int(unit_values("LimitNOFILE")[0]) >= 10 * most + MOST_CONNECTIONS + 500
    assert unit_values("MemoryMax") == ["512M"]


def test_the_unit_restarts_but_for_what_only_a_person_can_repair() -> None:
    assert unit_values("Restart") == ["on-failure"]
    assert unit_values("RestartPreventExitStatus") == [f"2 {CONFIG_WRONG}"]


def test_the_sample_for_systemd_is_right(tmp_path: Path) -> None:
    sample = shutil.copy(DEPLOY / "systemd" / "bridge.yaml", tmp_path)
    credentials = [line.split(":")[0] for line in unit_values("LoadCredential")]
    for folder in ("secrets", "credentials"):
        (tmp_path / folder).mkdir()
        for name in credentials:
            (tmp_path / folder / name).write_text("from " + folder)
    by_hand = load(Path(sample), {})
    as_service = load(Path(sample), {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")})
    assert by_hand.cloud.password is not None
    assert by_hand.cloud.password.get_secret_value() == "from secrets"
    assert as_service.cloud.password is not None
    assert as_service.cloud.password.get_secret_value() == "from credentials"
    assert as_service.store.path.parent == Path("/var/lib") / unit_values("StateDirectory")[0]


def test_the_unit_loads_the_secrets_that_its_sample_names() -> None:
    sample = (DEPLOY / "systemd" / "bridge.yaml").read_text()
    for comment in ("", "#"):
        named = re.findall(rf"^{comment} .*_file: \$\{{CREDENTIALS_DIRECTORY:-secrets\}}/(\w+)", sample, re.MULTILINE)
        loaded = re.findall(
            rf"^{comment}LoadCredential=(\w+):/etc/bace-bridge/secrets/\1$", UNIT.read_text(), re.MULTILINE
        )
        assert loaded == named != []


# --- Docker


def test_compose_names_files_that_exist_or_that_the_guide_makes() -> None:
    guide = (DEPLOY / "README.md").read_text()
    settings = compose()
    build = settings["services"]["bridge"]["build"]
    assert (DOCKER / build["context"]).resolve() == PROJECT
    assert (PROJECT / build["dockerfile"]).is_file()
    for service in settings["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).is_file() if source.startswith(".") else source in settings["volumes"]
        assert set(service["secrets"]) <= set(settings["secrets"])
    for name, secret in settings["secrets"].items():
        assert secret["file"] == f"./secrets/{name}"
        assert f"secrets/{name}" in guide


def test_the_sample_for_docker_is_right(tmp_path: Path) -> None:
    text = (DOCKER / "bridge.yaml").read_text()
    bridge = compose()["services"]["bridge"]
    for name in bridge["secrets"]:
        (tmp_path / name).write_text("secret")
    sample = tmp_path / "bridge.yaml"
    sample.write_text(text.replace("/run/secrets", str(tmp_path)))
    config = load(sample, {})
    assert {line.split("/")[-1] for line in re.findall(r"^ .*_file: (.*)$", text, re.MULTILINE)} == set(
        bridge["secrets"]
    )
    assert config.sinks_of(MqttConfig)[0].address.host in compose()["services"]
    assert str(config.store.path.parent) == dockerfile("VOLUME")[0]
    assert bridge["ports"][0].split(":")[-1] == str(config.http.port) == dockerfile("EXPOSE")[0]


def test_the_image_reads_the_configuration_where_compose_puts_it() -> None:
    (command,) = dockerfile("CMD")
    mounted = [volume.split(":")[1] for volume in compose()["services"]["bridge"]["volumes"]]
    assert json.loads(command) == ["run", "-c", mounted[0]]
    assert dockerfile("VOLUME")[0] == mounted[1]


def test_the_image_is_made_of_what_is_there_and_nothing_else_is_sent() -> None:
    copied = {source for step in dockerfile("COPY") for source in step.split()[:-1]}
    assert all((PROJECT / source).exists() for source in copied)
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
    assert "*" in ignore


def test_the_image_does_not_run_as_root() -> None:
    assert dockerfile("USER") == ["10001:10001"]
    assert "sudo chown 10001 " in (DEPLOY / "README.md").read_text()


def test_the_steps_can_be_checked_without_docker() -> None:
    script = DOCKER / "check-steps.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
    known = set(re.findall(r"\b([A-Z]{3,})\\ \*", script.read_text()))
    assert {word for word, _ in dockerfile_steps()} <= known


@pytest.mark.parametrize(("stands", "exit_code"), [(None, 0), ("no progress for 90 s", 1)])
async def test_the_health_check_of_the_image(stands: str | None, exit_code: int) -> None:
    (step,) = dockerfile("HEALTHCHECK")
    program, flag, code = json.loads(step.partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    listen = HttpConfig(listen="127.0.0.1:0")
    async with listening(HealthServer(listen, alive=lambda: {"watcher": stands}, ready=dict)) as server:
        port = str(server.address).split(":")[1]
        check = await asyncio.create_subprocess_exec(sys.executable, "-c", code.replace("8099", port))
        assert await check.wait() == exit_code


# --- Mosquitto


@pytest.fixture
def mosquitto_port(tmp_path: Path) -> Iterator[int]:
    """A real Mosquitto with our file, but for its paths and its port."""
    mosquitto, passwd = shutil.which("mosquitto", path=SBIN), shutil.which("mosquitto_passwd", path=SBIN)
    if mosquitto is None or passwd is None:
        pytest.skip("needs mosquitto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    users = tmp_path / "mosquitto_users"
    subprocess.run([passwd, "-c", "-b", users, "bridge", "right"], check=True, capture_output=True)
    settings = (DOCKER / "mosquitto.conf").read_text()
    settings = settings.replace("/mosquitto/data", str(tmp_path)).replace("/run/secrets", str(tmp_path))
    settings = settings.replace("listener 1883", f"listener {port} 127.0.0.1") + "\nuser root\n"
    (tmp_path / "mosquitto.conf").write_text(settings)
    command = [mosquitto, "-c", str(tmp_path / "mosquitto.conf")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as broker:
        while not is_listening(port):
            assert broker.poll() is None, "Mosquitto does not take the file"
            time.sleep(0.01)
        yield port
        broker.terminate()


def is_listening(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def connack(port: int, login: tuple[str, str] | None) -> int:
    """The broker's answer to an MQTT 3.1.1 CONNECT: 0 accepted, 5 not authorised."""
    flags, rest = (0xC2, login) if login else (0x02, ())
    texts = b"".join(len(text).to_bytes(2, "big") + text.encode() for text in ("test", *rest))
    body = b"\x00\x04MQTT\x04" + bytes([flags]) + b"\x00\x3c" + texts
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(bytes([0x10, len(body)]) + body)
        return connection.recv(4)[3]


def test_the_broker_lets_in_who_has_a_login(mosquitto_port: int) -> None:
    assert connack(mosquitto_port, ("bridge", "right")) == 0
    assert connack(mosquitto_port, ("bridge", "wrong")) == 5
    assert connack(mosquitto_port, None) == 5


def test_the_guide_names_files_that_exist() -> None:
    guide = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", guide))
    assert named
    assert all((PROJECT / name).exists() for name in named)
