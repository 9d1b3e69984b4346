"""What is no longer meant leaves nothing behind in Home Assistant, even if the bridge or both were down meanwhile."""

from collections.abc import Callable
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from tests.homeassistant.line import Line

ONE = SimulatedCloud().add_device("BaceGo-001-002-00020").id_group
NO_DISCOVERY, OTHER_PREFIX = "no discovery", "another prefix"
CHANGES: dict[str, tuple[dict[str, Any], Callable[[Line, str], bool]]] = {
    "a device that is not wanted any more": (
        {"groups": [ONE]},
        lambda whole, name: whole.other.id_group in name,
    ),
    NO_DISCOVERY: ({"home_assistant": {"enabled": False}}, lambda _, name: bool(name)),
    OTHER_PREFIX: ({"home_assistant": {"prefix": "elsewhere"}}, lambda _, name: bool(name)),
    "another base topic": ({"base_topic": "home/bace"}, lambda _, name: not name),
    "no requests": ({"requests": False}, lambda _, name: name.endswith("_poll") and "_last_" not in name),
    "no requests, in the other mode": (
        {"requests": False, "home_assistant": {"mode": "component"}},
        lambda _, name: name.endswith("_poll") and "_last_" not in name,
    ),
    "a sink that is gone": ({}, lambda _, name: name.endswith("_backlog_hook")),
    "another name of a series": ({"datatypes": {9999: {"name": "Steps"}}}, lambda _, name: not name),
}
"""What is configured otherwise at the second start, and which entities are gone then."""


# The bridge does not hear of a start of Home Assistant that it is to leave alone.
WHILE_DOWN = [(change, True) for change in CHANGES if change not in {NO_DISCOVERY, OTHER_PREFIX}]


@pytest.mark.parametrize(("change", "home_was_down"), [*((change, False) for change in CHANGES), *WHILE_DOWN])
async def test_nothing_is_left_behind(whole: Line, change: str, home_was_down: bool) -> None:
    settings, is_gone = CHANGES[change]
    async with whole.bridged(whole.configure(hook_url="http://127.0.0.1:9/" if "sink" in change else None)):
        session = whole.starts(whole.device)
        whole.starts(whole.other)
        before = await whole.home.becomes(
            lambda found: (
                whole.says(found, whole.device, running="on", heart="61.0", unknown="61.0")
                and whole.says(found, whole.other, running="on", heart="62.0")
            ),
            "both run",
        )
    if home_was_down:
        await whole.home.stop()
    value = whole.measures(whole.device, session, series=[6000])
    expected = {name for name in before if not is_gone(whole, name)}
    assert (expected != before.keys()) == ("another" not in change or "prefix" in change)
    async with whole.bridged(whole.configure(**settings)):
        if home_was_down:
            await whole.home.start()
        found = await whole.home.becomes(
            lambda found: (
                found.keys() == expected
                and (not found or whole.says(found, whole.device, running="on", heart=str(value)))
            ),
            change,
        )
        devices = await whole.home.devices()
        assert devices.keys() == {one for one in devices if any(name.startswith(f"{one}_") for name in found)}
        renamed = whole.of(found, whole.device, 9999)
        name = "Steps" if "name" in change else "Datatype 9999"
        assert renamed is None or renamed.attributes["friendly_name"] == f"BaceGo-001-002-00020 {name}"
        assert renamed is None or renamed.entity_id == "sensor.bacego_001_002_00020_datatype_9999"
        if "mode" not in change:  # for each device it says once that nothing is left to clean up
            whole.settled(found)
