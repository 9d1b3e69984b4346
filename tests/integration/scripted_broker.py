"""A tiny MQTT broker that behaves as a test wants: it refuses versions, sets limits, returns error codes."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from paho.mqtt.client import topic_matches_sub

from tests.integration.peers import speaking

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 10, 11, 12, 13, 14


@dataclass
class Published:
    topic: str
    payload: bytes
    qos: int
    retained: bool


@dataclass
class Script:
    """What the broker does; `connect_codes` are used up one an attempt, and then everybody is welcome."""

    refuses_5: bool = False
    silent_on_5: bool = False
    connect_codes: list[int] = field(default_factory=list)
    connack_properties: bytes = b""
    suback: int = 1
    answers: dict[str, int] = field(default_factory=dict)
    properties: bytes = b"\x00"
    """What follows the reason code of an acknowledgement."""
    holds_acknowledgements: bool = False
    acknowledges_after: float = 0.001
    """Seconds; what the broker has not acknowledged when it ends the connection, it does not acknowledge any more."""
    garbage: bytes = b""
    cuts_acknowledgements: bool = False
    """Half of the message's id is missing."""
    closes_on: bytes = b""
    """Text in a payload that makes the broker end the connection."""
    closes_on_retained: bool = False
    connack_after: float = 0.0
    """Seconds."""
    closes_on_topic: str = ""
    """The same in a topic."""
    never_acknowledges: str = ""
    """Text in a topic."""
    closes_on_subscribing: str = ""
    """A filter that makes the broker end the connection."""
    goodbye: int = 0
    """The reason code of a DISCONNECT that comes before that; 0: none."""
    keeps: bool = False
    """As RabbitMQ: what is retained is shown to filters without wildcards alone, and what is published to all."""


