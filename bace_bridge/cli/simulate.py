"""`bace-bridge simulate`: the simulated cloud alone."""

import asyncio
import errno
import math
import signal
import socket
import time
from datetime import datetime
from pathlib import Path

import click

from bace_bridge.cli.main import Duration
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.player import play
from bace_bridge.simulator.quirks import Quirks, describe
from bace_bridge.simulator.scenario import Scenario, ScenarioError, bundled, bundled_names, bundled_text, load
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.waiting import pause_until


def _a_number(_: click.Context, __: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter("must be a number")
    return value


def _scenario(_: click.Context, __: click.Parameter, value: str) -> Scenario:
    try:
        return bundled(value) if value in bundled_names() else load(Path(value))
    except ScenarioError as wrong:
        mistakes = "".join(f"\n  {mistake}" for mistake in wrong.mistakes)
        raise click.BadParameter(f"scenario {value}:{mistakes}") from wrong


def _quirks(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> Quirks:
    try:
        return Quirks.parse(value)
    except ValueError as wrong:
        raise click.BadParameter(f"{wrong}\n--list-quirks explains them.") from wrong


def _list_quirks(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        table = describe()
        width = max(len(written) for written, _ in table)
        for written, says in table:
            click.echo(f"{written:<{width}}  {says}")
        ctx.exit()


def _print_scenario(ctx: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None:
        click.echo(bundled_text(name), nl=False)
        ctx.exit()


@click.command
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8180, show_default=True, type=click.IntRange(0, 65535), help="0 = any free port.")
@click.option(
    "--scenario",
    default="default",
    show_default=True,
    metavar="FILE",
    callback=_scenario,
    help="What happens: a YAML file or a built-in scenario (default, quick).",
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    callback=_a_number,
    help="Run the scenario this many times faster. Timestamps follow the clock: at speed 60 a ten-minute session"
    " takes ten seconds and reports a duration of ten seconds.",
)
@click.option(
    "--quirk",
    "quirks",
    multiple=True,
    metavar="QUIRK",
    callback=_quirks,
    help='A way in which the cloud misbehaves, such as tie-shuffle or "rate-limit 5/20s"; repeatable.',
)
@click.option(
    "--list-quirks",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_quirks,
    help="List and explain the quirks.",
)
@click.option(
    "--print-scenario",
    type=click.Choice(bundled_names()),
    is_eager=True,
    expose_value=False,
    callback=_print_scenario,
    help="Print a built-in scenario, with its keys explained, as a starting point.",
)
@click.option("--for", "lasting", type=Duration(), help="Stop after this time, such as 90s.")
def simulate(*, host: str, port: int, scenario: Scenario, speed: float, quirks: Quirks, lasting: float | None) -> None:
    """Run a simulated BACE cloud, to build automations without a device.

    Prints its URL, credentials and a configuration to copy, then one line for each thing that happens.
    """
    # Devices keep their ids from run to run; sessions get new ones, since they are new ones.
    cloud = SimulatedCloud(clock=time.time, quirks=quirks, seed=time.time_ns())
    asyncio.run(_serve(SimulatedServer(cloud, host, port), scenario, speed, lasting))


async def _serve(server: SimulatedServer, scenario: Scenario, speed: float, lasting: float | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await server.start()
    except UnicodeError:  # from the encoding of international names, before any look-up
        raise click.ClickException("cannot listen: that is not a valid host name (try another --host)") from None
    except OSError as error:
        raise click.ClickException(f"cannot listen at {server.url}: {_why_not(error)}") from error
    account = server.cloud.credentials
    try:
        click.echo(
            f"Simulated BACE cloud at {server.url}  (Ctrl-C stops it)\n"
            "\n"
            "For bridge.yaml:\n"
            "\n"
            "cloud:\n"
            f"  url: {server.url}\n"
            f"  client_id: {account.client_id}\n"
            f"  client_secret: {account.client_secret}\n"
            f"  username: {account.username}\n"
            f"  password: {account.password}\n"
        )
        async with asyncio.TaskGroup() as group:
            player = group.create_task(
                play(
                    server.cloud,
                    scenario,
                    speed=speed,
                    report=lambda line: click.echo(f"{datetime.now().astimezone():%H:%M:%S}  {line}"),
                )
            )
            await (stop.wait() if lasting is None else pause_until(stop, lasting))
            player.cancel()
    finally:
        await server.stop()
    click.echo("Stopped.")


def _why_not(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another program listens there (try another --port)"
        case errno.EACCES:
            return "only root may listen on this port (try a --port from 1024 on)"
        case errno.EADDRNOTAVAIL | socket.EAI_NONAME | socket.EAI_AGAIN | socket.EAI_FAIL:
            return (
                "--host is not an address of this machine (127.0.0.1 is this machine alone, 0.0.0.0 all its addresses)"
            )
    return error.strerror or str(error)
