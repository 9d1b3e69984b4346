"""`bace-bridge run`: the service."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Literal

import click
import structlog

from bace_bridge import logs, waiting
from bace_bridge.app.bridge import Bridge
from bace_bridge.app.running import task_group
from bace_bridge.app.service import notify, watchdog_interval
from bace_bridge.cli.main import config_option
from bace_bridge.cli.streams import unblock_stderr
from bace_bridge.config.load import load
from bace_bridge.config.models import Config
from bace_bridge.config.values import secrets_of
from bace_bridge.errors import BridgeError, ConfigError

log = structlog.get_logger()

Format = Literal["json", "console"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_AT_ONCE = 2
"""The number of the SIGTERM or SIGINT that cancels the orderly end."""

_AT_LAST_IN = 5
"""Seconds from then on until the process is killed."""


@click.command()
@config_option
@click.option("--log-format", type=click.Choice(["json", "console"]), help="Default: console on a terminal, else json.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(config: Path, log_format: Format | None, log_level: str) -> None:
    """Poll the cloud and deliver to MQTT and webhooks.

    SIGTERM or SIGINT shuts it down cleanly, a second one at once. SIGHUP reloads the configuration and restarts only
    what changed; a configuration with mistakes is not applied. On a terminal SIGHUP stops it, since a closing terminal
    sends one.
    """
    unblock_stderr()
    loaded = load(config, os.environ)
    waiting.run(_serve(config, loaded, log_format, log_level))


class _Signals:
    """The first SIGTERM or SIGINT asks for an orderly end, the second cancels; SIGHUP brings a new configuration.

    On a terminal SIGHUP asks for an orderly end, too, and never cancels: one that closes may send several.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.reloads: asyncio.Queue[Config] = asyncio.Queue()
        self.successor: Config | None = None
        self.not_reloaded: str | None = None
        self.ended = False

    def install(self, path: Path) -> None:
        # The main task: that it is cancelled reaches everything, as all other tasks are in its groups.
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        assert isinstance(loop, waiting.Loop)

        def end() -> None:
            if self.ended:
                log.warning("bridge.stopping_now")
                task.cancel()
            end_in_order()

        def end_in_order() -> None:
            self.ended = True
            self.stop.set()
            loop.hurry()

        def read_again() -> None:
            try:
                config = load(path, os.environ, patience=None)  # a pipe was read once, and the loop must not wait
            except ConfigError as error:
                mistakes = [str(one) for one in error.mistakes]
                self.refused(mistakes, then="the previous configuration stays in use")
                return
            self.not_reloaded = None
            log.info("config.reloading")
            self.reloads.put_nowait(config)

        self._listen(end, end_in_order if _closes_with_its_terminal() else read_again)

    def refused(self, mistakes: list[str], *, then: str) -> None:
        """What is on disk is not what runs, until a reload succeeds."""
        log.warning("config.not_reloaded", mistakes=mistakes, then=then)
        self.not_reloaded = mistakes[0]

    def config_check(self) -> dict[str, str | None]:
        problem = self.not_reloaded
        return {
            "config": None if problem is None else f"the file on disk differs from the running configuration: {problem}"
        }

    @staticmethod
    def _listen(end: Callable[[], None], on_hangup: Callable[[], None]) -> None:
        """Not by `loop.add_signal_handler`: the loop gives the signals back when it closes, and the next one kills."""
        # Python runs a handler between two instructions of the main thread, so even while the loop is busy, or waits
        # for a thread: counting here, and not on the loop, makes a second SIGTERM end a process that hangs.
        loop, ends = asyncio.get_running_loop(), count(1)

        def received(number: int, _: object) -> None:
            if number == signal.SIGHUP:
                loop.call_soon_threadsafe(on_hangup)
                return
            if next(ends) == _AT_ONCE:
                signal.alarm(_AT_LAST_IN)  # SIGALRM kills, whatever the end waits for; nothing is lost
            loop.call_soon_threadsafe(end)

        for one in SIGNALS:
            signal.signal(one, received)


def _closes_with_its_terminal() -> bool:
    """False where there is none, or nohup has asked to outlive it."""
    # nohup sets SIG_IGN before it starts the command; systemd and containers leave the default, and have no terminal.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return False
    if any(os.isatty(descriptor) for descriptor in (0, 1, 2)):
        return True
    # With all three streams redirected a session may still have one: only opening it shows that.
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _serve(path: Path, config: Config, log_format: Format | None, log_level: str) -> None:
    """Runs until a signal ends it."""
    signals = _Signals()
    signals.install(path)
    try:
        await _serve_each(config, signals, log_format, log_level)
    finally:
        for one in SIGNALS:  # one more would kill what has already ended well
            signal.signal(one, signal.SIG_IGN)


async def _serve_each(
    config: Config,
    signals: _Signals,
    log_format: Format | None,
    log_level: str,
) -> None:
    """Runs one bridge after the other. One that cannot be started gives way to the one before it."""
    version = metadata.version("bace-bridge")
    before: Config | None = None
    while True:
        logs.configure(fmt=log_format, level=log_level, secrets=secrets_of(config))
        log.info("bridge.starting", version=version, cloud=config.cloud.url, store=str(config.store.path))
        bridge = Bridge(config, version=version, config_check=signals.config_check)
        # Before READY a failure is the new configuration's; after it, the bridge did run and something else broke.
        started = asyncio.Event()
        to_manager = partial(_notify, signals=signals, started=started)
        try:
            async with task_group() as group:
                reloading = group.create_task(_reload_each(bridge, signals, to_manager, log_format, log_level))
                await bridge.run(signals.stop, notify=to_manager, watchdog=watchdog_interval(os.environ))
                reloading.cancel()
        except asyncio.CancelledError:
            if signals.ended:
                return
            raise
        except BridgeError as error:
            if signals.ended and not started.is_set():
                log.info("bridge.not_started", reason=str(error))
                return
            if before is None or started.is_set():
                raise
            # `before` is tried once: where it cannot start again either, the process ends, and its manager decides.
            signals.refused([str(error)], then="the previous configuration stays in use")
            config, before = before, None
            continue
        if signals.ended or signals.successor is None:
            return
        before, config, signals.successor = bridge.reloads.config, signals.successor, None
        signals.stop.clear()


async def _reload_each(
    bridge: Bridge, signals: _Signals, to_manager: Callable[[str], None], log_format: Format | None, log_level: str
) -> None:
    """Until a configuration comes that takes another bridge: then this one ends for it."""
    while bridge.may_become(config := await signals.reloads.get()):
        to_manager("RELOADING=1")
        # Until it is decided which of the two runs, the secrets of both are masked.
        secrets = secrets_of(config) | secrets_of(bridge.reloads.config)
        logs.configure(fmt=log_format, level=log_level, secrets=secrets)
        try:
            await bridge.reloads.ask(config)
        except ConfigError as error:
            signals.refused([str(error)], then="the previous configuration stays in use")
        logs.configure(fmt=log_format, level=log_level, secrets=secrets_of(bridge.reloads.config))
        to_manager("READY=1\nSTATUS=watching")
    signals.successor = config
    signals.stop.set()


def _notify(state: str, *, signals: _Signals, started: asyncio.Event) -> None:
    """Notifies the service manager; a stop for a reload must not appear to be the end, or it would kill the service."""
    if state.startswith("READY"):
        started.set()
    if state.startswith("RELOADING") or (state.startswith("STOPPING") and not signals.ended):
        # Type=notify-reload: by this time systemd knows that the state answers its own signal, and no earlier one.
        state = f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
    notify(state, address=os.environ.get("NOTIFY_SOCKET"))