class ScriptedBroker:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self.versions: list[int] = []
        self.published: list[Published] = []
        self.subscribed_qos: list[int] = []
        self.subscribed: list[list[str]] = []
        self.unsubscribed: list[list[str]] = []
        self.goodbyes: list[bytes] = []
        self.largest_packet = 0
        self.connections: list[asyncio.StreamWriter] = []
        self.unacknowledged = 0
        self.most_unacknowledged = 0
        self.kept: dict[str, bytes] = {}
        self._filters: list[str] = []

    def send(self, packet: bytes) -> None:
        self.connections[-1].write(packet)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._converse(reader, writer)
        writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, body = await packet(reader)
        assert first >> 4 == CONNECT
        version = body[6]
        self.versions.append(version)
        if version == 5 and self.script.silent_on_5:
            return
        if version == 5 and self.script.refuses_5:
            writer.write(bytes([CONNACK << 4, 2, 0, 1]))
            return
        code = self.script.connect_codes.pop(0) if self.script.connect_codes else 0
        properties = self.script.connack_properties
        tail = bytes([len(properties)]) + properties if version == 5 else b""
        await asyncio.sleep(self.script.connack_after)
        writer.write(bytes([CONNACK << 4, 2 + len(tail), 0, code]) + tail)
        if code:
            return
        while True:
            first, body = await packet(reader)
            self.largest_packet = max(self.largest_packet, 1 + _length_of_variable_integer(len(body)) + len(body))
            self._answer(writer, version, first, body)

    def _answer(self, writer: asyncio.StreamWriter, version: int, first: int, body: bytes) -> None:
        match first >> 4:
            case 3:
                self._published(writer, version, first, body)
            case 6:
                writer.write(bytes([PUBCOMP << 4, 2]) + body[:2])
            case 8:
                filters = _filters(body[3:] if version == 5 else body[2:])
                self.subscribed_qos.append(body[-1] & 3)
                self.subscribed.append(filters)
                if self.script.closes_on_subscribing and self.script.closes_on_subscribing in filters:
                    self._close(writer)
                tail = (b"\x00" if version == 5 else b"") + bytes([self.script.suback]) * len(filters)
                writer.write(bytes([SUBACK << 4, 2 + len(tail)]) + body[:2] + tail)
                self._filters += filters
                for topic in self.kept.keys() & set(filters):
                    writer.write(_publish(version, topic, self.kept[topic], retained=True))
            case 10:
                self.unsubscribed.append(_filters(body[3:] if version == 5 else body[2:], options=0))
                tail = b"\x00\x00" if version == 5 else b""
                writer.write(bytes([UNSUBACK << 4, 2 + len(tail)]) + body[:2] + tail)
            case 14:
                self.goodbyes.append(body)
            case 12:
                writer.write(bytes([PINGRESP << 4, 0]))

    def _close(self, writer: asyncio.StreamWriter) -> NoReturn:
        if self.script.goodbye:
            writer.write(bytes([DISCONNECT << 4, 1, self.script.goodbye]))
            writer.close()
        else:
            writer.transport.abort()
        raise ConnectionAbortedError

    def _published(self, writer: asyncio.StreamWriter, version: int, first: int, body: bytes) -> None:
        if self.script.garbage:
            writer.write(self.script.garbage)
            return
        qos, length = first >> 1 & 3, int.from_bytes(body[:2], "big")
        topic, rest = body[2 : 2 + length].decode(), body[2 + length :]
        mid, rest = (rest[:2], rest[2:]) if qos else (b"", rest)
        if version == 5:
            properties, used = _variable_integer(rest)
            rest = rest[used + properties :]
        script = self.script
        if (
            (first & 1 and script.closes_on_retained)
            or (script.closes_on and script.closes_on in rest)
            or (script.closes_on_topic and script.closes_on_topic in topic)
        ):
            self._close(writer)
        self.published.append(Published(topic, rest, qos, bool(first & 1)))
        if script.keeps:
            self._keep_and_show(writer, version, self.published[-1])
        if not qos:
            return
        self.unacknowledged += 1
        self.most_unacknowledged = max(self.most_unacknowledged, self.unacknowledged)
        if not self.script.holds_acknowledgements:
            asyncio.get_running_loop().call_later(
                self.script.acknowledges_after, self._acknowledge, writer, topic, mid, qos
            )

    def _keep_and_show(self, writer: asyncio.StreamWriter, version: int, message: Published) -> None:
        if message.retained:
            self.kept[message.topic] = message.payload
        if any(topic_matches_sub(one, message.topic) for one in self._filters):
            writer.write(_publish(version, message.topic, message.payload, retained=False))

    def _acknowledge(self, writer: asyncio.StreamWriter, topic: str, mid: bytes, qos: int) -> None:
        if self.script.never_acknowledges and self.script.never_acknowledges in topic:
            return
        self.unacknowledged -= 1
        if self.script.cuts_acknowledgements:
            writer.write(bytes([PUBACK << 4, 1]) + mid[1:])
            return
        code = self.script.answers.get(topic)
        tail = bytes([code]) + self.script.properties if code is not None else b""
        writer.write(bytes([(PUBACK if qos == 1 else PUBREC) << 4, 2 + len(tail)]) + mid + tail)


@asynccontextmanager
async def scripted(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedBroker]:
    broker = ScriptedBroker(script)
    async with speaking(broker.serve, tls=tls) as broker.port:
        yield broker


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return first, await reader.readexactly(length)


def _publish(version: int, topic: str, payload: bytes, *, retained: bool) -> bytes:
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name + (b"\x00" if version == 5 else b"") + payload
    length = bytes([len(body) & 0x7F | 0x80, len(body) >> 7 & 0x7F | 0x80, len(body) >> 14])
    return bytes([PUBLISH << 4 | retained]) + length + body


def _filters(body: bytes, options: int = 1) -> list[str]:
    found = []
    while body:
        length = int.from_bytes(body[:2], "big")
        found.append(body[2 : 2 + length].decode())
        body = body[2 + length + options :]
    return found


def _variable_integer(data: bytes) -> tuple[int, int]:
    number = shift = used = 0
    while True:
        byte = data[used]
        number |= (byte & 0x7F) << shift
        shift, used = shift + 7, used + 1
        if not byte & 0x80:
            return number, used


def _length_of_variable_integer(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


def two_bytes(identifier: int, value: int) -> bytes:
    return struct.pack("!BH", identifier, value)


def four_bytes(identifier: int, value: int) -> bytes:
    return struct.pack("!BL", identifier, value)
