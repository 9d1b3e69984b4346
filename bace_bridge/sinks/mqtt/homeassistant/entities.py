"""What Home Assistant shows of a device and of the bridge: the components of a discovery payload, by their keys.

A key and what it stands for never change: with the device's id it is the entity's `unique_id`. Each template is
guarded: a cleared topic, a missing key and `null` are `unknown`, without a line in Home Assistant's log.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.events.types import (
    SESSION_CSV_READY,
    SESSION_ENDED,
    SESSION_REMOVED,
    SESSION_REOPENED,
    SESSION_STARTED,
    SESSION_UPDATED,
    DeviceState,
    Series,
)
from bace_bridge.sinks.mqtt.topics import Topics

Component = dict[str, Any]
Components = dict[str, Component]

_TRIGGERS = (
    ("started", "started", SESSION_STARTED),
    ("ended", "ended", SESSION_ENDED),
    ("csv_ready", "CSV ready", SESSION_CSV_READY),
    ("reopened", "reopened", SESSION_REOPENED),
)
_EVENT_TYPES = [
    SESSION_STARTED, SESSION_UPDATED, SESSION_ENDED, SESSION_REOPENED, SESSION_CSV_READY, SESSION_REMOVED,
]  # fmt: skip


_NOT_PLAIN = re.compile(r"[^A-Za-z0-9-]")


def escaped(name: str) -> str:
    """A name within `[A-Za-z0-9_-]`: plain ones as they are, and different ones always different.

    So are two of them joined by `_`: an escape is `__` and two hexadecimal digits, an empty name `__x`.
    """
    return _NOT_PLAIN.sub(_hex, name) or "__x"


def _hex(found: re.Match[str]) -> str:
    return "".join(f"__{byte:02x}" for byte in found[0].encode("utf-8", "surrogatepass"))


def whole(text: str) -> str:
    """Without half characters, for which JSON has no bytes."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def literal(text: str) -> str:
    """A string literal of Jinja; whatever is in it ends neither the string nor the braces around it."""
    return "'" + re.sub(r"[^A-Za-z0-9_. -]", lambda found: f"\\U{ord(found[0]):08x}", whole(text)) + "'"


def _value(key: str, test: str) -> str:
    return "{{ value_json.%(key)s if value_json is mapping and value_json.%(key)s is %(test)s else none }}" % {  # noqa: UP031  # braces
        "key": key,
        "test": test,
    }


_SHORTENED = 15_000


def _attributes(body: str) -> str:
    return "{% if value_json is mapping %}{{ " + body + " | tojson }}{% else %}{}{% endif %}"


def of_device(state: DeviceState, topics: Topics, datatypes: Mapping[int, DatatypeConfig], *, keep: bool) -> Components:
    """Those that matter most come first."""
    session, event = topics.session(state.device_id), topics.event(state.device_id)
    running = "value_json is mapping and value_json.state == 'active'"
    replay = "value_json is not mapping or value_json.replay | default(false)"
    components: Components = {
        "running": {
            "p": "binary_sensor", "name": "Running", "dev_cla": "running", "stat_t": session,
            "val_tpl": "{{ 'ON' if " + running + " else 'OFF' }}",
        },
        "session": {
            "p": "event", "name": "Session", "evt_typ": _EVENT_TYPES, "stat_t": event, "ic": "mdi:clipboard-pulse",
            "val_tpl": "{{ '' if " + replay + " else value }}",
        },
        "started": _timestamp("Session started", session, _value("started_at", "string")),
        "ended": _timestamp("Session ended", session, _value("ended_at", "string")),
        "csv": {
            **_timestamp(
                "CSV ready",
                session,
                "{{ value_json.updated_at if value_json is mapping and value_json.csv_url and"
                " value_json.updated_at is string else none }}",
            ),
            "json_attr_t": session,
            "json_attr_tpl": _attributes(
                "{'csv_link': value_json.csv_link | default(none), 'csv_url': value_json.csv_url | default(none),"
                " 'summary': value_json.summary | default(none)}"
            ),
        },
        "duration": {
            "p": "sensor", "name": "Session duration", "dev_cla": "duration", "unit_of_meas": "s", "sug_dsp_prc": 0,
            "stat_t": session, "val_tpl": _value("duration_seconds", "number"),
        },
        "datapoints": {
            "p": "sensor", "name": "Datapoints", "stat_cla": "measurement", "ic": "mdi:counter",
            "ent_cat": "diagnostic", "stat_t": session, "val_tpl": _value("datapoint_count", "number"),
        },
        "last_seen": {
            **_timestamp(
                "Last seen",
                topics.bridge_devices,
                "{{ value_json | selectattr('id', 'eq', " + literal(state.device_id) + ") | map(attribute="
                "'last_seen_at') | first | default(none) if value_json is sequence else none }}",
            ),
            "ent_cat": "diagnostic",
        },
    }  # fmt: skip
    for key, shown, event_type in _TRIGGERS:
        components[f"trigger_{key}"] = {
            "p": "device_automation", "atype": "trigger", "t": event, "type": shown, "stype": "Session",
            "pl": event_type, "val_tpl": "{{ '' if " + replay + " else value_json.event_type }}",
        }  # fmt: skip
    availability = [
        *device_availability(state.device_id, topics),
        {"t": session, "val_tpl": "{{ 'online' if " + running + " else 'offline' }}"},
    ]
    for series, name in _named(state.series, datatypes):
        component = _series(
            name,
            datatypes.get(series.datatype),
            topics.latest(state.device_id, series.source_device, series.datatype),
        )
        if not keep:
            component |= {"avty": availability, "avty_mode": "all"}
        components[f"{escaped(series.source_device)}_{series.datatype}"] = component
    return components


