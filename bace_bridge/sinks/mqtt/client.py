"""Paho: the client, driven from the asyncio loop; its packets within bounds; PUBACKs without its slow decoding."""

import asyncio
import ssl
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import msgspec
from paho.mqtt import MQTTException
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode

from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.manners import FIRST_FAILURE, Manner
from bace_bridge.sinks.mqtt.messages import introduction
from bace_bridge.sinks.mqtt.sockets import BufferedSocket, Socket, Unreachable, reason

_REASON_AT = 2
_NO_SUBSCRIBERS = 0x10


def read_acknowledgements(client: Client) -> None:
    """Plain PUBACKs without paho's decoding, and a PUBREC's refusal, which paho keeps to itself; the rest is paho's."""
    inside: Any = client
    # paho builds a reason code and properties for each PUBACK, which is most of the work at thousands of them in a
    # second. Nearly all of them are one of three: nothing (3.1.1, and 5 where all went well), success, no subscribers.
    decode, handle_pubrec = inside._handle_pubackcomp, inside._handle_pubrec
    taken, unheard = (ReasonCode(PacketTypes.PUBACK, identifier=code) for code in (0, _NO_SUBSCRIBERS))
    accepting = {b"": taken}
    if client.protocol == MQTTProtocolVersion.MQTTv5:
        accepting |= {bytes([taken.value]): taken, bytes([unheard.value]): unheard}

    def puback_or_pubcomp(command: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        packet: bytes = inside._in_packet["packet"]
        reason = accepting.get(bytes(packet[_REASON_AT:])) if command == "PUBACK" else None
        mid = int.from_bytes(packet[:_REASON_AT], "big")
        if reason is None or len(packet) < _REASON_AT or mid not in inside._out_messages:
            return MQTTErrorCode(decode(command))
        # Without paho's lock: only the event loop's thread uses the client.
        return MQTTErrorCode(inside._do_on_publish(mid, reason, None))

    def pubrec() -> MQTTErrorCode:
        packet: bytes = inside._in_packet["packet"]
        mid = int.from_bytes(packet[:_REASON_AT], "big")
        if len(packet) <= _REASON_AT or packet[_REASON_AT] < FIRST_FAILURE or mid not in inside._out_messages:
            return MQTTErrorCode(handle_pubrec())
        # It ends the message, as PUBACK does at QoS 1. paho would send PUBREL, and the broker answer with success.
        reason = ReasonCode(PacketTypes.PUBREC, identifier=packet[_REASON_AT])
        return MQTTErrorCode(inside._do_on_publish(mid, reason, None))

    inside._handle_pubackcomp, inside._handle_pubrec = puback_or_pubcomp, pubrec


LARGEST_PACKET = 2**20
"""Bytes of a packet that is read whole. MQTT 5 announces it; of a larger message the beginning is kept."""

UNSENDABLE = (OSError, ValueError, struct.error, ArithmeticError, TypeError)
"""What paho raises at a packet that cannot be made: texts without UTF-8, lengths that do not fit."""

_BEGINNING = 72 * 2**10
"""Bytes: a topic of any length, and what is needed to acknowledge the message."""

_PIECE = 64 * 2**10


class Will(msgspec.Struct, frozen=True):
    topic: str
    payload: bytes


class BadPacket(Exception):
    """The broker sent what is not taken from it; the text says what."""


class Beginning(bytes):
    """The beginning of a payload that was too large to be kept."""

    __slots__ = ()


def new_client(sock: Socket, config: MqttConfig, *, client_id: str, manner: Manner, will: Will, version: str) -> Client:
    """CONNECT is sent over this socket when the loop drives it. Raises Unreachable, and closes it then."""
    try:
        client = _configured(config, client_id=client_id, manner=manner, will=will)
        inside: Any = client
        # paho opens sockets in connect(), which would block the event loop during DNS, TCP and TLS.
        inside._create_socket = lambda: BufferedSocket(sock)
        properties: Any = introduction(version, LARGEST_PACKET) if manner.protocol == "5" else None
        client.connect(config.address.host, config.address.port, round(config.keepalive), properties=properties)
    except UNSENDABLE as error:
        sock.close()
        raise Unreachable(f"CONNECT cannot be sent: {reason(error, certificate=True)}") from None
    return client


def _configured(config: MqttConfig, *, client_id: str, manner: Manner, will: Will) -> Client:
    speaks_5 = manner.protocol == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        # The broker keeps no session: what was in flight comes again from the event log, and a request that had waited
        # there would be answered long after it was made. With 5 paho wants None, and asks for a clean start by itself.
        clean_session=None if speaks_5 else True,
        protocol=MQTTProtocolVersion.MQTTv5 if speaks_5 else MQTTProtocolVersion.MQTTv311,
        # Each connection has a client of its own; when there is another one is the sink's decision.
        reconnect_on_failure=False,
    )
    client.max_inflight_messages = 0  # no limit of paho's own, hence no scan of all messages on every PUBACK
    # The will has the topic and payload that a clean stop publishes, and is retained like it. A broker that takes no
    # QoS 2, or keeps nothing, may refuse a CONNECT whose will asks for that, hence the bounds.
    client.will_set(will.topic, will.payload, min(1, manner.qos), manner.retain)
    if config.username is not None:
        password = config.password.get_secret_value() if config.password is not None else None
        client.username_pw_set(config.username, password)
    read_acknowledgements(client)
    # Any callback here keeps paho from writing to the socket before the event loop drives it.
    client.on_socket_register_write = lambda *_: None
    return client


