"""The automation of docs/csv.md, in a real Home Assistant."""

import json
from pathlib import Path

import yaml

from tests.acceptance.line import until
from tests.acceptance.test_recipes import block
from tests.homeassistant.home import ROOT, home_assistant
from tests.homeassistant.line import SOON, line
from tests.integration.brokers import Mosquitto, free_port


async def test_each_csv_is_archived(tmp_path: Path, mosquitto: Mosquitto) -> None:
    page = (ROOT / "docs" / "csv.md").read_text(encoding="utf-8").replace("/media/bace", str(tmp_path))
    recipe, port = yaml.safe_load(block(page, "yaml", "shell_command:")), free_port()
    (automation,) = recipe["automation bace csv"]
    more = {"shell_command": recipe["shell_command"]}
    async with home_assistant(tmp_path, mosquitto.port, more=more) as home, line(tmp_path, home, mosquitto) as whole:
        path = whole.configure()
        served = {"http": {"listen": f"127.0.0.1:{port}"}, "csv": {"link_base": f"http://127.0.0.1:{port}"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | served))
        async with whole.bridged(path):
            session = whole.starts(whole.device)
            await home.becomes(lambda found: whole.says(found, whole.device, running="on"), "it runs")
            automation["triggers"][0]["device_id"] = await whole.device_id(whole.device)
            await home.automate("archive", **automation)
            whole.ends(session)
            file = tmp_path / f"{session}.0.csv"
            await until(file.exists, within=SOON, what="the file")
        header, *rows = file.read_text().splitlines()
        assert "id_container_data_latest" in header
        assert len(rows) == 3
        assert home.complaints == []
