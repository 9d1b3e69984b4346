"""What `check` accepts of `datatypes` and `home_assistant`, Home Assistant takes; what it refuses has a hint."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bace_bridge.config.datatypes import KNOWN_DATATYPES, UNITS, over_the_known, state_classes
from bace_bridge.config.load import load
from bace_bridge.config.models import FILE_MODEL, Config, warnings
from bace_bridge.errors import ConfigError
from bace_bridge.events.types import DeviceState, Series
from bace_bridge.sinks.mqtt.config import HomeAssistantConfig
from bace_bridge.sinks.mqtt.homeassistant.discovery import Discovery
from bace_bridge.sinks.mqtt.topics import Topics
from tests.homeassistant_schema import components

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def loaded(tmp_path: Path, datatypes: dict[Any, Any]) -> Config:
    file = tmp_path / "bridge.yaml"
    file.write_text(yaml.safe_dump({"cloud": {"access_token": "t"}, "datatypes": datatypes}), encoding="utf-8")
    return load(file, {})


def mistakes(tmp_path: Path, datatypes: dict[Any, Any]) -> list[tuple[str, str, str]]:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, datatypes)
    return [(one.path, one.problem, one.hint) for one in refused.value.mistakes]


@pytest.mark.parametrize(
    ("entry", "key", "words"),
    [
        (
            {"unit": "C", "device_class": "temperature"},
            "unit",
            "does not go with the device_class temperature|°C, °F, K",
        ),
        ({"device_class": "temperature"}, "unit", "is missing: device_class temperature needs one|one of °C, °F, K"),
        ({"unit": "", "device_class": "voltage"}, "unit", "is missing: device_class voltage needs one|V, mV, µV"),
        ({"unit": "pH", "device_class": "ph"}, "unit", 'does not go with the device_class ph|units of ph: ""'),
        ({"unit": "µs", "device_class": "duration"}, "unit", "does not go with the device_class|d, h, min, ms, s"),
        ({"unit": "x", "device_class": "power_factor"}, "unit", 'does not go with|units of power_factor: "", %'),
        (
            {"unit": "kWh", "device_class": "energy"},
            "state_class",
            "does not go with device_class energy|use total or total_increasing",
        ),
        (
            {"unit": "K", "device_class": "temperature", "state_class": "total"},
            "state_class",
            "does not go with device_class temperature|use measurement",
        ),
        (
            {"device_class": "Temperature"},
            "device_class",
            "is not a device class of a sensor|did you mean temperature?",
        ),
        ({"device_class": "timestamp"}, "device_class", "is not a device class of a sensor with numbers|known: "),
        ({"device_class": "qwxyz"}, "device_class", "is not a device class of a sensor with numbers|known: "),
        ({"device_class": 3}, "device_class", "must be text|"),
        ({"state_class": "measurment"}, "state_class", "must be 'measurement', 'total' or 'total_increasing'|"),
        ({"state_class": "measurement_angle"}, "state_class", "must be 'measurement', 'total'|"),
        ({"icon": "heart"}, "icon", "must be the name of an icon|mdi:heart-pulse"),
        ({"icon": "mdi:Heart"}, "icon", "must be the name of an icon|mdi:heart-pulse"),
        ({"icon": "mdi:heart\n"}, "icon", "must be the name of an icon|mdi:heart-pulse"),
        ({"icon": "mdi:"}, "icon", "must be the name of an icon|mdi:heart-pulse"),
        ({"precision": -1}, "precision", "must be a whole number from 0 to 15|digits after the decimal point"),
        ({"precision": 16}, "precision", "must be a whole number from 0 to 15|digits after the decimal point"),
        ({"precision": 1.5}, "precision", "must be a whole number|"),
        ({"precision": True}, "precision", "must be a whole number|"),
        ({"category": "config"}, "category", "must be 'diagnostic'|"),
        ({"enabled": "maybe"}, "enabled", "must be true or false|"),
        ({"name": " "}, "name", "is empty|"),
        ({"name": "x" * 101}, "name", "must have at most 100 characters|"),
        ({"unit": "x" * 101}, "unit", "must have at most 100 characters|"),
        ({"name": "a\tb"}, "name", "holds the character U+0009|use plain characters"),
        ({"devise_class": "weight"}, "devise_class", "is not a key that bace-bridge knows|did you mean device_class?"),
    ],
)
@pytest.mark.parametrize("number", [7000, "7000"])
def test_a_mistake_has_a_path_and_a_hint(
    tmp_path: Path, entry: dict[str, Any], key: str, words: str, number: Any
) -> None:
    ((path, problem, hint),) = mistakes(tmp_path, {number: entry})
    assert path == f"datatypes.7000.{key}"
    expected, of_hint = words.split("|")
    assert problem.startswith(expected)
    assert of_hint in hint


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        {
            1: {"unit": "C", "device_class": "temperature", "state_class": "total"},
            2: {"icon": "x", "precision": -1, "device_class": "temperature"},
            3: {"unit": "lx", "device_class": "weight"},
        },
    )
    assert [path for path, _, _ in found] == [
        "datatypes.1.unit", "datatypes.1.state_class", "datatypes.3.unit", "datatypes.2.icon", "datatypes.2.precision",
    ]  # fmt: skip


def test_an_entry_goes_with_what_is_built_in(tmp_path: Path) -> None:
    assert [one[:2] for one in mistakes(tmp_path, {6000: {"device_class": "weight"}})] == [
        ("datatypes.6000.device_class", "does not go with the unit 'bpm'")
    ]
    weight = loaded(tmp_path, {6011: {"unit": "lb"}}).datatypes[6011]
    assert (weight.name, weight.device_class, weight.precision) == ("Body weight", "weight", 2)
    # The class was not asked for, and is no longer right.
    assert loaded(tmp_path, {6011: {"unit": "stone"}}).datatypes[6011].device_class is None
    assert loaded(tmp_path, {6011: {"unit": ""}}).datatypes[6011].device_class is None
    assert all(one == over_the_known(number, one) for number, one in KNOWN_DATATYPES.items())


def test_what_is_accepted_passes_the_schema(tmp_path: Path) -> None:
    discovery = Discovery(
        HomeAssistantConfig(), Topics("bace"), installation="i", version="1", requests=True, largest=None
    )
    entries = [
        {"name": f"{one} {number}", "unit": unit, "device_class": one, "state_class": state_class}
        for one, units in UNITS.items()
        for number, unit in enumerate(units)
        for state_class in state_classes(one)
    ]
    config = loaded(tmp_path, dict(enumerate(entries, 1)))
    state = DeviceState("d", available=True, session=None, series=tuple(Series("s", n) for n in config.datatypes))
    ((at, payload),) = discovery.device(state, config.datatypes).items()
    found = components("homeassistant", at, payload)
    classes = {one.get("dev_cla") for key, one in found.items() if key.startswith("s_")}
    assert classes >= UNITS.keys()
    assert json.loads(payload)["cmps"].keys() >= {f"s_{number}" for number in range(1, len(entries) + 1)}


def test_the_docs_have_every_device_class_with_its_units() -> None:
    table = DOCS.read_text(encoding="utf-8").split("### Device classes")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `") and "units" not in line]
    documented = {
        name: [unit.strip(" `").replace("none", "") for unit in units.split(",")]
        for names, units in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert documented == {name: list(units) for name, units in UNITS.items()}


@pytest.mark.parametrize(
    ("other", "warned"),
    [
        ({}, True),
        ({"url": "mqtt://HOST:1883"}, True),
        ({"url": "ws://host:1883"}, True),
        ({"url": "mqtt://host:1884"}, False),
        ({"url": "mqtt://other"}, False),
        ({"home_assistant": {"prefix": "ha"}}, False),
        ({"home_assistant": {"enabled": False}}, False),
    ],
)
def test_two_sinks_that_announce_the_same_devices_at_a_broker_are_warned_about(
    other: dict[str, Any], warned: bool
) -> None:
    brokers = [{"name": "a", "url": "mqtt://host"}, {"name": "b", "url": "mqtt://host", "base_topic": "b", **other}]
    found = warnings(FILE_MODEL.model_validate({"cloud": {}, "mqtt": brokers}), now=0)
    about = [line.split(": ")[0] for line in found if "announces" in line]
    assert about == (["mqtt[1].home_assistant"] if warned else [])
