"""`bace-bridge sessions`: the data sessions that the bridge knows."""

import asyncio
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from bace_bridge.cli.exits import config_option
from bace_bridge.cli.stored import ROOM_FOR_IDS, excerpt_of, local_time, printable, stored
from bace_bridge.cloud.api import csv_url
from bace_bridge.config.load import Excerpt
from bace_bridge.config.values import format_duration
from bace_bridge.errors import ConfigError
from bace_bridge.polling.rules.sessions import DeviceView, KnownSession, view
from bace_bridge.store.standing import Standing

_ROOM_FOR_DEVICES = 112
"""Terminal columns from which on devices get a column of their own; below, they stand under the labels, as ids do."""


class _Row(msgspec.Struct, frozen=True):
    """What `--json` adds to the contract's `session` object."""

    device: DeviceView
    csv_url: str | None
    removed: bool


@click.command()
@config_option
@click.option(
    "--state",
    type=click.Choice(["active", "ended", "ingested"]),
    help="Only sessions in this state; omits removed ones.",
)
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(min=0), help="Show the newest N; 0 = no limit."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; times in UTC.")
def sessions(config: Path, state: str | None, limit: int, as_json: bool) -> None:
    """List the data sessions that the bridge knows, newest first.

    Reads only the store; works while the bridge is running.
    """
    excerpt = excerpt_of(config)
    known = asyncio.run(_known(excerpt.config("store.url").store.path, state, limit or sys.maxsize))
    cloud = _cloud(excerpt)
    if as_json:
        click.echo(b"[" + b",\n ".join(_as_json(one, cloud) for one in known) + b"]")
    else:
        _print_table(known, cloud)


def _cloud(excerpt: Excerpt) -> str | None:
    """The cloud's address, which CSV links begin with; without it there are none."""
    try:
        return excerpt.config("cloud.url").cloud.url
    except ConfigError:
        return None


async def _known(path: Path, state: str | None, limit: int) -> Sequence[KnownSession]:
    async with stored(path) as file:
        standing = Standing(file, csv_url=str)
        asked = limit
        while True:
            found = await standing.sessions(state=state, limit=asked)
            # A removed session keeps its last state, but a request for active ones does not mean it.
            shown = [one for one in found if state is None or not one.removed]
            if len(shown) >= limit or len(found) < asked:
                return shown[:limit]
            asked *= 2


def _csv_of(known: KnownSession, cloud: str | None) -> str | None:
    return None if known.csv_revision is None or cloud is None else csv_url(cloud, known.session.id)


def _as_json(known: KnownSession, cloud: str | None) -> bytes:
    device = DeviceView(id=known.session.group_id, label=known.device_label)
    row = _Row(device=device, csv_url=_csv_of(known, cloud), removed=known.removed)
    return msgspec.json.encode({**msgspec.to_builtins(view(known.session)), **msgspec.to_builtins(row)})


def _print_table(known: Sequence[KnownSession], cloud: str | None) -> None:
    if not known:
        click.echo("No data sessions.")
        return
    from bace_bridge.cli.stored import Text, console_of_stdout, new_table, print_table  # noqa: PLC0415  # slow

    console = console_of_stdout()
    wide, narrow = console.width >= ROOM_FOR_IDS, console.width < _ROOM_FOR_DEVICES
    gap = 1 if narrow else 2
    table = new_table(gap=gap)
    if not narrow:
        table.add_column("DEVICE", overflow="fold")
    table.add_column("SESSION", overflow="fold", min_width=0 if wide else 36)
    for header in ("STATE", "STARTED", "LASTED", "POINTS", "CSV", *(["ID"] if wide else [])):
        table.add_column(header, no_wrap=True, justify="right" if header in {"LASTED", "POINTS"} else "left")
    now = time.time()
    for one in known:
        session, url = one.session, _csv_of(one, cloud)
        state = "removed" if one.removed else session.state
        device, identifier = printable(one.device_label or session.group_id), printable(session.id)
        below = [] if wide else [identifier, *([device] if narrow else [])]
        label = Text(printable(session.label or "-"))
        table.add_row(
            *([] if narrow else [Text(device)]),
            Text("\n").join([label, *(Text(more, style="dim") for more in below)]),
            Text(state, style=_STYLES[state]),
            Text(local_time(session.start)[5 if narrow else 0 : -3]),
            Text(_lasted(one, now)),
            Text("-" if session.datapoint_count is None else str(session.datapoint_count)),
            Text("-") if one.csv_revision is None else Text("ready", style="" if url is None else f"link {url}"),
            *([Text(identifier, style="dim")] if wide else []),
        )
    print_table(table, console)


_STYLES = {"active": "green", "ended": "yellow", "ingested": "", "removed": "red"}


def _lasted(known: KnownSession, now: float) -> str:
    """How long it took, or takes so far, in its two largest units."""
    session = known.session
    if session.end is None and known.removed:
        return "-"
    seconds = round((now if session.end is None else session.end) - session.start)
    return "".join(re.findall(r"\d+[dhms]", format_duration(seconds))[:2]) if seconds > 0 else "0s"
