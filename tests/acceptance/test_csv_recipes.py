"""The recipes of docs/csv.md, taken from its text: what is printed there runs, and leaves no half file."""

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.acceptance.line import SECRET, until
from tests.acceptance.test_recipes import block, running_flow
from tests.integration.brokers import Broker, free_port
from tests.integration.csv_line import CsvLine, csv_line, target_of

PAGE = (Path(__file__).parents[2] / "docs" / "csv.md").read_text(encoding="utf-8")
BLUEPRINT = Path(__file__).parents[2] / "docs" / "blueprints" / "csv_ready.yaml"
REFUSED = {18, 22, 52, 56}
"""Curl's: a partial file, a status of 4xx or 5xx, no answer, a connection that was reset."""


def event(line: CsvLine) -> dict[str, Any]:
    body: dict[str, Any] = line.of(line.session)[-1].body
    return {"event_type": "session.csv_ready", "session": body["session"], "csv": body["csv"]}


async def test_the_receiver_archives_what_is_whole(tmp_path: Path) -> None:
    (tmp_path / "receiver.py").write_text(block(PAGE, "python", "BaseHTTPRequestHandler"))
    archive, port = tmp_path / "archive", free_port()
    archive.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable, tmp_path / "receiver.py",
        env={**os.environ, "PORT": str(port), "WEBHOOK_SECRET": SECRET, "ARCHIVE": str(archive)},
    )  # fmt: skip
    try:
        more = {"archive": {"url": f"http://127.0.0.1:{port}/", "events": ["session.csv_ready"], "timeout": "5m"}}
        async with csv_line(tmp_path, more_hooks=more) as line:
            files = [archive / f"{line.session}.0.csv"]
            await until(files[0].exists, within=60, what="the file")
            assert files[0].read_bytes() == await line.of_the_cloud(line.session)
            line.set_quirks("csv-truncated")
            before = line.bridge.said("delivery.retry_scheduled")
            broken = line.finished()
            await line.bridge.has_said("delivery.retry_scheduled", times=before + 1)
            assert list(archive.iterdir()) == files
            line.set_quirks()
            files.append(archive / f"{broken}.0.csv")
            await until(files[1].exists, within=60, what="the file, with another link")
            assert files[1].read_bytes() == await line.of_the_cloud(broken)
            assert sorted(archive.iterdir()) == sorted(files)
    finally:
        process.kill()
        await process.wait()


async def test_the_node_red_flow(tmp_path: Path) -> None:
    flow = json.loads(block(PAGE, "json", '"http request"'))
    ids = {node["id"] for node in flow}
    assert {target for node in flow for output in node.get("wires", ()) for target in output} <= ids
    nodes = {node["type"]: node for node in flow}
    assert (nodes["http request"]["ret"], nodes["file"]["encoding"]) == ("bin", "none"), "byte for byte"
    assert nodes["switch"]["rules"][0] == {"t": "eq", "v": "200", "vt": "num"}
    assert nodes["switch"]["wires"][0] == [nodes["file"]["id"]]
    if shutil.which("node") is None:
        pytest.skip("needs node")
    async with csv_line(tmp_path) as line:
        others = [{"event_type": "session.ended", "session": {"id": "x"}}]
        others.append({**event(line), "csv": {"url": "x", "revision": 0}})
        for payload, expected in (
            (
                event(line),
                {
                    "url": await line.link(line.session),
                    "filename": f"/data/csv/{line.session}.0.csv",
                    "requestTimeout": 600_000,
                },
            ),
            *((other, None) for other in others),
        ):
            program = f"const run = new Function('msg', {json.dumps(nodes['function']['func'])});"
            program += f"console.log(JSON.stringify(run({json.dumps({'payload': payload})})))"
            done = await asyncio.to_thread(subprocess.run, ["node", "-e", program], capture_output=True, check=True)
            assert json.loads(done.stdout) == expected


async def test_node_red_archives_what_is_whole(broker: Broker, tmp_path: Path) -> None:
    page, archive = PAGE.replace("/data/csv", str(tmp_path / "archive")), tmp_path / "archive"
    flow = json.loads(block(page, "json", '"http request"'))
    for node in flow:
        if node["type"] == "delay":
            node |= {"timeout": "1", "timeoutUnits": "seconds"}
    (tmp_path / "node-red").mkdir()
    node_red = running_flow(tmp_path / "node-red", broker.port, flow)
    async with csv_line(tmp_path, mqtt_port=broker.port) as line, node_red as log:
        await until(lambda: "Connected to broker" in log.read_text(), within=60, what="Node-RED")
        line.set_quirks("csv-truncated")
        broken = line.finished()
        await line.bridge.has_said("csv.broken_off", times=2)
        line.set_quirks("forbidden /api/v2/data-session/*/download-csv")
        before = line.downloads()
        await until(lambda: line.downloads() >= before + 3, within=60, what="tries after an answer of 502")
        assert not archive.exists()
        line.set_quirks()
        file, whole = archive / f"{broken}.0.csv", await line.of_the_cloud(broken)
        await until(lambda: file.exists() and file.read_bytes() == whole, within=60, what="the file")
        assert list(archive.iterdir()) == [file]


