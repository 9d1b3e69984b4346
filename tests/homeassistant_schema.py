"""What Home Assistant takes as discovery: the keys that every version from 2025.1 to 2026.11 allows, and no others.

Read from `components/mqtt` of 2025.1.0, 2025.4.4 and 2026.11.0 (`schemas.py`, `abbreviations.py`, `device_trigger.py`
and the platforms). Home Assistant ignores unknown keys of a component; here they are refused, since a misspelt one has
no effect. `rendered` renders a template as Home Assistant does, but raises where that would only log.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bace_bridge.config.datatypes import UNITS, state_classes

JSON = Mapping[str, Any]
LARGEST_STATE = 255
LARGEST_ATTRIBUTES = 16 * 1024


def text(value: Any) -> None:
    assert isinstance(value, str), value
    assert value.strip() == value != "", value


def boolean(value: Any) -> None:
    assert isinstance(value, bool), value


def one_of(*allowed: Any) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        assert value in allowed, value
        assert not isinstance(value, bool), value

    return check


def matching(pattern: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        assert isinstance(value, str), value
        assert re.fullmatch(pattern, value), value

    return check


def topic(value: Any) -> None:
    text(value)
    assert not re.search("[+#\0-\x1f\x7f-\x9f\ud800-\udfff]", value), value
    assert len(value.encode()) <= 65_535


def whole_number(value: Any) -> None:
    assert isinstance(value, int), value
    assert not isinstance(value, bool), value
    assert value >= 0, value


def template(value: Any) -> None:
    text(value)
    ENVIRONMENT.parse(value)


def texts(value: Any) -> None:
    assert isinstance(value, list), value
    assert value, "is empty"
    for one in value:
        text(one)


def availability(value: Any) -> None:
    assert isinstance(value, list), value
    for one in value:
        checked(one, {"t": topic}, {"val_tpl": template})


Checks = Mapping[str, Callable[[Any], None]]

DEVICE: Checks = {
    "mf": text, "mdl": text, "mdl_id": text, "hw": text, "sw": text, "sn": text, "sa": text, "via_device": text,
    "cu": matching(r"(https?|homeassistant)://\S+"),
}  # fmt: skip
ORIGIN: Checks = {"sw": text, "url": matching(r"https?://\S+")}
AVAILABILITY: Checks = {"avty": availability, "avty_mode": one_of("all", "any", "latest")}
UNIQUE_ID = {"uniq_id": matching(r"bace_[A-Za-z0-9_-]+")}
COMMON: Checks = {
    **AVAILABILITY, "name": text, "ic": matching(r"mdi:[a-z0-9-]+"), "qos": one_of(0, 1, 2), "en": boolean,
    "ent_cat": one_of("diagnostic"),
}  # fmt: skip
ATTRIBUTES: Checks = {"json_attr_t": topic, "json_attr_tpl": template}
STATE: Checks = {"stat_t": topic, "val_tpl": template}
BINARY_SENSORS = ("connectivity", "problem", "running")
PLATFORMS: Mapping[str, tuple[Checks, Checks]] = {
    "binary_sensor": ({**UNIQUE_ID, **STATE}, {**COMMON, **ATTRIBUTES, "dev_cla": one_of(*BINARY_SENSORS)}),
    "sensor": (
        {**UNIQUE_ID, **STATE},
        {
            **COMMON, **ATTRIBUTES, "dev_cla": one_of("timestamp", *UNITS), "unit_of_meas": text,
            "stat_cla": one_of("measurement", "total", "total_increasing"), "sug_dsp_prc": whole_number,
        },
    ),
    "event": ({**UNIQUE_ID, **STATE, "evt_typ": texts}, {**COMMON, **ATTRIBUTES}),
    "button": ({**UNIQUE_ID, "cmd_t": topic}, {**COMMON, "pl_prs": text}),
    "device_automation": (
        {"atype": one_of("trigger"), "t": topic, "type": text, "stype": text},
        {"pl": text, "val_tpl": template, "qos": one_of(0, 1, 2)},
    ),
}  # fmt: skip


def checked(value: Any, required: Checks, optional: Checks) -> None:
    assert isinstance(value, dict), value
    assert required.keys() <= value.keys(), required.keys() - value.keys()
    for key, one in value.items():
        check = required.get(key) or optional.get(key)
        assert check is not None, f"{key} is not known to every version"
        try:
            check(one)
        except AssertionError as error:
            raise AssertionError(f"{key}: {error}") from error


def identifiers(value: Any) -> None:
    texts(value)
    for one in value:
        assert re.fullmatch(r"bace_[A-Za-z0-9_-]+", one), one


def about(value: Any) -> None:
    checked(value, {"ids": identifiers, "name": text}, DEVICE)


def origin(value: Any) -> None:
    checked(value, {"name": text}, ORIGIN)


ROOT: Checks = {"dev": about, "o": origin}


def by_key(value: Any) -> None:
    assert isinstance(value, dict), value


def component(value: JSON) -> None:
    required, optional = PLATFORMS[value["p"]]
    checked(value, {"p": one_of(*PLATFORMS), **required}, optional)
    if value["p"] != "sensor":
        return
    device_class, unit = value.get("dev_cla"), value.get("unit_of_meas", "")
    if device_class == "timestamp":
        assert {"unit_of_meas", "stat_cla", "sug_dsp_prc"}.isdisjoint(value), "a time is no number"
    elif device_class is not None:
        assert unit in UNITS[device_class], f"{unit} does not fit {device_class}"
    if "stat_cla" in value:
        assert value["stat_cla"] in state_classes(device_class)


def components(prefix: str, at: str, payload: bytes) -> dict[str, JSON]:
    """The components of a message by their keys, with the availability that holds for them; all is checked."""
    document = json.loads(payload)
    level = r"bace_[A-Za-z0-9_-]+"
    found = re.fullmatch(rf"{re.escape(prefix)}/(\w+)/({level})/(?:([A-Za-z0-9_-]+)/)?config", at)
    assert found, at
    kind, identifier, key = found[1], found[2], found[3]
    assert document["dev"]["ids"] == [identifier]
    if kind == "device":
        assert key is None, at
        checked(document, {**ROOT, "cmps": by_key}, AVAILABILITY)
        parts = document["cmps"]
        shared = {one: document[one] for one in AVAILABILITY if one in document}
    else:
        assert document["p"] == kind, at
        for one, check in ROOT.items():
            check(document.pop(one))
        parts, shared = {key: document}, {}
    for name, one in parts.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name), name
        if one.keys() == {"p"}:
            continue
        component(one)
        assert one.get("uniq_id", f"{identifier}_{name}") == f"{identifier}_{name}"
    return {name: {**shared, **one} for name, one in parts.items()}


ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


def rendered(source: str, payload: bytes) -> str:
    """As Home Assistant does with a payload; raises also where it would only log."""
    known: dict[str, Any] = {"value": payload.decode()}
    with suppress(ValueError):
        known["value_json"] = json.loads(payload, parse_constant=_refuse, parse_float=_finite)
    return _compiled(source).render(known).strip()


@cache
def _compiled(source: str) -> Template:
    return ENVIRONMENT.from_string(source)


def _refuse(text_: str) -> Any:
    raise ValueError(text_)


def _finite(text_: str) -> float:
    # As orjson, which Home Assistant decodes with: 1e999 is no JSON.
    if math.isinf(number := float(text_)):
        raise ValueError(text_)
    return number


def topics_of(one: JSON) -> Iterator[tuple[str, str, str]]:
    """What is rendered of a component: for what, the topic, the template."""
    if "val_tpl" in one:
        yield "state", one.get("stat_t", one.get("t")), one["val_tpl"]
    if "json_attr_tpl" in one:
        yield "attributes", one["json_attr_t"], one["json_attr_tpl"]
    for entry in one.get("avty", []):
        if "val_tpl" in entry:
            yield "availability", entry["t"], entry["val_tpl"]


def takes(one: JSON, what: str, state: str) -> None:
    """Fails where Home Assistant would log something for what was rendered."""
    if what == "availability":
        assert state in {"online", "offline"}
    elif what == "attributes":
        assert isinstance(json.loads(state), dict)
        assert len(state.encode()) < LARGEST_ATTRIBUTES
    elif one["p"] == "binary_sensor":
        assert state in {"ON", "OFF", "None"}
    elif one["p"] == "event":
        if state:
            document = json.loads(state)
            assert document["event_type"] in one["evt_typ"]
            assert len(state.encode()) < LARGEST_ATTRIBUTES
    elif one["p"] == "sensor" and state != "None":
        if one.get("dev_cla") == "timestamp":
            assert datetime.fromisoformat(state).tzinfo is not None
        elif {"stat_cla", "unit_of_meas", "dev_cla", "sug_dsp_prc"}.isdisjoint(one):
            assert len(state) <= LARGEST_STATE
        else:
            assert math.isfinite(float(state)), state
