"""`bace-bridge dead-letters` and `replay`: failed deliveries, and events to deliver again."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import click
import msgspec

from bace_bridge.cli.main import config_option
from bace_bridge.cli.stored import (
    ensure_session,
    ensure_sink,
    local_time,
    printable,
    refuse_disabled,
    stored,
    unknown_session,
    when_it_happens,
)
from bace_bridge.config.load import Excerpt
from bace_bridge.config.values import parse_start_from
from bace_bridge.events.types import FailedAttempt
from bace_bridge.formats import iso_utc
from bace_bridge.store.eventlog import DeadLetters, EventLog, StoredDelivery, Which
from bace_bridge.store.sqlite import SqliteFile


@click.group(name="dead-letters")
def dead_letters() -> None:
    """List, retry or drop dead letters: deliveries that failed for the last time.

    Works while the bridge is running.
    """


def _which_options(command: Callable[..., None]) -> Callable[..., None]:
    # Put on as decorators are, from the bottom up: the help lists the last one first.
    for option in (
        click.option("--session", metavar="ID", help="Only for this data session."),
        click.option("--sink", metavar="NAME", help="Only for this broker or webhook."),
        config_option,
    ):
        command = option(command)
    return command


@dead_letters.command(name="list")
@_which_options
@click.option("--parked", is_flag=True, help="List the deliveries that wait for a retry instead.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(min=0), help="Show at most N; 0 = no limit."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, with the last attempts; times in UTC.")
def list_letters(
    *, config: Path, sink: str | None, session: str | None, parked: bool, limit: int, as_json: bool
) -> None:
    """List dead letters, newest first."""
    excerpt = Excerpt(config, os.environ)
    path = excerpt.config("store.url").store.path
    which = Which(sink, session)
    found = asyncio.run(_listed(path, which, excerpt.sinks(), parked=parked, limit=limit or -1))
    if as_json:
        click.echo(b"[" + b",\n ".join(_as_json(one, attempts) for one, attempts in found) + b"]")
    else:
        _print_table([one for one, _ in found], parked=parked)


async def _listed(
    path: Path, which: Which, configured: list[str], *, parked: bool, limit: int
) -> list[tuple[StoredDelivery, list[FailedAttempt]]]:
    async with stored(path) as file:
        await _ensure_known(file, which, configured)
        letters = DeadLetters(file)
        found = await (letters.parked(which, limit=limit) if parked else letters.dead(which, limit=limit))
        return [(one, await letters.attempts(one.sink, one.seq)) for one in found]


@dead_letters.command()
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@_which_options
@click.option("--all", "everything", is_flag=True, help="All of them (the default).")
def retry(*, config: Path, event_ids: tuple[str, ...], sink: str | None, session: str | None, everything: bool) -> None:
    """Queue dead letters for retry, from the first attempt."""
    excerpt = Excerpt(config, os.environ)
    path = excerpt.config("store.url").store.path
    which = Which(sink, session, event_ids)
    _refuse_contradiction(which, everything=everything)
    if sink is not None:
        ensure_sink(sink, excerpt.sinks())
    count = asyncio.run(_asked(path, which, excerpt.sinks(), DeadLetters.retry))
    click.echo(f"{_counted(count)} queued for retry" + (f": {when_it_happens(path)}" if count else ""))


@dead_letters.command()
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@_which_options
@click.option("--all", "everything", is_flag=True, help="All of them.")
def drop(*, config: Path, event_ids: tuple[str, ...], sink: str | None, session: str | None, everything: bool) -> None:
    """Drop dead letters: these events will never be delivered."""
    excerpt = Excerpt(config, os.environ)
    path = excerpt.config("store.url").store.path
    which = Which(sink, session, event_ids)
    _refuse_contradiction(which, everything=everything)
    if which == Which() and not everything:
        raise click.UsageError("give event ids, --sink, --session, or --all")
    click.echo(f"{_counted(asyncio.run(_asked(path, which, excerpt.sinks(), DeadLetters.drop)))} dropped")


def _refuse_contradiction(which: Which, *, everything: bool) -> None:
    if everything and which != Which():
        raise click.UsageError("--all cannot be combined with anything else")


async def _ensure_known(file: SqliteFile, which: Which, configured: list[str]) -> None:
    if which.sink is not None and which.sink not in configured:
        # One that has left the configuration has its dead letters still.
        ensure_sink(which.sink, sorted({*configured, *await EventLog(file).sinks()}))
    if which.session is not None:
        await ensure_session(file, which.session)


async def _asked(
    path: Path, which: Which, configured: list[str], work: Callable[[DeadLetters, Which], Awaitable[int]]
) -> int:
    async with stored(path, to_ask=True) as file:
        await _ensure_known(file, which, configured)
        if work is DeadLetters.retry and which.sink is not None:
            await refuse_disabled(file, which.sink)
        count = await work(DeadLetters(file), which)
    if which.events and not count:
        raise click.ClickException("there is no such dead letter: see bace-bridge dead-letters list")
    return count


def _counted(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _as_json(one: StoredDelivery, attempts: Sequence[FailedAttempt]) -> bytes:
    made = [
        {
            "number": made.number,
            "at": iso_utc(made.at),
            "seconds": round(made.seconds, 3),
            "status": made.status,
            "reason": made.reason,
            "answer": made.answer,
        }
        for made in attempts
    ]
    row = {**msgspec.to_builtins(one), "at": iso_utc(one.at), "last_attempts": made}
    return msgspec.json.encode(row)


def _print_table(found: Sequence[StoredDelivery], *, parked: bool) -> None:
    if not found:
        click.echo("No deliveries wait for a retry." if parked else "No dead letters.")
        return
    from bace_bridge.cli.stored import Text, console_of_stdout, new_table, print_table  # noqa: PLC0415  # slow

    console = console_of_stdout()
    table = new_table()
    table.add_column("NEXT ATTEMPT" if parked else "GIVEN UP", no_wrap=True)
    for header in ("SINK", "EVENT", "REASON"):
        table.add_column(header, overflow="fold")
    for header in ("ATTEMPTS", *(["BEHIND"] if parked else [])):
        table.add_column(header, justify="right")
    for one in found:
        event = Text("\n").join(
            [Text(one.event_type), Text(one.event_id, style="dim"), Text(printable(one.session_id or "-"), style="dim")]
        )
        cells = [str(one.attempts), *([str(one.behind)] if parked else [])]
        table.add_row(local_time(one.at), one.sink, event, Text(printable(one.reason)), *cells)
    print_table(table, console)


class _Since(click.ParamType[float]):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        start = None
        with suppress(ValueError):
            start = parse_start_from(value)
        # `now` and `all`, which the configuration takes as well, are no points in time.
        if start is None or start.kind in ("now", "all"):
            self.fail(f"{value!r} is neither a time such as 2026-01-31T00:00:00Z nor a duration such as 2h", param, ctx)
        return start.seconds if start.kind == "since" else time.time() - start.seconds


@click.command()
@config_option
@click.option("--sink", required=True, metavar="NAME", help="The broker or webhook to deliver to, by name.")
@click.option("--session", metavar="ID", help="Replay the events of this data session.")
@click.option("--since", type=_Since(), metavar="TIME", help="A time (2026-01-31T00:00:00Z), or an age such as 2h.")
def replay(*, config: Path, sink: str, session: str | None, since: float | None) -> None:
    """Deliver recorded events again: in order, with the same ids, marked as a replay.

    Works while the bridge is running. Events are kept for store.retention.
    """
    if (session is None) == (since is None):
        raise click.UsageError("give either --session ID or --since TIME")
    excerpt = Excerpt(config, os.environ)
    path = excerpt.config("store.url").store.path
    ensure_sink(sink, excerpt.sinks())
    count = asyncio.run(_ask(path, sink, session, since))
    click.echo(f"{count} event{'' if count == 1 else 's'} for {sink}: {when_it_happens(path)}")


async def _ask(path: Path, sink: str, session: str | None, since: float | None) -> int:
    async with stored(path, to_ask=True) as file:
        await refuse_disabled(file, sink)
        log = EventLog(file)
        # Only where nothing was found is it asked why: a session that is known may have no events any more.
        if count := await log.replay(sink, session=session, since=since):
            return count
        why = "bace-bridge events lists what is recorded"
        if session is not None and not await log.knows_session(session):
            why = unknown_session(session)
        raise click.ClickException(f"no such events in the log: {why}")
