"""`bace-bridge run`: the service."""

import asyncio
import os
import signal
from importlib import metadata
from pathlib import Path
from typing import Literal

import click
import structlog

from bace_bridge import logs
from bace_bridge.bridge import Bridge
from bace_bridge.cli.options import config_option
from bace_bridge.config.load import load
from bace_bridge.config.models import Config
from bace_bridge.config.secrecy import secrets_of
from bace_bridge.errors import ConfigError
from bace_bridge.systemd import notify, watchdog_interval

log = structlog.get_logger()

Format = Literal["json", "console"]


@click.command()
@config_option
@click.option("--log-format", type=click.Choice(["json", "console"]), help="Default: console on a terminal, else json.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(config: Path, log_format: Format | None, log_level: str) -> None:
    """Watch the cloud and tell MQTT and webhooks.

    SIGTERM or SIGINT ends it well, a second one at once. SIGHUP re-reads the configuration; a wrong one changes nothing.
    """
    loaded = load(config, os.environ)
    asyncio.run(_serve(config, loaded, log_format, log_level))


class _Signals:
    """The first SIGTERM or SIGINT asks for an orderly end, the second cancels; SIGHUP asks for another configuration."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.reload: Config | None = None
        self.ended = False

    def install(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            if self.ended:
                log.warning("bridge.stopping_now")
                task.cancel()
            self.ended = True
            self.stop.set()

        def read_again() -> None:
            try:
                self.reload = load(path, os.environ)
            except ConfigError as error:
                log.error("config.not_reloaded", mistakes=[str(one) for one in error.mistakes], then="the old one stays")
                return
            log.info("config.reloading")
            self.stop.set()

        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, end)
        loop.add_signal_handler(signal.SIGHUP, read_again)


async def _serve(path: Path, config: Config, log_format: Format | None, log_level: str) -> None:
    version = metadata.version("bace-bridge")
    signals = _Signals()
    signals.install(path)
    address = os.environ.get("NOTIFY_SOCKET")
    while True:
        logs.configure(fmt=log_format, level=log_level, secrets=secrets_of(config))
        log.info("bridge.starting", version=version, cloud=config.cloud.url, store=str(config.store.path))
        bridge = Bridge(config, version=version)
        try:
            await bridge.run(
                signals.stop,
                notify=lambda state: notify(state, address=address),
                watchdog=watchdog_interval(os.environ),
            )
        except asyncio.CancelledError:
            if signals.ended:
                return
            raise
        if signals.ended or signals.reload is None:
            return
        config, signals.reload = signals.reload, None
        signals.stop.clear()