def bound_what_is_read(client: Client, *, failed: Callable[[Exception], None]) -> None:
    """Paho takes whatever size a packet claims to have; here a piece is read at a time, and too much is left out.

    `failed` gets the socket's error, which paho keeps to its own log. What is no packet for us raises BadPacket.
    """
    inside: Any = client
    handle = inside._handle_on_message

    def receive_piece(size: int) -> bytes:
        """Called for each byte of a header: so it takes the place of paho's own, and is not around it."""
        packet, sock = inside._in_packet, inside._sock
        # A header may claim 256 MiB, and paho collects a packet whole before it looks at it.
        if size > _PIECE or (size > 1 and packet["command"] >> 4 == PacketTypes.PUBLISH):
            _check(packet)
        if sock is None:
            raise ConnectionError
        try:
            data: bytes = sock.recv(min(size, _PIECE))
        except ssl.SSLWantReadError:
            # To paho only this error means "later"; any other one ends the connection.
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            # TLS may have to write before it can read, as when keys are renewed; the loop must know.
            inside._call_socket_register_write()
            raise BlockingIOError from None
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                # paho reports only that the connection is lost; why TLS failed would be forgotten.
                failed(error)
            raise
        return data

    def handle_message(message: Any) -> None:
        if inside._in_packet["remaining_length"] > LARGEST_PACKET:
            message.payload = Beginning(message.payload)
        handle(message)

    inside._sock_recv, inside._handle_on_message = receive_piece, handle_message
    _pass_over_bad_properties(client)


def _pass_over_bad_properties(client: Client) -> None:
    """Brokers pass on properties that paho does not take, such as a text with U+FEFF: anybody may write them."""
    inside: Any = client
    decode, decode_size = inside._handle_publish, cast("Any", VariableByteIntegers.decode)

    def handle_publish() -> MQTTErrorCode:
        try:
            return MQTTErrorCode(decode())
        except MQTTException:
            packet = inside._in_packet
            # What follows the fixed header: topic, packet id (not at QoS 0), and the properties, which are cut out.
            data, qos = packet["packet"], packet["command"] >> 1 & 3
            before = 2 + int.from_bytes(data[:2], "big") + (2 if qos else 0)
            size, digits = decode_size(data[before:])
            packet["packet"] = bytes(data[:before]) + b"\x00" + bytes(data[before + digits + size :])
            return MQTTErrorCode(decode())

    inside._handle_publish = handle_publish


def _check(packet: Any) -> None:
    """Before more is read of a packet whose length is known: drops what is not kept, or raises BadPacket."""
    kind, qos, size = packet["command"] >> 4, packet["command"] >> 1 & 3, packet["remaining_length"]
    if kind != PacketTypes.PUBLISH and size > LARGEST_PACKET:
        raise BadPacket(f"a packet of {size} bytes")
    # The bridge subscribes with QoS 1 at most. paho would keep a message of QoS 2 until PUBREL, which may never come.
    if kind == PacketTypes.PUBLISH and qos > 1:
        raise BadPacket("a message with a quality of service that was not asked for")
    if size > LARGEST_PACKET:
        # The rest is read and dropped: without a PUBACK for it the broker would send nothing more, or send it again.
        del packet["packet"][_BEGINNING:]


_TICK = 1.0


class Driver:
    """`failed` gets what paho could not read or write; `tick` is called about once a second."""

    def __init__(self, client: Client, *, failed: Callable[[Exception], None], tick: Callable[[float], None]) -> None:
        sock: Any = client.socket()
        if sock is None:
            raise RuntimeError("the client has no socket")
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._failed = failed
        self._tick = tick
        self._fd = sock.fileno()
        # paho's own threads are not used: callbacks would run in them, beside the event loop.
        self._buffered: Callable[[], int] = sock.pending
        self._driving = True
        # paho calls it before it closes the socket, while the file descriptor is still this socket's.
        client.on_socket_close = lambda *_: self.let_go()
        client.on_socket_register_write = partial(self._on_writing, begins=True)
        client.on_socket_unregister_write = partial(self._on_writing, begins=False)
        self._loop.add_reader(self._fd, self._read)
        # CONNECT was queued before these callbacks were there.
        if client.want_write():
            self._loop.add_writer(self._fd, self._write)
        self._timer = self._loop.call_later(_TICK, self._look_after)

    def _read(self) -> None:
        if not self._driving:
            return
        try:
            self._client.loop_read()
            # What was read or decrypted already does not make the socket readable again. Others have a turn before it:
            # requests would come faster than they are answered.
            if self._buffered():
                self._loop.call_soon(self._read)
        except Exception as error:  # noqa: BLE001  # our callbacks keep theirs: this is what the broker sent
            self._failed(error)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)

    def _look_after(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._look_after)
        try:
            # Sends PINGREQ, and ends the connection where PINGRESP does not come. Nothing else in paho keeps time.
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)
        self._tick(self._loop.time())

    def _on_writing(self, *_: Any, begins: bool) -> None:
        if self._driving and begins:
            self._loop.add_writer(self._fd, self._write)
        elif self._driving:
            self._loop.remove_writer(self._fd)

    def let_go(self) -> None:
        """The loop must forget the file descriptor before it is closed and given to somebody else."""
        if self._driving:
            self._driving = False
            self._timer.cancel()
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
