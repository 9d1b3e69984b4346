"""Options that several commands share."""

from pathlib import Path

import click

config_option = click.option(
    "-c",
    "--config",
    "config",
    default="bridge.yaml",
    show_default=True,
    envvar="BACE_BRIDGE_CONFIG",
    type=click.Path(path_type=Path),
    help="The configuration file (or BACE_BRIDGE_CONFIG).",
)
