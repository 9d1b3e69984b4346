"""Takes the pictures of docs/home-assistant.md: `make pictures`, with Chromium, and with the rig of these tests.

The simulator's devices in a real Home Assistant; each picture is of its real pages.
"""

import asyncio
import base64
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.player import play
from bace_bridge.simulator.scenario import parse
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, running
from tests.homeassistant.home import INSTALLED, ROOT, HomeAssistant, home_assistant
from tests.integration.brokers import Mosquitto

IMAGES = ROOT / "docs" / "images"
MEASURES = 150.0
"""Seconds that the devices measure for before the pictures are taken, so that there is a curve."""

SCENARIO = """
name: pictures
seed: 7
history: {count: 4, spacing: 6h, duration: 45m, points: 20}
devices:
  - {label: BaceGo-001-002-00020, datatypes: [6000, 6001, 6002, 5205]}
  - {label: BaceGo-001-002-00035, datatypes: [6005, 6011, 5205]}
sessions:
  - {device: BaceGo-001-002-00020, at: 3s, duration: 1h, sample_every: 3s, ingestion_lag: 5s}
  - {device: BaceGo-001-002-00035, at: 3s, duration: 30s, sample_every: 2s, label: Weight, ingestion_lag: 5s}
"""
NAMES = {
    5205: {"name": "Battery", "unit": "V", "device_class": "voltage", "precision": 2, "category": "diagnostic"},
    6005: {"name": "Body temperature", "unit": "°C", "device_class": "temperature", "precision": 1},
}


# Home Assistant's pages are nested shadow roots: this finds an element in any of them.
FIND = """
const find = (wanted, root = document) => root.querySelector(wanted) ?? [...root.querySelectorAll('*')]
  .map(one => one.shadowRoot && find(wanted, one.shadowRoot)).find(one => one);
"""
OPEN_TRIGGER = (
    FIND
    + """(async () => {
  const row = find('ha-automation-trigger-row');
  find('ha-expansion-panel', row.shadowRoot).expanded = true;
  await new Promise(done => setTimeout(done, 3000));
  const triggers = find('ha-device-trigger-picker', row.shadowRoot);
  find('.mdc-select__anchor', triggers.shadowRoot).click();
})()
"""
)