def device_availability(device: str, topics: Topics) -> list[dict[str, str]]:
    return [{"t": topics.bridge_state}, {"t": topics.availability(device)}]


def _timestamp(name: str, topic: str, template: str) -> Component:
    return {"p": "sensor", "name": name, "dev_cla": "timestamp", "stat_t": topic, "val_tpl": template}


def _named(series: Collection[Series], datatypes: Mapping[int, DatatypeConfig]) -> Iterator[tuple[Series, str]]:
    sources = Counter(one.datatype for one in series)
    for one in sorted(series, key=lambda one: (one.datatype, one.source_device)):
        meaning = datatypes.get(one.datatype)
        name = (meaning and meaning.name) or f"Datatype {one.datatype}"
        yield one, name if sources[one.datatype] == 1 else f"{name} {one.source_device}"


def _series(name: str, meaning: DatatypeConfig | None, topic: str) -> Component:
    meaning = meaning or DatatypeConfig()
    optional = {
        "unit_of_meas": meaning.unit, "dev_cla": meaning.device_class, "ic": meaning.icon,
        "sug_dsp_prc": meaning.precision, "ent_cat": meaning.category,
    }  # fmt: skip
    return {
        "p": "sensor",
        "name": whole(name),
        "stat_cla": meaning.state_class,
        **{key: value for key, value in optional.items() if value is not None},
        **({} if meaning.enabled else {"en": False}),
        "stat_t": topic,
        "val_tpl": _value("avg", "number"),
        "json_attr_t": topic,
        "json_attr_tpl": _attributes(
            "{'measured_at': value_json.timestamp | default(none), 'min': value_json.min | default(none),"
            " 'max': value_json.max | default(none)}"
        ),
    }


def of_bridge(topics: Topics, sinks: Collection[str], *, requests: bool) -> Components:
    health = topics.bridge_health
    diagnostic = {"ent_cat": "diagnostic"}
    components: Components = {
        "connectivity": {
            "p": "binary_sensor", "name": "Cloud", "dev_cla": "connectivity", "stat_t": health,
            "val_tpl": "{{ none if value_json is not mapping or value_json.problems is not mapping"
            " else 'OFF' if 'cloud' in value_json.problems else 'ON' }}", **diagnostic,
        },
        "problem": {
            "p": "binary_sensor", "name": "Problem", "dev_cla": "problem", "stat_t": health,
            "val_tpl": "{{ none if value_json is not mapping or value_json.healthy is not boolean"
            " else 'OFF' if value_json.healthy else 'ON' }}",
            "json_attr_t": health,
            "json_attr_tpl": _attributes(
                "{'problems': value_json.problems | default(none), 'degraded': value_json.degraded | default(none)}"
            ), **diagnostic,
        },
        "last_poll": {**_timestamp("Last poll", health, _value("last_poll_at", "string")), **diagnostic},
        "dead_letters": {
            "p": "sensor", "name": "Dead letters", "stat_cla": "measurement", "stat_t": health,
            "val_tpl": "{{ value_json.dead_letters.values() | select('number') | sum if value_json is mapping and"
            " value_json.dead_letters is mapping else none }}", **diagnostic,
        },
        "version": {
            "p": "sensor", "name": "Version", "stat_t": topics.bridge_info, "val_tpl": _value("version", "string"),
            **diagnostic,
        },
    }  # fmt: skip
    if requests:
        components["poll"] = {"p": "button", "name": "Poll now", "cmd_t": topics.request("poll"), "pl_prs": "{}"}
    for sink in sinks:
        backlog = f"value_json.backlog[{literal(sink)}]"
        components[f"backlog_{sink}"] = {
            "p": "sensor", "name": f"Backlog {sink}", "stat_cla": "measurement", "stat_t": health,
            "val_tpl": "{{ " + backlog + " if value_json is mapping and value_json.backlog is mapping and "
            + backlog + " is number else none }}", **diagnostic,
        }  # fmt: skip
    return components
