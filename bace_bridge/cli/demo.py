"""`bace-bridge demo`: the whole system on this machine. The parts are imported after the first line."""

import asyncio
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from io import StringIO, TextIOWrapper
from typing import TYPE_CHECKING, TextIO

import click

from bace_bridge.cli.main import Duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bace_bridge.demo.stage import Addresses


@click.command()
@click.option("--for", "lasting", type=Duration(), help="Stop after this time, such as 20s.")
def demo(lasting: float | None) -> None:
    """Run the whole system on this machine, with nothing to install or configure.

    Starts a simulated BACE cloud, an MQTT broker, a webhook receiver and the real bridge between them, and shows
    what arrives over MQTT and HTTP: in a live view on a terminal, otherwise one line per event.
    """
    began = time.time()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # rather a ? than an end, where the encoding has no check mark
    click.echo("bace-bridge demo: starting a simulated cloud, a broker, a webhook receiver and the bridge ...")
    asyncio.run(_demo(began, lasting))


async def _demo(began: float, lasting: float | None) -> None:
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def end() -> None:
        # The first signal asks for an orderly end, another one cancels: a broker may never answer.
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a closed terminal is a signal as well
        asyncio.get_running_loop().add_signal_handler(number, end)
    if lasting is not None:
        asyncio.get_running_loop().call_later(max(0.0, began + lasting - time.time()), stop.set)
    # A dumb terminal (an editor's, a CI's) shows escape sequences as text.
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    screen = _Picture(began) if on_terminal else _Lines()
    try:
        await _perform(screen, stop)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    board, lasted = screen.board, time.time() - began
    wrong = f", but {board.badly_signed} with a WRONG one" if board.badly_signed else ""
    click.echo(
        f"Stopped after {lasted:.0f} s: {board.events} events with {board.points} datapoints; "
        f"{board.topics.total()} MQTT messages; {board.deliveries} webhook deliveries, with valid signatures{wrong}."
    )


async def _perform(screen: "_Lines | _Picture", stop: asyncio.Event) -> None:
    """`screen` shows what is on its board, every `tick` seconds. Log lines go to its `log`; None: to stderr."""
    # Here, so that the first line is there at once: these take a second to import.
    from bace_bridge import logs
    from bace_bridge.config.values import secrets_of
    from bace_bridge.demo.outside import DemoFailed
    from bace_bridge.demo.stage import staged

    try:
        async with staged(screen.board) as stage:
            logs.configure(fmt=None, level="warning", secrets=secrets_of(stage.config), stream=screen.log)
            playing = asyncio.create_task(stage.play(stop, version=metadata.version("bace-bridge")))
            try:
                with screen.at(stage.addresses):
                    while not playing.done():
                        screen.show(stopping=stop.is_set())
                        await asyncio.wait({playing}, timeout=screen.tick)
            except asyncio.CancelledError:
                playing.cancel()
                raise
            finally:
                # Whatever has ended the view, the bridge ends in order: it still has deliveries to make.
                stop.set()
                await playing
    except DemoFailed as reason:
        raise click.ClickException(str(reason)) from None


class _Lines:
    tick = 0.1
    log: TextIO | None = None

    def __init__(self) -> None:
        from bace_bridge.demo.board import Board
        from bace_bridge.demo.view import Lines

        self._lines = Lines(click.echo)
        self.board = Board(on_new=self._lines.add)

    @contextmanager
    def at(self, addresses: "Addresses") -> Iterator[None]:
        for name, address in (
            ("cloud", addresses.cloud),
            ("bridge", f"http://{addresses.health}/readyz"),
            ("broker", f"{addresses.broker}  ({addresses.mqtt.note or addresses.mqtt.name})"),
            ("webhook", addresses.webhook),
            ("try it", addresses.subscribe),
        ):
            click.echo(f"{name:<8} {address}")
        yield
        self._lines.release(now=math.inf)

    def show(self, *, stopping: bool) -> None:  # noqa: ARG002  # nothing to draw
        self._lines.release(now=time.time())


class _Picture:
    tick = 0.25

    def __init__(self, began: float) -> None:
        from rich.console import Console
        from rich.live import Live

        from bace_bridge.demo.board import Board
        from bace_bridge.demo.view import picture

        self.board = Board()
        self._draw = picture
        self._notes = _LastLines()
        self.log: TextIO | None = self._notes
        self._began = began
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._addresses: Addresses | None = None

    @contextmanager
    def at(self, addresses: "Addresses") -> Iterator[None]:
        self._addresses = addresses
        with self._live:
            yield
        # The other screen is gone now, but its last picture stays to be read.
        self._console.print(self._picture("ended"))

    def show(self, *, stopping: bool) -> None:
        lasted = round(time.time() - self._began)
        status = "stopping ..." if stopping else "Ctrl-C stops it"
        self._live.update(self._picture(f"{lasted // 60}:{lasted % 60:02}   {status}"), refresh=True)

    def _picture(self, status: str) -> "RenderableType":
        assert self._addresses is not None
        size, notes = self._console.size, list(self._notes.lines)
        return self._draw(self.board, self._addresses, notes, now=time.time(), status=status, size=size)


class _LastLines(StringIO):
    """Keeps the last few log lines, to be shown in the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=3)

    def write(self, text: str) -> int:
        self.lines.extend(text.splitlines())
        return len(text)
