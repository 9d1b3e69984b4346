"""Configurations that are to take the place of the one that runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from bace_bridge.config.models import Config
from bace_bridge.errors import ConfigError, StoreError, StoreUnusable
from bace_bridge.pauses import STORE_PAUSE

log = structlog.get_logger()

Become = Callable[[Config], Awaitable[None]]


class _Asked(NamedTuple):
    config: Config
    answer: asyncio.Future[None]


class Reloads:
    """Takes them one after the other. `config` is the one that runs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._asked: asyncio.Queue[_Asked] = asyncio.Queue()

    async def ask(self, config: Config) -> None:
        """Returns when it runs. Raises ConfigError where it cannot run; then the one before does."""
        asked = _Asked(config, asyncio.get_running_loop().create_future())
        self._asked.put_nowait(asked)
        await asked.answer

    async def serve(self, become: Become) -> None:
        """Never returns. `become` must be able to go on where it was cut off by a StoreError."""
        while True:
            config, answer = await self._asked.get()
            try:
                await _until_stored(become, config)
            except ConfigError as error:
                # A port in use shows only when it is opened, when parts of the old configuration have ended already.
                await self._go_back(become)
                answer.set_exception(error)
            else:
                self.config = config
                answer.set_result(None)

    async def _go_back(self, become: Become) -> None:
        """What cannot run any more either, such as a listener on an address that is gone, ends nothing else."""
        try:
            await _until_stored(become, self.config)
        except ConfigError as error:
            log.warning(
                "config.not_restored", mistakes=[str(one) for one in error.mistakes], then="everything else continues"
            )


async def _until_stored(become: Become, config: Config) -> None:
    while True:
        try:
            return await become(config)
        except StoreUnusable:
            raise
        except StoreError as error:
            log.debug("config.waits_for_the_store", reason=str(error))
            # Half of a configuration cannot be left standing: `become` goes on where the store failed.
            await asyncio.sleep(STORE_PAUSE)
