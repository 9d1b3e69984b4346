"""`bace-bridge check` and `schema`: the configuration and the events, without the service."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import click
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from bace_bridge.cli.main import config_option
from bace_bridge.config.files import file_key, section_model
from bace_bridge.config.load import load
from bace_bridge.config.models import FILE_MODEL, Config, WatchConfig, warnings
from bace_bridge.config.values import StartFrom, format_duration, format_size, parse_duration, parse_size
from bace_bridge.errors import ConfigError, StoreError
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.event_schema import event_schema
from bace_bridge.store.ownership import recognise
from bace_bridge.store.sqlite import real_path


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(config: Path, as_json: bool) -> None:
    """Validate the configuration. Makes no network requests.

    Prints each mistake with its path on stderr and exits with code 78.
    """
    try:
        loaded = load(config, os.environ)
    except ConfigError as error:
        if as_json:
            mistakes = [{"path": one.path, "problem": one.problem, "hint": one.hint} for one in error.mistakes]
            _print_json({"ok": False, "mistakes": mistakes, "warnings": [], "plan": {}})
        raise
    plan, cautions = list(_plan(loaded)), [*warnings(loaded, now=time.time())]
    try:  # The store is only looked at: `check` may run as another user, and beside the service.
        recognise(real_path(loaded.store.path), to_write=False)
    except StoreError as error:  # why `run` would refuse the file, as far as this user can see
        cautions.append(f"store.url: {error}")
    if as_json:
        lines: dict[str, list[str]] = {}
        for part, line in plan:
            lines.setdefault(part, []).append(line)
        _print_json({"ok": True, "mistakes": [], "warnings": cautions, "plan": lines})
        return
    click.echo(f"{config} is fine. bace-bridge run would do this:")
    for part, line in plan:
        click.echo(f"  {part:<8} {line}")
    for caution in cautions:
        click.echo(f"warning: {caution}")


def _print_json(value: dict[str, Any]) -> None:
    # A path may hold bytes that are not UTF-8: they become escapes, which JSON reads.
    click.echo(json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace"))


def _plan(config: Config) -> Iterator[tuple[str, str]]:
    """What the service would do, as pairs of a part and a line about it; no secrets."""
    cloud = config.cloud
    login = "with an access token" if cloud.username is None else f"as {cloud.username}"
    pace = f"at most {cloud.requests_per_minute} requests per minute"
    retention = format_duration(config.store.retention)
    yield "cloud", f"{cloud.url} {login}, {_devices(cloud.groups)}, {pace}"
    yield "watch", _watch(config.watch)
    yield "store", f"{config.store.path.absolute()}, delivered events kept for {retention}"
    for sink in config.sinks:
        events = "all events" if "*" in sink.events else ", ".join(sink.events)
        yield sink.kind, f"{sink.name}: {sink.describe()}, {events}, {_devices(sink.groups)}"
    links = f", CSV links under {config.csv.link_base} for {format_duration(config.csv.link_expires)}"
    health = f"health on {config.http.listen}" if config.http.enabled else "off"
    yield "http", f"{health}{links if config.csv.link_base else ''}"


def _watch(watch: WatchConfig) -> str:
    start = watch.start_from
    reports = {
        "now": "the sessions that are active at that time",
        "all": "all sessions",
        "since": f"sessions since {iso_utc(start.seconds)}",
        "ago": f"sessions of the last {format_duration(start.seconds)}",
    }
    return (
        f"sessions every {format_duration(watch.session_interval)}, "
        f"datapoints every {format_duration(watch.datapoint_interval)}; "
        f"a first start reports {reports[start.kind]}"
    )


def _devices(groups: tuple[str, ...]) -> str:
    return f"devices {', '.join(groups)}" if groups else "all devices"


@click.group()
def schema() -> None:
    """Print the JSON Schema of the configuration or the events."""


@schema.command()
def config() -> None:
    """Print the JSON Schema of bridge.yaml, for editors."""
    click.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))


@schema.command()
def events() -> None:
    """Print the JSON Schema of a webhook's body."""
    click.echo(json.dumps(event_schema(), indent=2, ensure_ascii=False))


_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = r"^\$\{.*\}$"


def config_schema() -> dict[str, Any]:
    """What may be written in the file: durations as text, `<secret>_file` keys, `${VAR}` for numbers."""
    return {"$schema": _DIALECT, "title": "bace-bridge configuration", **_section_schema(FILE_MODEL)}


def default_as_written(info: FieldInfo) -> Any:
    """A field's default in the form that a person would write into the file."""
    # The model holds seconds and bytes; an editor should offer 10s and 1GiB, as the documentation does.
    default = info.get_default()
    if isinstance(default, StartFrom):
        return default.kind
    if any(isinstance(mark, BeforeValidator) and mark.func is parse_duration for mark in info.metadata):
        return format_duration(default)
    if any(isinstance(mark, BeforeValidator) and mark.func is parse_size for mark in info.metadata):
        return format_size(default)
    return list(default) if isinstance(default, tuple) else default


def _section_schema(model: type[BaseModel]) -> dict[str, Any]:
    generated = model.model_json_schema()
    properties: dict[str, Any] = {}
    required: list[str] = []
    either: list[dict[str, Any]] = []
    for key, info in model.model_fields.items():
        properties[key] = _field_schema(info, generated["properties"][key])
        if file_key(info):
            about = f"The file that holds {key}, relative to this file's folder"
            properties[f"{key}_file"] = {"type": "string", "description": about}
        if info.is_required() and file_key(info):
            either.append({"oneOf": [{"required": [key]}, {"required": [f"{key}_file"]}]})
        elif info.is_required():
            required.append(key)
    schema = {"type": "object", "additionalProperties": False, "properties": properties, "required": required}
    return {**schema, "allOf": either} if either else schema


def _field_schema(info: FieldInfo, generated: dict[str, Any]) -> dict[str, Any]:
    inner = section_model(info.annotation)
    if inner is None:
        schema = {key: value for key, value in generated.items() if key != "title"}
        if schema.get("type") in ("integer", "boolean"):  # or a variable: an editor sees `${PORT}`, which is text
            limits = {key: schema.pop(key) for key in ("type", "enum", "minimum", "maximum") if key in schema}
            schema["anyOf"] = [limits, {"type": "string", "pattern": _VARIABLE}]
        if not info.is_required():
            schema["default"] = default_as_written(info)
        return schema
    section = _section_schema(inner)
    # Null beside the type: in YAML a section whose keys are all commented out is null.
    if info.annotation is inner:
        section["type"] = ["object", "null"]
        return {"description": info.description, **section}
    if get_origin(info.annotation) is dict:
        return {"description": info.description, "type": ["object", "null"], "additionalProperties": section}
    return {"description": info.description, "type": ["array", "null"], "items": section}
