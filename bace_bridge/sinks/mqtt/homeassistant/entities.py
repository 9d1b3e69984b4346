"""What Home Assistant shows of a device and of the bridge: the components of a discovery payload, by their keys.

A key and what it stands for never change: with the device's id it is the entity's `unique_id`. Each template is
guarded: a cleared topic, a missing key and `null` are `unknown`, without a line in Home Assistant's log. A value of
Jinja that is undefined is never compared, written or asked for its truth: that would be logged.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bace_bridge.config.datatypes import DatatypeConfig, unit_for_home_assistant
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
from bace_bridge.formats import UNSENDABLE
from bace_bridge.sinks.mqtt.topics import Topics

Component = dict[str, Any]
Components = dict[str, Component]

_DIAGNOSTIC = {"ent_cat": "diagnostic"}
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9-]")
_LONGEST_NAME = 200

MOST_ATTRIBUTES = 15_000
"""Bytes. The recorder of Home Assistant drops the attributes of a state from 16 KiB on; some are added to ours."""


def escaped(name: str) -> str:
    """A name within `[A-Za-z0-9_-]`: plain ones as they are, and different ones always different.

    So are several of them joined by `_`: an escape is `__` and two hexadecimal digits, an empty name `__x`.
    """
    return _NOT_PLAIN.sub(lambda found: "".join(f"__{byte:02x}" for byte in _bytes(found[0])), name) or "__x"


def shown(text: str | None) -> str:
    """A text of others as a name: on one line, without what UTF-8 or JSON has no place for, and not endless."""
    clean = UNSENDABLE.sub(" ", _bytes(text or "").decode("utf-8", "replace"))
    return " ".join(clean.split())[:_LONGEST_NAME].rstrip()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _literal(text: str) -> str:
    """A string literal of Jinja; whatever is in it ends neither the string nor the braces around it."""
    # As the list of devices has it, where half a character cannot be. Jinja reads literals as Python does.
    return repr(_bytes(text).decode("utf-8", "replace"))


def _of(key: str, test: str) -> str:
    """The value of a key, where it is what it should be."""
    return (
        f"{{{{ value_json.{key} if value_json is mapping and value_json.{key} is {test}"
        f"{f' and value_json.{key} is not boolean' if test == 'number' else ''} else none }}}}"
    )


def _timestamp(name: str, topic: str, template: str) -> Component:
    return {"p": "sensor", "name": name, "dev_cla": "timestamp", "stat_t": topic, "val_tpl": template}


_RUNNING = "value_json is mapping and value_json.get('state') == 'active'"
_REPLAY = "value_json is not mapping or value_json.get('replay')"

# `found.text`, or `less` and the summary with as many of its series as fit, 40 at most; those left out are counted.
_WITH_SUMMARY = (
    "{% if summary is mapping %}{% set series = summary.get('series') or [] %}{% for most in [0, 5, 10, 20, 40] %}"
    "{% set omitted = (summary.get('series_omitted') or 0) + [series | length - most, 0] | max %}"
    "{% set text = dict(less, summary=dict(summary, series=series[:most], series_omitted=omitted)) | tojson %}"
    "{% if text | length < %(most)d %}{% set found.text = text %}{% endif %}"
    "{% endfor %}{% endif %}{{ found.text }}"
).replace("%(most)d", str(MOST_ATTRIBUTES))

# The event without what grows; where its attributes were too many, what every event has.
_EVENT = (
    "{% if " + _REPLAY + " %}{% else %}{% set summary = value_json.get('summary') %}"
    "{% set less = dict(value_json.items() | rejectattr(0, 'in', ['summary', 'datapoints']) | list) %}"
    "{% set found = namespace(text=less | tojson) %}{% if found.text | length >= %(most)d %}"
    "{% set found.text = {'event_type': value_json.get('event_type'), 'id': value_json.get('id'),"
    " 'time': value_json.get('time')} | tojson %}{% endif %}" + _WITH_SUMMARY + "{% endif %}"
).replace("%(most)d", str(MOST_ATTRIBUTES))

_CSV_READY = (
    "{{ value_json.updated_at if value_json is mapping and value_json.get('csv_url')"
    " and value_json.updated_at is string else none }}"
)

_CLOUD = (
    "{{ none if value_json is not mapping or value_json.problems is not mapping"
    " else 'OFF' if 'cloud' in value_json.problems else 'ON' }}"
)
_PROBLEM = (
    "{{ none if value_json is not mapping or value_json.healthy is not boolean"
    " else 'OFF' if value_json.healthy else 'ON' }}"
)
# To the minute: Home Assistant records each new state, and there is a poll every few seconds.
_LAST_POLL = (
    "{{ value_json.last_poll_at[:16] ~ ':00Z'"
    " if value_json is mapping and value_json.last_poll_at is string else none }}"
)
_DEAD_LETTERS = (
    "{{ value_json.dead_letters.values() | select('number') | sum"
    " if value_json is mapping and value_json.dead_letters is mapping else none }}"
)

_CSV_ATTRIBUTES = (
    "{% set all = value_json if value_json is mapping else {} %}{% set summary = all.get('summary') %}"
    "{% set less = {'csv_link': all.get('csv_link'), 'csv_url': all.get('csv_url')} %}"
    "{% set found = namespace(text=less | tojson) %}" + _WITH_SUMMARY
)

_PROBLEM_ATTRIBUTES = (
    "{% set all = value_json if value_json is mapping else {} %}"
    "{% set text = {'problems': all.get('problems'), 'degraded': all.get('degraded')} | tojson %}"
    "{{ text if text | length < %(most)d else {'problems': (all.get('problems') or {}) | list, "
    "'degraded': (all.get('degraded') or {}) | list} | tojson }}"
).replace("%(most)d", str(MOST_ATTRIBUTES))

_POINT_ATTRIBUTES = (
    "{{ {'measured_at': value_json.get('timestamp'), 'min': value_json.get('min'), 'max': value_json.get('max')}"
    " | tojson if value_json is mapping else '{}' }}"
)

_TRIGGERS = (
    ("started", "started", SESSION_STARTED),
    ("ended", "ended", SESSION_ENDED),
    ("csv_ready", "CSV ready", SESSION_CSV_READY),
    ("reopened", "reopened", SESSION_REOPENED),
)


def of_device(state: DeviceState, topics: Topics, datatypes: Mapping[int, DatatypeConfig], *, keep: bool) -> Components:
    """Those that matter most first. `keep`: a value stays when its data session is over."""
    components = _of_session(state.device_id, topics)
    for key, text, of_type in _TRIGGERS:
        components[f"trigger_{key}"] = {
            # Home Assistant shows a trigger as `"<subtype>" <type>`.
            "p": "device_automation", "atype": "trigger", "t": topics.of(state.device_id).event, "stype": "Session",
            "type": text, "pl": of_type,
            "val_tpl": "{{ '' if " + _REPLAY + " else value_json.get('event_type') }}",
        }  # fmt: skip
    taken = [one["name"] for one in components.values() if one["p"] == "sensor"]
    availability = [
        *availability_of(state.device_id, topics),
        {"t": topics.of(state.device_id).session, "val_tpl": "{{ 'online' if " + _RUNNING + " else 'offline' }}"},
    ]
    for one, name in _named(state.series, datatypes, taken):
        latest = topics.latest(state.device_id, one.source_device, one.datatype)
        components[f"{escaped(one.source_device)}_{one.datatype}"] = {
            **_meaning(datatypes.get(one.datatype) or DatatypeConfig(), name),
            "stat_t": latest, "val_tpl": _of("avg", "number"),
            "json_attr_t": latest, "json_attr_tpl": _POINT_ATTRIBUTES,
            **({} if keep else {"avty": availability, "avty_mode": "all"}),
        }  # fmt: skip
    return components


def availability_of(device: str, topics: Topics) -> list[dict[str, str]]:
    return [{"t": topics.bridge_state}, {"t": topics.of(device).availability}]


def _of_session(device: str, topics: Topics) -> Components:
    session = topics.of(device).session
    last_seen = (
        "{{ (value_json | select('mapping') | selectattr('id', 'eq', " + _literal(device) + ")"
        " | map(attribute='last_seen_at') | select('string') | first | default(none))"
        " if value_json is defined and value_json is iterable else none }}"
    )
    return {
        "running": {
            "p": "binary_sensor", "name": "Running", "dev_cla": "running", "stat_t": session,
            "val_tpl": "{{ 'ON' if " + _RUNNING + " else 'OFF' }}",
        },
        "session": {
            "p": "event", "name": "Session", "ic": "mdi:clipboard-pulse", "stat_t": topics.of(device).event,
            "evt_typ": [
                SESSION_STARTED, SESSION_UPDATED, SESSION_ENDED,
                SESSION_REOPENED, SESSION_CSV_READY, SESSION_REMOVED,
            ],
            "val_tpl": _EVENT,
        },
        "started": _timestamp("Session started", session, _of("started_at", "string")),
        "ended": _timestamp("Session ended", session, _of("ended_at", "string")),
        "csv": {
            **_timestamp("CSV ready", session, _CSV_READY),
            "ic": "mdi:file-delimited", "json_attr_t": session, "json_attr_tpl": _CSV_ATTRIBUTES,
        },
        "duration": {
            "p": "sensor", "name": "Session duration", "dev_cla": "duration", "unit_of_meas": "s", "sug_dsp_prc": 0,
            "stat_t": session, "val_tpl": _of("duration_seconds", "number"),
        },
        "datapoints": {
            "p": "sensor", "name": "Datapoints", "stat_cla": "measurement", "ic": "mdi:counter", **_DIAGNOSTIC,
            "stat_t": session, "val_tpl": _of("datapoint_count", "number"),
        },
        "last_seen": {**_timestamp("Last seen", topics.bridge_devices, last_seen), **_DIAGNOSTIC},
    }  # fmt: skip


def _named(
    series: Collection[Series], datatypes: Mapping[int, DatatypeConfig], taken: Collection[str]
) -> Iterator[tuple[Series, str]]:
    """Each series with a name of its own within the device, those first that people have named."""
    named = {number for number, one in datatypes.items() if one.name}
    names = {}
    for one in sorted(series, key=lambda one: (one.datatype not in named, one.datatype, one.source_device)):
        name = shown(datatypes[one.datatype].name) if one.datatype in named else f"Datatype {one.datatype}"
        longer = f"{name} {shown(one.source_device)}".rstrip()
        names[one] = (name, longer, f"{longer} {one.datatype}")
    # As Home Assistant makes ids of them: of two that look alike there one would end in _2.
    uses = Counter(slug for possible in names.values() for slug in {_slug(one) for one in possible})
    uses.update(map(_slug, taken))
    for one, possible in names.items():
        yield one, next((name for name in possible if uses[_slug(name)] == 1), possible[-1])


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.casefold())


def _meaning(meaning: DatatypeConfig, name: str) -> Component:
    optional = {
        "unit_of_meas": unit_for_home_assistant(meaning.unit) or None,
        "dev_cla": meaning.device_class,
        "ic": meaning.icon,
        "sug_dsp_prc": meaning.precision,
        "ent_cat": meaning.category,
        "en": None if meaning.enabled else False,
    }
    given = {key: value for key, value in optional.items() if value is not None}
    return {"p": "sensor", "name": name, "stat_cla": meaning.state_class, **given}


def of_bridge(topics: Topics, sinks: Collection[str], *, requests: bool) -> Components:
    """As above; `requests`: the bridge takes them over MQTT."""
    health = topics.bridge_health
    components: Components = {
        "connectivity": {
            "p": "binary_sensor", "name": "Cloud", "dev_cla": "connectivity", "stat_t": health, "val_tpl": _CLOUD,
        },
        "problem": {
            "p": "binary_sensor", "name": "Problem", "dev_cla": "problem", "stat_t": health, "val_tpl": _PROBLEM,
            "json_attr_t": health, "json_attr_tpl": _PROBLEM_ATTRIBUTES,
        },
        "last_poll": _timestamp("Last poll", health, _LAST_POLL),
        "dead_letters": {
            "p": "sensor", "name": "Dead letters", "stat_cla": "measurement", "ic": "mdi:email-remove",
            "stat_t": health, "val_tpl": _DEAD_LETTERS,
        },
        "version": {
            "p": "sensor", "name": "Version", "ic": "mdi:tag", "stat_t": topics.bridge_info,
            "val_tpl": _of("version", "string"),
        },
    }  # fmt: skip
    for sink in sinks:
        backlog = f"value_json.backlog.get({_literal(sink)})"
        components[f"backlog_{sink}"] = {
            "p": "sensor", "name": f"Backlog {sink}", "stat_cla": "measurement", "ic": "mdi:tray-full",
            "stat_t": health,
            "val_tpl": "{{ " + backlog + " if value_json is mapping and value_json.backlog is mapping and " + backlog
            + " is number else none }}",
        }  # fmt: skip
    for one in components.values():
        one.update(_DIAGNOSTIC)
    if requests:
        components["poll"] = {
            "p": "button", "name": "Poll now", "ic": "mdi:cloud-refresh", "cmd_t": topics.request + "poll",
            "pl_prs": "{}",
        }  # fmt: skip
    return components