async def test_home_assistant(tmp_path: Path) -> None:
    document = yaml.safe_load(block(PAGE, "yaml", "shell_command:"))
    (automation,) = document["automation bace csv"]
    (trigger,) = automation["triggers"]
    blueprint = BLUEPRINT.read_text(encoding="utf-8").replace("!input", "")
    (proven,) = yaml.safe_load(blueprint)["triggers"]
    assert {**trigger, "device_id": ""} == {**proven, "device_id": ""}, "that one runs in Home Assistant's own tests"
    (action,) = automation["actions"]
    name = action["action"].removeprefix("shell_command.")
    jinja = ImmutableSandboxedEnvironment()
    jinja.tests["match"] = lambda text, pattern: re.match(pattern, text) is not None
    async with csv_line(tmp_path) as line:

        async def ran(payload: dict[str, Any]) -> int | None:
            told = {"trigger": {"payload_json": payload}}
            if jinja.from_string(automation["conditions"]).render(told).strip() != "True":
                return None
            data = {key: jinja.from_string(one).render(told) for key, one in action["data"].items()}
            # As Home Assistant does where there are templates: split, and without a shell.
            program, _, arguments = document["shell_command"][name].partition(" ")
            words = shlex.split(jinja.from_string(arguments).render(data).replace("/media/bace", str(tmp_path)))
            words = [word.replace("--retry 3 --retry-all-errors ", "") for word in words]  # it would wait for seconds
            return (await asyncio.to_thread(subprocess.run, [program, *words], check=False)).returncode

        payload, file = event(line), tmp_path / f"{line.session}.0.csv"
        line.set_quirks("csv-truncated")
        assert await ran(payload) in REFUSED
        assert not file.exists()
        line.set_quirks()
        assert await ran(payload) == 0
        assert file.read_bytes() == await line.of_the_cloud(line.session)
        assert await ran({**payload, "csv": {"url": "x", "revision": 0}}) is None
        assert await ran({**payload, "session": {"id": '"; touch x; "'}}) is None


def found(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    return path or pytest.skip(f"needs {program}")


def nginx(folder: Path, page: str, port: int) -> list[str]:
    """The command that runs the page's server, without TLS and with the port and files of this test."""
    server = re.sub(r"\n    ssl_\S+ .*;", "", block(page, "nginx", "proxy_pass")).replace("/var/log/nginx", str(folder))
    server = server.replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    before = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}"
    (folder / "nginx.conf").write_text(f"{before}\nhttp {{ {temporary}\n{server} }}")
    return [found("nginx"), "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log", "-p", str(folder)]


def caddy(folder: Path, page: str, port: int) -> list[str]:
    program = found("caddy")
    version = subprocess.run([program, "version"], capture_output=True, check=True, text=True).stdout
    if [int(one) for one in re.findall(r"\d+", version)[:2]] < [2, 8]:
        pytest.skip("Caddy before 2.8 ends a broken file in order")
    server = block(page, "caddyfile", "reverse_proxy").replace("{\n", "{\n\tadmin off\n", 1)
    address = f"http://bridge.example.org:{port} {{\n\tbind 127.0.0.1\n"
    (folder / "Caddyfile").write_text(server.replace("bridge.example.org {\n", address))
    return [program, "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


@asynccontextmanager
async def listening(command: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    def is_open() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    with (folder / "stderr.log").open("wb") as log:
        environment = {**os.environ, "HOME": str(folder)}
        process = await asyncio.create_subprocess_exec(*command, stderr=log, env=environment)
    try:
        await until(is_open, within=60, what=command[0])
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("below", ["", "/bace"])
@pytest.mark.parametrize("proxy", [nginx, caddy])
async def test_behind_a_reverse_proxy(proxy: Callable[[Path, str, int], list[str]], below: str, tmp_path: Path) -> None:
    port, own = free_port(), tmp_path / "proxy"
    own.mkdir()
    base = f"https://bridge.example.org{below}"
    async with csv_line(tmp_path, samples=4000, csv={"link_base": base}) as line:
        page = PAGE.replace("127.0.0.1:8099", f"127.0.0.1:{line.port}")
        page = page.replace("location /csv/", f"location {below}/csv/").replace(
            "handle /csv/*", f"handle {below}/csv/*"
        )
        link = await line.link(line.session)
        assert link.startswith(f"{base}/csv/")

        async def curl(*more: str, target: str = target_of(link)) -> tuple[int, str]:
            words = ["curl", "-s", "--path-as-is", "-w", "%{http_code}", "-o", str(tmp_path / "got"), *more]
            words += ["-H", "Host: bridge.example.org", f"http://127.0.0.1:{port}{target}"]
            done = await asyncio.to_thread(subprocess.run, words, check=False, capture_output=True, text=True)
            return done.returncode, done.stdout

        async with listening(proxy(own, page, port), own, port):
            assert await curl() == (0, "200")
            whole = await line.of_the_cloud(line.session)
            assert (tmp_path / "got").read_bytes() == whole
            (tmp_path / "got").write_bytes(whole[:1000])
            assert await curl("-C", "-") == (33, "200"), "it cannot resume, and takes nothing for complete"
            for method in ("HEAD", "POST", "OPTIONS"):
                assert await curl("-X", method, *(["-I"] * (method == "HEAD"))) == (0, "405")
            for path in ("/", "/healthz", "//readyz", "/csv/../healthz", "/csv/%2e%2e/healthz", "/csv/..%2fhealthz"):
                for target in (path, below + path, path + target_of(link).removeprefix(f"{below}/csv")):
                    assert await curl(target=target) == (0, "404"), target
            for quirk in ("csv-truncated", "csv-cut", "csv-short"):
                line.set_quirks(quirk)
                status, _ = await curl()
                assert status in REFUSED, quirk
            if proxy is nginx:
                assert await curl("--http1.0") == (0, "505"), "it could not say that the file broke off"
        logged = "".join(one.read_text() for one in own.glob("*.log"))
        assert "/csv/" in logged
        assert set(re.findall(r"signature=[^&\"\s]*", logged)) <= {"signature=REDACTED"}
