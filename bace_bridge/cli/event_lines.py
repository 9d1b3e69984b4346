"""An event as a line: of JSON for programs, of text for people."""

from typing import Any

import click
import msgspec

from bace_bridge.cli.stored import local_time, printable
from bace_bridge.config.values import format_duration
from bace_bridge.domain import events as types
from bace_bridge.domain.events import LoggedEvent
from bace_bridge.domain.timestamps import iso_utc


class _JsonLine(msgspec.Struct, frozen=True):
    seq: int
    id: str
    type: str
    time: str
    observed_at: str
    session_id: str | None
    device_id: str | None
    data: msgspec.Raw


def show_json(logged: LoggedEvent) -> None:
    event = logged.event
    line = _JsonLine(
        seq=logged.seq,
        id=event.id,
        type=event.type,
        time=iso_utc(event.time),
        observed_at=iso_utc(event.observed_at),
        session_id=event.session_id,
        device_id=event.device_id,
        data=msgspec.Raw(event.data),
    )
    click.echo(msgspec.json.encode(line))


def show_line(logged: LoggedEvent, *, wide: bool) -> None:
    """With the ids of the data session and the event at the end where there is room: commands take them."""
    event = logged.event
    data = msgspec.json.decode(event.data, type=dict[str, Any])
    device = (data.get("device") or {}).get("label") or event.device_id or "-"
    session = (data.get("session") or {}).get("label") or event.session_id or "-"
    parts = [local_time(event.time), f"{event.type:<18}", f"{device:<20}", session, _detail(event.type, data)]
    if wide:
        parts += [event.session_id or "-", event.id]
    click.echo(printable("  ".join(part for part in parts if part)))


def _detail(event_type: str, data: dict[str, Any]) -> str:
    """What the event says beyond its type, in a few words."""
    detail = str(data.get("reason", ""))
    match event_type:
        case types.SESSION_DATAPOINTS:
            count = len(data["datapoints"])
            detail = f"{count} point{'' if count == 1 else 's'}"
        case types.SESSION_UPDATED:
            detail = f"changed: {', '.join(data['changed'])}"
        case types.SESSION_ENDED if lasted := data["session"]["duration_seconds"]:
            detail = f"lasted {format_duration(lasted)}"
        case types.SESSION_CSV_READY:
            again = f" (revision {data['csv']['revision']})" if data["csv"]["revision"] else ""
            detail = f"{data['csv']['url']}{again}"
        case types.CLOUD_RECOVERED:
            detail = f"after {format_duration(data['seconds'])}"
        case types.SINK_DISABLED:
            detail = f"{data['sink']}: {data['reason']}"
        case types.SINK_DEAD_LETTER:
            detail = f"{data['sink']} did not take {data['event']['type']}: {data['reason']}"
    return detail
