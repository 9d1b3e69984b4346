import json
from typing import Any

import click

from bace_bridge.config.json_schema import config_schema
from bace_bridge.polling.rules.event_schema import event_schema


@click.group()
def schema() -> None:
    """Print the JSON Schema of the configuration or the events."""


@schema.command()
def config() -> None:
    """Print the JSON Schema of bridge.yaml, for editors."""
    _print_schema(config_schema())


@schema.command()
def events() -> None:
    """Print the JSON Schema of a webhook's body."""
    _print_schema(event_schema())


def _print_schema(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
