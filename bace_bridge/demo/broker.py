"""The embedded MQTT broker."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from bace_bridge.demo.ports import HOST, DemoFailed, ports_to_try

_PREFERRED_PORT = 1883
_LEAVING = 3.0
"""Seconds that the broker may take to say goodbye to clients that are still there."""


@asynccontextmanager
async def embedded_broker() -> AsyncIterator[int]:
    """Runs a broker; gives its port. Raises DemoFailed."""
    # It tells at length of everyday things, such as a client that comes or goes.
    for talkative in ("amqtt", "transitions", "websockets"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL + 1)
    broker, port = await started(ports_to_try(_PREFERRED_PORT))
    try:
        yield port
    finally:
        try:
            async with asyncio.timeout(_LEAVING):
                await broker.shutdown()
        except TimeoutError:
            pass  # the process ends anyway


async def started(ports: Iterable[int]) -> tuple[Any, int]:
    """The broker on the first of these ports that nobody else has taken by now."""
    try:
        from amqtt.broker import Broker  # noqa: PLC0415  # an extra, that only the demonstration needs
        from amqtt.errors import AMQTTError, BrokerError  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "amqtt":
            raise
        hint = "pip install 'bace-bridge[demo]'"
        raise DemoFailed(f"the demonstration needs an embedded MQTT broker: {hint}") from None
    reason = ""
    for port in ports:
        broker = Broker(_settings(port))
        try:
            await broker.start()
        except (AMQTTError, BrokerError, OSError) as error:
            reason = str(error)
        else:
            return broker, port
    raise DemoFailed(f"the embedded MQTT broker does not start: {reason}")


def _settings(port: int) -> dict[str, Any]:
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
