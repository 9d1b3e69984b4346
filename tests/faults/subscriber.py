"""An MQTT subscriber that misses nothing that the broker has acknowledged, also where the broker is killed.

What a SIGKILL takes from Mosquitto is not the bridge's loss: it keeps what it has acknowledged in memory, and even with
`autosave_on_changes` it answers a message before it saves it. So nothing is left to its memory. A subscriber
that is connected gets each message written to its socket *before* the publisher gets the PUBACK (`sub__messages_queue`
comes before `send__puback` in Mosquitto's `handle__publish`), and what is in a socket survives the sender. Hence:

- QoS 0: the subscriber never writes. A PUBACK of it that the dead broker has not read would turn the end of
  the connection into a reset, and a reader that meets a reset may throw away what it has not read.
- `max_queued_messages 0`: a QoS 0 message to a subscriber that is slow for a moment is not dropped.
- The bridge gets to a new broker only when the subscriber is there (`ProvingGround.new_broker`).
- No persistence: a killed broker has forgotten everything, and what comes twice is the bridge's doing alone.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.acceptance.line import Arrival, from_mqtt, until
from tests.integration.scripted_broker import CONNACK, CONNECT, PUBLISH, SUBACK, SUBSCRIBE, packet

TOPICS = ("bace/+/event", "bace/+/datapoints")


class Subscriber:
    """MQTT 3.1.1, reconnecting at once."""

    def __init__(self, port: int) -> None:
        self.arrivals: list[Arrival] = []
        self.retained = 0
        self.connected = False
        self._port = port
        self._numbers = itertools.count()

    async def listen(self) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._listen_once()
            self.connected = False
            await asyncio.sleep(0.02)

    async def _listen_once(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            name = f"oracle-{next(self._numbers)}".encode()
            writer.write(_packet(CONNECT << 4, b"\x00\x04MQTT\x04\x02\x00\x00" + _text(name)))
            await _expect(reader, CONNACK)
            at_most_once = b"".join(_text(topic.encode()) + b"\x00" for topic in TOPICS)
            writer.write(_packet(SUBSCRIBE << 4 | 2, b"\x00\x01" + at_most_once))
            await _expect(reader, SUBACK)
            self.connected = True
            while True:
                first, body = await packet(reader)
                if first >> 4 == PUBLISH:
                    self._take(first, body)
        finally:
            writer.close()

    def _take(self, first: int, body: bytes) -> None:
        length = int.from_bytes(body[:2], "big")
        self.retained += first & 1
        arrival = from_mqtt(body[2 : 2 + length].decode(), body[2 + length :])
        assert arrival is not None
        self.arrivals.append(arrival)


async def _expect(reader: asyncio.StreamReader, kind: int) -> None:
    first, _ = await packet(reader)
    assert first >> 4 == kind


def _text(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


def _packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first, len(body)]) + body


@asynccontextmanager
async def subscribed(port: int) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(port)
    listening = asyncio.create_task(subscriber.listen())
    try:
        await until(lambda: subscriber.connected or listening.done(), within=60, what="the subscription")
        yield subscriber
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
