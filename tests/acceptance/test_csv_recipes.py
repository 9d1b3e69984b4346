"""The recipes of docs/csv.md, taken from its text: what is printed there runs, and leaves no half file."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.acceptance.line import SECRET, until
from tests.acceptance.test_recipes import block
from tests.integration.brokers import free_port
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
    assert nodes["switch"]["rules"] == [{"t": "eq", "v": "200", "vt": "num"}]
    if shutil.which("node") is None:
        pytest.skip("needs node")
    async with csv_line(tmp_path) as line:
        others = [{"event_type": "session.ended", "session": {"id": "x"}}]
        others.append({**event(line), "csv": {"url": "x", "revision": 0}})
        for payload, expected in (
            (event(line), {"url": await line.link(line.session), "filename": f"/data/csv/{line.session}.0.csv"}),
            *((other, None) for other in others),
        ):
            program = f"const run = new Function('msg', {json.dumps(nodes['function']['func'])});"
            program += f"console.log(JSON.stringify(run({json.dumps({'payload': payload})})))"
            done = await asyncio.to_thread(subprocess.run, ["node", "-e", program], capture_output=True, check=True)
            assert json.loads(done.stdout) == expected


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


@asynccontextmanager
async def nginx(folder: Path, port: int, upstream: int) -> AsyncIterator[None]:
    """The page's server, without TLS and with the ports and files of this test."""
    server = block(PAGE, "nginx", "location /csv/")
    server = re.sub(r"\n    ssl_\S+ .*;", "", server).replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    server = server.replace("127.0.0.1:8099", f"127.0.0.1:{upstream}").replace("/var/log/nginx", str(folder))
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    before = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}"
    config.write_text(f"{before}\nhttp {{ {temporary}\n{server} }}")
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs nginx")
    process = await asyncio.create_subprocess_exec(program, "-c", config, "-e", folder / "error.log", "-p", folder)
    try:
        await until((folder / "nginx.pid").exists, within=60, what="nginx")
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_behind_nginx(tmp_path: Path) -> None:
    port = free_port()
    base = "https://bridge.example.org"
    async with csv_line(tmp_path, samples=4000, csv={"link_base": base}) as line, nginx(tmp_path, port, line.port):
        link = await line.link(line.session)
        assert link.startswith(f"{base}/csv/")
        target = target_of(link)

        async def got(*more: str) -> int:
            words = ["curl", "-s", *more, "-H", "Host: bridge.example.org", f"http://127.0.0.1:{port}{target}"]
            words += ["-o", str(tmp_path / "got")]
            return (await asyncio.to_thread(subprocess.run, words, check=False)).returncode

        assert await got("-f") == 0
        whole = await line.of_the_cloud(line.session)
        assert (tmp_path / "got").read_bytes() == whole
        (tmp_path / "got").write_bytes(whole[:1000])
        assert await got("-C", "-") == 33, "curl says that it cannot resume, and takes nothing for complete"
        for quirk in ("csv-truncated", "csv-cut", "csv-short"):
            line.set_quirks(quirk)
            assert await got() in REFUSED, quirk
            assert await got("--http1.0") in REFUSED | {0}, "of HTTP/1.0 no proxy can say it"
        logged = [one.read_text() for one in tmp_path.glob("*.log")]
        assert any("/csv/" in one for one in logged)
        assert not any("signature=" in one for one in logged if "upstream" not in one)
