"""A paho client that is set up for the configured broker, and the blocking part of connecting it."""

import asyncio
import contextlib
import socket
import ssl
import traceback
from collections.abc import Callable
from threading import Thread
from typing import Any

import msgspec
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from bace_bridge.config.models import MqttConfig, TlsConfig
from bace_bridge.sinks.mqtt.buffered import BufferedSocket
from bace_bridge.sinks.mqtt.properties import user_property
from bace_bridge.sinks.mqtt.puback import read_consent
from bace_bridge.sinks.mqtt.pubrec import heed_refusals
from bace_bridge.sinks.mqtt.versions import Version

CONNECT_WITHIN = 10.0
"""Seconds for each of: reaching the broker, its CONNACK, its SUBACK."""

_EXACTLY_ONCE = 2


class Will(msgspec.Struct, frozen=True):
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


def new_client(config: MqttConfig, *, client_id: str, protocol: Version, will: Will) -> paho.Client:
    """A client for one connection: used again, paho would send by itself what it still holds."""
    speaks_5 = protocol == "5"
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if speaks_5 else True,
        protocol=MQTTProtocolVersion.MQTTv5 if speaks_5 else MQTTProtocolVersion.MQTTv311,
        transport="websockets" if config.websocket else "tcp",
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_WITHIN
    client.max_inflight_messages = 0  # no limit of paho's own, hence no scan of all messages on every PUBACK
    client.will_set(will.topic, will.payload, will.qos, will.retain)
    if config.username is not None:
        password = config.password.get_secret_value() if config.password is not None else None
        client.username_pw_set(config.username, password)
    if config.websocket:
        client.ws_set_options(path=config.path)
    read_consent(client)
    if config.qos == _EXACTLY_ONCE:
        heed_refusals(client)
    # Any callback here keeps paho from writing to the socket before the event loop drives it.
    client.on_socket_register_write = _leave_writing_to_the_loop
    return client


def _leave_writing_to_the_loop(*_: Any) -> None: ...


async def reach(client: paho.Client, config: MqttConfig, *, version: str) -> None:
    """Opens the client's socket; raises what DNS, TCP, TLS or WebSocket raise. The loop is never blocked."""

    def open_socket() -> None:
        if config.tls_enabled:
            client.tls_set_context(_tls_context(config.tls))
        speaks_5 = client.protocol == MQTTProtocolVersion.MQTTv5
        introduction: Any = user_property("bace-bridge", version) if speaks_5 else None
        client.connect(config.host, config.port, round(config.keepalive), properties=introduction)
        _send_at_once(client)
        if config.websocket:
            _send_whole_frames(client)
        inside: Any = client
        inside._sock = BufferedSocket(client.socket())  # noqa: SLF001  # paho takes no socket of ours

    try:
        async with asyncio.timeout(CONNECT_WITHIN + 1):
            await _in_thread(open_socket, abandon=lambda: close_socket(client))
    except (OSError, ValueError, LookupError) as error:
        close_socket(client)
        raise Unreachable(error) from error


class Unreachable(Exception):  # it never leaves this package
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def close_socket(client: paho.Client) -> None:
    if (sock := client.socket()) is not None:
        sock.close()


async def _in_thread(work: Callable[[], None], *, abandon: Callable[[], None]) -> None:
    """A daemon thread and not the loop's executor: a DNS server that is away must not hold up the exit."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def tell(error: Exception | None) -> None:
        if finished.done():
            abandon()
        elif error is None:
            finished.set_result(None)
        else:
            finished.set_exception(error)

    def run() -> None:
        failure: Exception | None = None
        try:
            work()
        except Exception as error:  # noqa: BLE001  # it is raised again, on the loop
            failure = error
            _close_sockets_of(error)
        try:
            loop.call_soon_threadsafe(tell, failure)
        except RuntimeError:  # the loop has ended meanwhile
            abandon()

    Thread(target=run, name="mqtt-connect", daemon=True).start()
    await finished


def _close_sockets_of(error: Exception) -> None:
    """Closes the socket that paho leaves behind when the TLS or WebSocket handshake fails."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in list(frame.f_locals.values()):
            if isinstance(value, socket.socket):
                value.close()


def _tls_context(tls: TlsConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    if tls.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def _send_at_once(client: paho.Client) -> None:
    sock = client.socket()
    if sock is not None:
        with (
            contextlib.suppress(OSError),
            socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as tcp,
        ):
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _send_whole_frames(client: paho.Client) -> None:
    """Keeps paho from dropping an MQTT packet whose WebSocket frame was sent in part.

    Its wrapper returns 0 for that, which paho takes for the end of the packet.
    `BlockingIOError` makes it try the packet again; the wrapper then goes on with the rest of the frame.
    """
    sock: Any = client.socket()
    send = sock.send

    def send_whole(data: bytes) -> int:
        sent: int = send(data)
        if not sent:
            raise BlockingIOError
        return sent

    sock.send = send_whole
