"""An MQTT client like anybody's: what it hears is what really arrives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bace_bridge.demo.ports import HOST, DemoFailed

_PATIENCE = 10.0

Heard = Callable[[str, bytes], None]
"""Called in the event loop with the topic and the payload of each message."""


@asynccontextmanager
async def subscribed(port: int, topics: str, heard: Heard) -> AsyncIterator[None]:
    """Listens to the broker on this machine in a thread of its own. Raises DemoFailed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)

    def on_connect(*_: Any) -> None:
        client.subscribe(topics, qos=1)

    def on_subscribe(*_: Any) -> None:
        loop.call_soon_threadsafe(ready.set)

    def on_message(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        loop.call_soon_threadsafe(heard, message.topic, bytes(message.payload))

    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    client.connect_async(HOST, port)
    client.loop_start()
    try:
        try:
            async with asyncio.timeout(_PATIENCE):
                await ready.wait()
        except TimeoutError:
            raise DemoFailed("the embedded MQTT broker does not answer") from None
        yield
    finally:
        client.disconnect()
        # Joining the thread takes the broker's help, and that runs in this very loop.
        await asyncio.to_thread(client.loop_stop)
