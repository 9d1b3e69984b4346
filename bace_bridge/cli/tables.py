"""Tables for people. Imported where one is printed: rich is slow to import, and `--json` needs none of it."""

import sys

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Console", "Table", "Text", "console_of_stdout", "new_table", "print_table"]

_PIPE_WIDTH = 240
"""What is no terminal has no width: nothing is cut off there."""


def console_of_stdout() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def new_table(*, gap: int = 2) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")


def print_table(table: Table, console: Console) -> None:
    """As `click.echo` does: rich itself would end the process with 1 where the reader of a pipe has left."""
    with console.capture() as captured:
        console.print(table)
    click.echo(captured.get(), nl=False)
