"""`bace-bridge replay`: delivers recorded events again."""

import asyncio
import time
from pathlib import Path

import click

from bace_bridge.cli.exits import config_option
from bace_bridge.cli.stored import ensure_sink, excerpt_of, refuse_disabled, stored, unknown_session, when_it_happens
from bace_bridge.config.values import StartFrom, parse_start_from
from bace_bridge.store.eventlog import EventLog


class _Since(click.ParamType[float]):
    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return _epoch(parse_start_from(value))
        except ValueError:
            self.fail(f"{value!r} is neither a time such as 2026-01-31T00:00:00Z nor a duration such as 2h", param, ctx)


def _epoch(start: StartFrom) -> float:
    if start.kind == "since":
        return start.seconds
    if start.kind == "ago":
        return time.time() - start.seconds
    raise ValueError(start.kind)


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
    excerpt = excerpt_of(config)
    path = excerpt.config("store.url").store.path
    ensure_sink(sink, excerpt.sinks())
    count = asyncio.run(_ask(path, sink, session, since))
    click.echo(f"{count} event{'' if count == 1 else 's'} for {sink}: {when_it_happens(path)}")


async def _ask(path: Path, sink: str, session: str | None, since: float | None) -> int:
    async with stored(path, to_ask=True) as file:
        await refuse_disabled(file, sink)
        log = EventLog(file)
        if count := await log.replay(sink, session=session, since=since):
            return count
        why = "bace-bridge events lists what is recorded"
        if session is not None and not await log.knows_session(session):
            why = unknown_session(session)
        raise click.ClickException(f"no such events in the log: {why}")
