"""The JSON Schema of the events, as webhooks get them: CloudEvents 1.0, structured."""

from collections.abc import Sequence
from typing import Any

import msgspec

from bace_bridge.events import types
from bace_bridge.polling.rules.datapoints import POINTS_PER_EVENT, DatapointView
from bace_bridge.polling.rules.sessions import DeviceView, SessionView
from bace_bridge.polling.rules.summaries import Summary

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TIME = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}


def event_schema() -> dict[str, Any]:
    (session, device, datapoint, summary), definitions = msgspec.json.schema_components(
        (SessionView, DeviceView, DatapointView, Summary), ref_template="#/$defs/{name}"
    )
    about_session = {"session": session, "device": device, "observed_at": _TIME}
    besides = _besides(datapoint, summary)
    kinds: list[dict[str, Any]] = []
    for event_type in types.EVENT_TYPES:
        of_session = event_type.startswith("session.")
        data = {**(about_session if of_session else {}), **besides.get(event_type, {})}
        kinds.append(_kind(event_type, data, of_session=of_session))
    envelope = {
        "specversion": {"const": types.SPECVERSION},
        "id": {**_TEXT, "description": "Stable: the same fact always has the same id"},
        "source": _TEXT,
        "type": _TEXT,
        "subject": {**_TEXT, "description": "The data session's id"},
        "time": {
            **_TIME,
            "description": "When it happened, by the cloud's clock; data.observed_at is when the bridge saw it",
        },
        "datacontenttype": {"const": types.DATA_CONTENT_TYPE},
        "sequence": _TEXT,
        "replay": {"const": True, "description": "Present (true) when the event was replayed on request"},
        "data": {"type": "object"},
    }
    return {
        "$schema": _DIALECT,
        "title": "bace-bridge event",
        "type": "object",
        "properties": envelope,
        "required": ["specversion", "id", "source", "type", "time", "data"],
        "oneOf": kinds,
        "$defs": definitions,
    }


def _besides(datapoint: dict[str, Any], summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the data of a type holds besides session and device."""
    csv = {
        "url": {"type": "string", "format": "uri"},
        "revision": {"type": "integer", "minimum": 0},
        "datapoint_count": {"type": ["integer", "null"]},
        "link": {"type": "string", "format": "uri", "description": "Opens without BACE's token, until it expires"},
    }
    event = {"id": _TEXT, "type": _TEXT, "session_id": {"type": ["string", "null"]}}
    return {
        types.SESSION_DATAPOINTS: {
            "datapoints": {"type": "array", "items": datapoint, "minItems": 1, "maxItems": POINTS_PER_EVENT}
        },
        types.SESSION_UPDATED: {
            "changed": {"type": "array", "items": {"enum": ["label", "person", "group"]}, "minItems": 1}
        },
        types.SESSION_ENDED: {"summary": summary},
        types.SESSION_CSV_READY: {"csv": _object(csv, required=["url", "revision"]), "summary": summary},
        types.SINK_DISABLED: {"sink": _TEXT, "reason": _TEXT},
        types.SINK_DEAD_LETTER: {
            "sink": _TEXT,
            "reason": _TEXT,
            "attempts": {"type": "integer", "minimum": 1},
            "event": _object(event),
        },
    }


def _kind(event_type: str, data: dict[str, Any], *, of_session: bool) -> dict[str, Any]:
    return {
        "title": event_type,
        "properties": {"type": {"const": types.TYPE_PREFIX + event_type}, "data": _object(data)},
        "required": ["type", "data", "subject"] if of_session else ["type", "data"],
    }


def _object(properties: dict[str, Any], *, required: Sequence[str] | None = None) -> dict[str, Any]:
    """All of its properties are required where not said otherwise."""
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required)}
