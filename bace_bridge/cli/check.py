"""`bace-bridge check` and `schema`: the configuration and the events, without the service."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bace_bridge.cli.main import config_option
from bace_bridge.cli.stored import store_cautions
from bace_bridge.config.json_schema import config_schema
from bace_bridge.config.load import load
from bace_bridge.config.models import Config, WatchConfig, warnings
from bace_bridge.config.values import format_duration
from bace_bridge.errors import ConfigError
from bace_bridge.formats import iso_utc
from bace_bridge.polling.rules.event_schema import event_schema


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
    # The store is only looked at: `check` may run as another user, and beside the service.
    plan, cautions = list(_plan(loaded)), [*warnings(loaded, now=time.time()), *store_cautions(loaded.store.path)]
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
    yield "http", f"health on {config.http.listen}" if config.http.enabled else "off"


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
