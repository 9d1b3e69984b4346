"""`bace-bridge devices`: what `cloud.groups` and `groups` take."""

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import click
import msgspec
from msgspec.structs import replace

from bace_bridge import logs, lookups
from bace_bridge.app.account import cloud_http
from bace_bridge.cli.exits import config_option
from bace_bridge.cli.stored import NoStoreYet, excerpt_of, local_time, printable, stored
from bace_bridge.cloud.api import BaceCloud
from bace_bridge.config.load import load
from bace_bridge.config.models import Config
from bace_bridge.config.values import secrets_of
from bace_bridge.errors import CloudError, CloudRefused
from bace_bridge.events.state import KnownDevice, Token
from bace_bridge.formats import iso_utc
from bace_bridge.polling.devices import ListedDevices, listed_devices
from bace_bridge.polling.rules.session_list import is_selected, unmatched
from bace_bridge.redaction import Redaction
from bace_bridge.store.facts import Facts
from bace_bridge.store.standing import Standing

_ROOM_FOR_IDS = 130
"""Terminal columns from which on ids are not broken into lines."""


class _Row(msgspec.Struct, frozen=True):
    """The contract's device object, and whether it is watched."""

    id: str
    label: str | None
    selected: bool
    active_session_id: str | None
    last_session_id: str | None
    last_seen_at: str | None


class _BorrowedTokens:
    """The running bridge's token as long as it is valid; whatever this command gets is its own, and kept nowhere.

    A refresh would take the refresh token away from the bridge: clouds rotate or destroy it, and the bridge, which
    holds it in memory, would be refused. A login leaves the bridge's tokens as they are.
    """

    def __init__(self, facts: Facts | None) -> None:
        self._facts = facts

    async def load_token(self, account: str) -> Token | None:
        token = None if self._facts is None else await self._facts.load_token(account)
        return None if token is None else replace(token, refresh=None)

    async def save_token(self, account: str, token: Token) -> None:
        """The store is the running bridge's."""


@click.command()
@config_option
@click.option("--cloud", "of_cloud", is_flag=True, help="Ask the cloud for all devices that the account sees.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array on stdout; times in UTC.")
def devices(config: Path, of_cloud: bool, as_json: bool) -> None:
    """List the devices of which the bridge knows data sessions: ids and labels for `groups`.

    Reads the store only, unless --cloud is given; the bridge may be running.
    """
    loaded = load(config, os.environ) if of_cloud else excerpt_of(config).config("store.url", "cloud.groups")
    if of_cloud:
        logs.configure(fmt=None, level="error", secrets=secrets_of(loaded))
    found, listed = lookups.run(_found(loaded, of_cloud=of_cloud))
    rows = [_row(one, loaded.cloud.groups) for one in found]
    if as_json:
        click.echo(b"[" + b",\n ".join(msgspec.json.encode(one) for one in rows) + b"]")
    else:
        _print_table(rows, found)
    if listed is not None:
        _warn(listed, loaded.cloud.groups)


async def _found(config: Config, *, of_cloud: bool) -> tuple[list[KnownDevice], ListedDevices | None]:
    """The store's devices; or the cloud's, with what the store knows of them, where there is one."""
    if not of_cloud:
        async with stored(config.store.path) as file:
            return await Standing(file, csv_url=str).known_devices(), None
    try:
        async with stored(config.store.path) as file:
            known = {one.id: one for one in await Standing(file, csv_url=str).known_devices()}
            listed = await _listed(config, Facts(file))
    except NoStoreYet:
        known, listed = {}, await _listed(config, None)
    found = [replace(known.get(id_, KnownDevice(id_)), label=label) for id_, label in listed.labels.items()]
    return sorted(found, key=lambda one: (one.label or "", one.id)), listed


async def _listed(config: Config, facts: Facts | None) -> ListedDevices:
    try:
        version = metadata.version("bace-bridge")
        async with cloud_http(
            config.cloud, _BorrowedTokens(facts), Redaction(secrets_of(config)), version=version
        ) as http:
            return await listed_devices(BaceCloud(http))
    except CloudRefused as error:
        hint = "without --cloud the devices are listed of which the bridge has seen data sessions"
        raise click.ClickException(f"the cloud does not list its devices: {error}; {hint}") from None
    except CloudError as error:
        raise click.ClickException(f"the cloud does not list its devices: {error}") from None


def _row(one: KnownDevice, groups: Sequence[str]) -> _Row:
    return _Row(
        one.id,
        one.label,
        is_selected(groups, one.id, one.label),
        one.active_session_id,
        one.last_session_id,
        None if one.last_seen_at is None else iso_utc(one.last_seen_at),
    )


def _warn(listed: ListedDevices, groups: Sequence[str]) -> None:
    if not listed.complete:
        click.echo("bace-bridge: the list may lack devices: not every row of it can be read", err=True)
    for group in unmatched(groups, listed.labels):
        click.echo(f"bace-bridge: cloud.groups: {printable(group)} matches none of them", err=True)


def _print_table(rows: Sequence[_Row], found: Sequence[KnownDevice]) -> None:
    if not rows:
        click.echo("No devices.")
        return
    from bace_bridge.cli.stored import Text, console_of_stdout, new_table, print_table  # noqa: PLC0415  # slow

    console = console_of_stdout()
    table = new_table()
    table.add_column("DEVICE", overflow="fold")
    table.add_column("ID", overflow="fold", min_width=36 if console.width >= _ROOM_FOR_IDS else 0)
    table.add_column("WATCHED", no_wrap=True)
    table.add_column("LAST SEEN", no_wrap=True)
    table.add_column("LAST SESSION", overflow="fold", min_width=36 if console.width >= _ROOM_FOR_IDS else 0)
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