class Page:
    """A page of Chromium, over its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def do(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=60)
            if answer.get("id") == self._number:
                return answer["result"]

    async def picture(
        self, name: str, url: str, *, width: int, height: int, then: str = "", settles: float = 6
    ) -> None:
        """Of the page as it is `settles` seconds after it was opened, and after this JavaScript."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.do("Emulation.setDeviceMetricsOverride", **size)
        await self.do("Page.navigate", url=url)
        await asyncio.sleep(settles)  # there is no sign for the last card
        if then:
            await self.do("Runtime.evaluate", expression=then, awaitPromise=True)
            await asyncio.sleep(settles / 2)
        taken = await self.do("Page.captureScreenshot", format="png")
        (IMAGES / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Page]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        sys.exit("Chromium is not installed (Debian: apt-get install chromium)")
    process = await asyncio.create_subprocess_exec(
        path, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
        f"--user-data-dir={folder}", "about:blank",
        stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = folder / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not port.exists() or not port.read_text():
                await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        async with aiohttp.ClientSession() as client:
            async with client.get(address) as answer:
                pages = [one for one in await answer.json() if one["type"] == "page"]
            async with client.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.do("Page.enable")
                yield page
    finally:
        process.terminate()
        await process.wait()


async def log_in(page: Page, home: HomeAssistant) -> None:
    tokens = {
        "access_token": home.token, "token_type": "Bearer", "expires_in": 10**6, "expires": 10**14,
        "hassUrl": home.url, "clientId": f"{home.url}/", "refresh_token": "",
    }  # fmt: skip
    source = f"localStorage.setItem('hassTokens', {json.dumps(json.dumps(tokens))});"
    source += "localStorage.setItem('dockedSidebar', '\"always_hidden\"');"
    await page.do("Page.addScriptToEvaluateOnNewDocument", source=source)


async def dashboard(home: HomeAssistant) -> None:
    def of(device: str, *keys: str) -> list[str]:
        return [f"sensor.bacego_001_002_{device}_{key}" for key in keys]

    one, other = "00020", "00035"
    running = f"binary_sensor.bacego_001_002_{one}_running"
    left = [
        {"type": "tile", "entity": running, "name": "Grandma's BACE Go"},
        {
            "type": "gauge",
            "entity": of(one, "heart_rate")[0],
            "name": "Heart rate",
            "min": 40,
            "max": 180,
            "needle": True,
        },
        {
            "type": "entities",
            "title": "Scales",
            "entities": [
                {"entity": f"binary_sensor.bacego_001_002_{other}_running", "name": "Running"},
                {"entity": of(other, "body_weight")[0], "name": "Body weight"},
                {"entity": of(other, "session_ended")[0], "name": "Measured"},
            ],
        },
    ]
    middle = [
        {
            "type": "history-graph",
            "title": "Grandma",
            "hours_to_show": 0.05,
            "entities": [
                {"entity": name, "name": name.split("00020_")[1].replace("_", " ").capitalize()}
                for name in of(one, "heart_rate", "respiration_rate")
            ],
        }
    ]
    right = [
        {
            "type": "entities",
            "title": "Bridge",
            "entities": [
                {"entity": "binary_sensor.bace_bridge_cloud", "name": "Cloud"},
                {"entity": "sensor.bace_bridge_last_poll", "name": "Last poll"},
                {"entity": "sensor.bace_bridge_backlog_home", "name": "Backlog"},
                {"entity": "button.bace_bridge_poll_now", "name": "Poll now"},
            ],
        },
    ]
    columns = [{"type": "vertical-stack", "cards": cards} for cards in (left, middle, right)]
    cards = [{"type": "horizontal-stack", "cards": columns}]
    view = {"title": "BACE", "type": "panel", "cards": cards}
    await home.ask("lovelace/config/save", config={"title": "Home", "views": [view]})


async def automation(home: HomeAssistant) -> None:
    device = (await home.devices())[f"bace_{SimulatedCloud().add_device('BaceGo-001-002-00020').id_group}"]["id"]
    trigger = {"trigger": "device", "domain": "mqtt", "device_id": device, "type": "CSV ready", "subtype": "Session"}
    link = "{{ trigger.payload_json.csv.link or trigger.payload_json.csv.url }}"
    await home.automate(
        "csv_ready",
        alias="A message when the CSV is ready",
        triggers=[trigger],
        conditions=[],
        actions=[{"action": "persistent_notification.create", "data": {"title": "BACE", "message": link}}],
        mode="single",
    )


async def take(folder: Path) -> None:
    mosquitto = Mosquitto(folder)
    mosquitto.start()
    cloud = SimulatedCloud()
    config = None
    try:
        async with SimulatedServer(cloud) as server, home_assistant(folder, mosquitto.port, pages=True) as home:
            playing = asyncio.create_task(play(cloud, parse(SCENARIO)))
            config = configuration(folder, cloud_url=server.url, mqtt_port=mosquitto.port, interval="1s")
            settings = json.loads(config.read_text())
            settings["datatypes"] = NAMES
            settings["mqtt"][0]["home_assistant"] = {"after_session": "keep"}
            config.write_text(json.dumps(settings))
            async with running(config):
                await asyncio.sleep(MEASURES)
                await dashboard(home)
                await automation(home)
                device = (await home.devices())[f"bace_{next(iter(cloud.devices))}"]["id"]
                async with chromium(folder / "chromium") as page:
                    await log_in(page, home)
                    await page.picture(
                        "home-assistant-dashboard", f"{home.url}/lovelace/0", width=1100, height=640, settles=12
                    )
                    url = f"{home.url}/config/devices/device/{device}"
                    await page.picture("home-assistant-device", url, width=760, height=1090)
                    url = f"{home.url}/config/automation/edit/csv_ready"
                    await page.picture("home-assistant-automation", url, width=900, height=900, then=OPEN_TRIGGER)
            playing.cancel()
            with suppress(asyncio.CancelledError):
                await playing
    finally:
        mosquitto.stop()


if __name__ == "__main__":
    if not INSTALLED.exists():
        sys.exit("There is no Home Assistant here: make test-homeassistant installs it")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(take(Path(name)))
