"""`bace-bridge sessions`, `devices` and `datatypes`: what the bridge knows, or the cloud has, as a table or as JSON."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import click
import msgspec
from msgspec.structs import replace

from bace_bridge import logs, waiting
from bace_bridge.cli.main import config_option
from bace_bridge.cli.stored import ROOM_FOR_IDS, cloud_beside, local_time, printable, stored
from bace_bridge.cloud.api import csv_url
from bace_bridge.config.load import Excerpt, load
from bace_bridge.config.models import Config
from bace_bridge.config.values import MOST_DIGITS, format_duration, secrets_of
from bace_bridge.errors import CloudError, CloudRefused, ConfigError
from bace_bridge.events.types import KnownDevice
from bace_bridge.formats import iso_utc
from bace_bridge.polling.devices import ListedDevices, listed_devices
from bace_bridge.polling.rules.session_list import is_selected, unmatched
from bace_bridge.polling.rules.sessions import DeviceView, KnownSession, view
from bace_bridge.store.device_states import DeviceStates, SeenDatatype

_ROOM_FOR_DEVICES = 112
"""Terminal columns from which on devices get a column of their own; below, they stand under the labels, as ids do."""


class _SessionRow(msgspec.Struct, frozen=True):
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
    excerpt = Excerpt(config, os.environ)
    known = asyncio.run(_known(excerpt.config("store.url").store.path, state, limit or sys.maxsize))
    cloud = None
    with suppress(ConfigError):  # CSV links begin with the cloud's address; without it there are none
        cloud = excerpt.config("cloud.url").cloud.url
    if as_json:
        # A session a line: valid JSON, and `grep` works on it all the same.
        click.echo(b"[" + b",\n ".join(_as_json(one, cloud) for one in known) + b"]")
    else:
        _print_sessions(known, cloud)


async def _known(path: Path, state: str | None, limit: int) -> Sequence[KnownSession]:
    async with stored(path) as file:
        device_states = DeviceStates(file, csv_url=str)
        # The store's limit counts removed sessions as well: ask for more until enough are left.
        asked = limit
        while True:
            found = await device_states.sessions(state=state, limit=asked)
            # A removed session keeps its last state, but a request for active ones does not mean it.
            shown = [one for one in found if state is None or not one.removed]
            if len(shown) >= limit or len(found) < asked:
                return shown[:limit]
            asked *= 2


def _csv_of(known: KnownSession, cloud: str | None) -> str | None:
    return None if known.csv_revision is None or cloud is None else csv_url(cloud, known.session.id)


def _as_json(known: KnownSession, cloud: str | None) -> bytes:
    device = DeviceView(id=known.session.group_id, label=known.device_label)
    row = _SessionRow(device=device, csv_url=_csv_of(known, cloud), removed=known.removed)
    return msgspec.json.encode({**msgspec.to_builtins(view(known.session)), **msgspec.to_builtins(row)})


def _print_sessions(known: Sequence[KnownSession], cloud: str | None) -> None:
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


_ROOM_FOR_TWO_IDS = 130
"""Terminal columns from which on ids are not broken into lines."""


class _DeviceRow(msgspec.Struct, frozen=True):
    """The contract's device object, and whether it is watched."""

    id: str
    label: str | None
    selected: bool
    active_session_id: str | None
    last_session_id: str | None
    last_seen_at: str | None


@click.command()
@config_option
@click.option("--cloud", "of_cloud", is_flag=True, help="Ask the cloud for every device that the account can see.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; times in UTC.")
def devices(config: Path, of_cloud: bool, as_json: bool) -> None:
    """List the devices that have data sessions in the store, with ids and labels for `groups`.

    Reads only the store unless --cloud is given; works while the bridge is running.
    """
    loaded = load(config, os.environ) if of_cloud else Excerpt(config, os.environ).config("store.url", "cloud.groups")
    # Or a retry of the cloud's would log between the rows.
    if of_cloud:
        logs.configure(fmt=None, level="error", secrets=secrets_of(loaded))
    found, listed = waiting.run(_found(loaded, of_cloud=of_cloud))
    rows = [
        _DeviceRow(
            one.id,
            one.label,
            is_selected(loaded.cloud.groups, one.id, one.label),
            one.active_session_id,
            one.last_session_id,
            None if one.last_seen_at is None else iso_utc(one.last_seen_at),
        )
        for one in found
    ]
    if as_json:
        click.echo(b"[" + b",\n ".join(msgspec.json.encode(one) for one in rows) + b"]")
    else:
        _print_devices(rows, found)
    if listed is None:
        return
    if not listed.complete:
        click.echo("bace-bridge: the list may be incomplete: some rows cannot be read", err=True)
    for group in unmatched(loaded.cloud.groups, listed.labels):
        click.echo(f"bace-bridge: cloud.groups: {printable(group)} matches no device", err=True)


