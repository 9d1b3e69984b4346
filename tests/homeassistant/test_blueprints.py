"""The automations of docs/home-assistant.md, as blueprints and by hand, in a real Home Assistant."""

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.homeassistant.home import ROOT, HomeAssistant, home_assistant
from tests.homeassistant.line import Line, line
from tests.integration.brokers import Mosquitto

BLUEPRINTS = ROOT / "docs" / "blueprints"


@pytest.fixture
async def home(tmp_path: Path, mosquitto: Mosquitto) -> AsyncIterator[HomeAssistant]:
    """With the blueprints, and something to turn on."""
    folder = tmp_path / "homeassistant" / "blueprints" / "automation" / "bace"
    shutil.copytree(BLUEPRINTS, folder)
    async with home_assistant(tmp_path, mosquitto.port, more={"input_boolean": {"lamp": None}}) as one:
        yield one


@pytest.fixture
async def whole(tmp_path: Path, home: HomeAssistant, mosquitto: Mosquitto) -> AsyncIterator[Line]:
    async with line(tmp_path, home, mosquitto) as one:
        yield one


async def use(whole: Line, blueprint: str, **inputs: Any) -> None:
    await whole.home.automate(blueprint, use_blueprint={"path": f"bace/{blueprint}.yaml", "input": inputs})


async def notified(whole: Line, count: int) -> list[tuple[str, str]]:
    """Title and message of each notification, as soon as there are so many."""
    found = await whole.home.asked("persistent_notification/get", lambda found: len(found) >= count, "notifications")
    return [(one["title"], one["message"]) for one in found]


async def lamp_is(whole: Line, state: str) -> None:
    lamp = ("input_boolean.lamp", state)
    await whole.home.asked(
        "get_states", lambda found: lamp in {(one["entity_id"], one["state"]) for one in found}, f"the lamp is {state}"
    )


async def test_home_assistant_takes_them_all(home: HomeAssistant) -> None:
    found = await home.ask("blueprint/list", domain="automation")
    ours = {name.removeprefix("bace/"): one for name, one in found.items() if name.startswith("bace/")}
    assert ours.keys() == {path.name for path in BLUEPRINTS.iterdir()}
    assert [one for one in ours.values() if "error" in one] == []


async def test_a_notification_with_the_csv(whole: Line) -> None:
    async with whole.bridged():
        session = whole.starts(whole.device)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, running="on"), "it runs")
        await use(whole, "csv_ready", bace_go=await whole.device_id(whole.device))
        whole.cloud.change(session, label="Walk")
        whole.ends(session)
        ((title, message),) = await notified(whole, 1)
        assert title == "Walk has ended"
        assert message.startswith("3 datapoints in 0 minutes: http://")
        assert message.endswith(f"/data-session/{session}/download-csv")
    assert whole.home.complaints == []


async def test_an_alarm_for_a_value_and_for_a_device_that_is_gone(whole: Line) -> None:
    async with whole.bridged() as bridge:
        session = whole.starts(whole.device)
        found = await whole.home.becomes(lambda found: whole.says(found, whole.device, heart="61.0"), "it runs")
        heart, running = whole.of(found, whole.device, 6000), whole.of(found, whole.device, "running")
        assert heart is not None
        assert running is not None
        of_device = {"value": heart.entity_id, "running": running.entity_id, "lasts": 0, "gone": 1}
        await use(whole, "out_of_range", **of_device, above=120, below=45)
        whole.values = 129.0
        whole.measures(whole.device, session)
        high = await notified(whole, 1)
        assert high == [("BaceGo-001-002-00020", "BaceGo-001-002-00020 Heart rate is too high: 130 bpm")]
        whole.values = 39.0
        whole.measures(whole.device, session)
        assert (await notified(whole, 2))[1][1] == "BaceGo-001-002-00020 Heart rate is too low: 40 bpm"
        await bridge.stop()
        assert (await notified(whole, 3))[2][1] == "is not available, while it was measuring"
    assert whole.home.complaints == []


async def test_the_messages_by_hand(whole: Line) -> None:
    """With the triggers and conditions that the editor of Home Assistant 2025.4 made of the page's steps."""
    of_csv, of_alarm = re.findall(r"```\n\s+({{.*}})\n\s+```", (ROOT / "docs" / "home-assistant.md").read_text("utf-8"))

    def notify(message: str) -> dict[str, Any]:
        return {"action": "persistent_notification.create", "metadata": {}, "data": {"message": message}}

    async with whole.bridged(whole.configure(home_assistant={"after_session": "keep"})) as bridge:
        session = whole.starts(whole.device)
        found = await whole.home.becomes(lambda found: whole.says(found, whole.device, heart="61.0"), "it runs")
        heart, running = whole.of(found, whole.device, 6000), whole.of(found, whole.device, "running")
        assert heart is not None
        assert running is not None
        state = {"trigger": "state", "entity_id": [running.entity_id]}
        not_running = {"condition": "state", "entity_id": running.entity_id, "state": "off"}
        await whole.home.automate(
            "alarm",
            triggers=[
                {"trigger": "numeric_state", "entity_id": [heart.entity_id], "above": 120},
                {**state, "from": "on", "to": "unavailable"},
            ],
            conditions=[{"condition": "not", "conditions": [not_running]}],
            actions=[notify(of_alarm)],
        )
        device = {"domain": "mqtt", "device_id": await whole.device_id(whole.device)}
        await whole.home.automate(
            "csv",
            triggers=[{"trigger": "device", **device, "type": "CSV ready", "subtype": "Session"}],
            actions=[notify(of_csv)],
        )
        whole.ends(session)
        csv = (await notified(whole, 1))[0][1]
        assert csv.endswith(f"/data-session/{session}/download-csv")
        whole.values = 130.0
        whole.starts(whole.device)
        assert (await notified(whole, 2))[1][1] == "BaceGo-001-002-00020 Heart rate: 131.0"
        await bridge.stop()
        assert (await notified(whole, 3))[2][1] == "BaceGo-001-002-00020 Running: unavailable"
    assert whole.home.complaints == []


async def test_a_lamp_that_is_on_during_a_session(whole: Line) -> None:
    async with whole.bridged():
        first = whole.starts(whole.device)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, running="on"), "it is known")
        whole.ends(first)
        found = await whole.home.becomes(lambda found: whole.says(found, whole.device, running="off"), "its end")
        running = whole.of(found, whole.device, "running")
        assert running is not None
        target = {"entity_id": "input_boolean.lamp"}
        await use(whole, "while_running", running=running.entity_id, what=target)
        session = whole.starts(whole.device)
        await lamp_is(whole, "on")
        whole.cloud.end_session(session)
        await lamp_is(whole, "off")
    assert whole.home.complaints == []