async def _found(config: Config, *, of_cloud: bool) -> tuple[list[KnownDevice], ListedDevices | None]:
    """The store's devices; or the cloud's, with what the store knows of them, where there is one."""
    if not of_cloud:
        async with stored(config.store.path) as file:
            return await DeviceStates(file, csv_url=str).known_devices(), None
    async with cloud_beside(config) as (cloud, store):
        known = {one.id: one for one in await DeviceStates(store, csv_url=str).known_devices()} if store else {}
        try:
            listed = await listed_devices(cloud)
        except CloudRefused as error:
            hint = "without --cloud this lists the devices that have data sessions in the store"
            raise click.ClickException(f"the cloud does not list its devices: {error}; {hint}") from None
        except CloudError as error:
            raise click.ClickException(f"the cloud does not list its devices: {error}") from None
    found = [replace(known.get(id_, KnownDevice(id_)), label=label) for id_, label in listed.labels.items()]
    return sorted(found, key=lambda one: (one.label or "", one.id)), listed


def _print_devices(rows: Sequence[_DeviceRow], found: Sequence[KnownDevice]) -> None:
    if not rows:
        click.echo("No devices.")
        return
    from bace_bridge.cli.stored import Text, console_of_stdout, new_table, print_table  # noqa: PLC0415  # slow

    console = console_of_stdout()
    table = new_table()
    table.add_column("DEVICE", overflow="fold")
    table.add_column("ID", overflow="fold", min_width=36 if console.width >= _ROOM_FOR_TWO_IDS else 0)
    table.add_column("WATCHED", no_wrap=True)
    table.add_column("LAST SEEN", no_wrap=True)
    table.add_column("LAST SESSION", overflow="fold", min_width=36 if console.width >= _ROOM_FOR_TWO_IDS else 0)
    for row, one in zip(rows, found, strict=True):
        last = printable(row.last_session_id or "-")
        table.add_row(
            Text(printable(row.label or "-")),
            Text(printable(row.id)),
            Text("yes" if row.selected else "no", style="" if row.selected else "dim"),
            Text("-" if one.last_seen_at is None else local_time(one.last_seen_at)[:-3]),
            Text(f"{last} (active)" if row.active_session_id is not None else last),
        )
    print_table(table, console)


class _DatatypeRow(msgspec.Struct, frozen=True):
    """A datatype of the store, as the configuration names it now; `last_value` is in `unit`."""

    datatype: int
    name: str | None
    unit: str | None
    devices: int
    sources: int
    last_value: float | None
    last_at: str


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; times in UTC.")
def datatypes(config: Path, as_json: bool) -> None:
    """List the datatypes that the bridge has seen, with their last values.

    For those without a name it prints YAML to paste below `datatypes:` in the configuration. Reads only the store;
    works while the bridge is running.
    """
    loaded = Excerpt(config, os.environ).config("store.url", "datatypes")
    seen = asyncio.run(_seen(loaded.store.path))
    rows = []
    for one in seen:
        meant = loaded.datatypes.get(one.datatype)
        name, unit = (meant.name or None, meant.unit or None) if meant is not None else (None, None)
        counts = (one.devices, one.sources, one.last_value)
        rows.append(_DatatypeRow(one.datatype, name, unit, *counts, iso_utc(one.last_at)))
    if as_json:
        click.echo(b"[" + b",\n ".join(msgspec.json.encode(one) for one in rows) + b"]")
    elif not rows:
        click.echo("No datatypes.")
    else:
        _print_datatypes(rows, seen)
        for line in _snippet(rows, loaded.datatypes.keys()):
            click.echo(line)


async def _seen(path: Path) -> list[SeenDatatype]:
    async with stored(path) as file:
        return await DeviceStates(file, csv_url=str).datatypes()


def _print_datatypes(rows: Sequence[_DatatypeRow], seen: Sequence[SeenDatatype]) -> None:
    from bace_bridge.cli.stored import Text, console_of_stdout, new_table, print_table  # noqa: PLC0415  # slow

    table = new_table()
    for header in ("DATATYPE", "NAME", "UNIT", "DEVICES", "SOURCES", "LAST VALUE", "LAST SEEN"):
        text = header in {"NAME", "UNIT"}
        justify: Literal["left", "right"] = "left" if text or header == "LAST SEEN" else "right"
        table.add_column(header, justify=justify, no_wrap=not text, overflow="fold")
    for row, one in zip(rows, seen, strict=True):
        table.add_row(
            str(row.datatype),
            Text(printable(row.name or "-")),
            Text(printable(row.unit or "-")),
            str(row.devices),
            str(row.sources),
            "-" if row.last_value is None else f"{row.last_value:.7g}",
            local_time(one.last_at)[:-3],
        )
    print_table(table, console_of_stdout())


def _snippet(rows: Sequence[_DatatypeRow], written: Collection[int]) -> Iterator[str]:
    """YAML for the datatypes without a name: entries of the section `datatypes`, where `written` are there already."""
    nameless = [row.datatype for row in rows if row.name is None]
    if not nameless:
        return
    yield "\n# Without a name. Paste this below `datatypes:` in the configuration, and write their names and units:"
    for number in nameless:
        if number in written:
            yield f"  # {number} is there already: add a name to it"
        elif abs(number) >= 10**MOST_DIGITS:
            yield f"  # {number} cannot have a name: it has more than {MOST_DIGITS} digits"
        else:
            yield f"  {number}: {{name: Datatype {number}, unit: }}"
