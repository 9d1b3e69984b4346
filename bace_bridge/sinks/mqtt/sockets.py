"""A socket to the broker: TCP, and TLS and WebSocket where the URL says so. Whatever fails is one error, in words."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from bace_bridge.config.models import MqttConfig
from bace_bridge.config.tls import TlsFileProblem, tls_context
from bace_bridge.lookups import in_thread
from bace_bridge.sinks.mqtt.websocket import WebSocket, upgraded

CONNECT_WITHIN = 10.0
"""Seconds for each of: reaching the broker, its CONNACK, its SUBACK."""

Socket = socket.socket | WebSocket

_WANTS_CERTIFICATE = "it wants a client certificate (tls.cert_file and tls.key_file)"


class Unreachable(Exception):  # it never leaves this package
    """There is no socket; the text says why, to people."""


async def open_socket(config: MqttConfig) -> Socket:
    """Raises Unreachable. The loop is never blocked."""
    try:
        async with asyncio.timeout(CONNECT_WITHIN + 1):
            found = await asyncio.get_running_loop().getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
            addresses = [address for *_, address in found]
            return await in_thread(lambda: _opened(config, addresses), name="mqtt-connect", unwanted=_close)
    except TlsFileProblem as error:
        raise Unreachable(f"mqtt.tls.{error.key}: {error}") from None
    except (OSError, ValueError, LookupError) as error:
        raise Unreachable(reason(error, certificate=config.tls.cert_file is not None)) from None


def reason(error: Exception, *, certificate: bool) -> str:
    """Why a socket failed, in words for people; `certificate`: whether a client's certificate was shown."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return _tls_reason(error.reason or "", certificate=certificate)
        case TimeoutError():
            return "no answer in time"
        case UnicodeError():
            return "its host name cannot be written in DNS"
        case OSError(strerror=str(strerror)):
            return strerror.lower()
        case _:
            return str(error) or type(error).__name__


def _tls_reason(alert: str, *, certificate: bool) -> str:
    said = alert.lower().replace("_", " ") or "unspecified"
    if alert == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return _WANTS_CERTIFICATE
    if alert == "WRONG_VERSION_NUMBER":
        return "what answers there does not speak TLS; mqtt:// and ws:// are without"
    if not certificate and alert.endswith(("ALERT_HANDSHAKE_FAILURE", "ALERT_BAD_CERTIFICATE")):
        return f"TLS failed ({said}); perhaps {_WANTS_CERTIFICATE}"
    if certificate and "ALERT" in alert and ("CERTIFICATE" in alert or "UNKNOWN_CA" in alert):
        return f"it does not take the client certificate ({said}); see tls.cert_file"
    return f"TLS failed ({said})"


def _opened(config: MqttConfig, addresses: Sequence[tuple[Any, ...]]) -> Socket:
    tls = tls_context(config.tls) if config.tls_enabled else None
    sock = _connected(addresses)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=config.host)
        if config.websocket:
            return upgraded(sock, host=config.host, port=config.port, path=config.path, within=CONNECT_WITHIN)
    except BaseException:
        sock.close()
        raise
    return sock


def _connected(addresses: Sequence[tuple[Any, ...]]) -> socket.socket:
    """To the first address that answers; else the last one's error."""
    failure = OSError("its name has no address")
    for host, port, *_ in addresses:
        try:
            return socket.create_connection((host, port), timeout=CONNECT_WITHIN)
        except OSError as error:
            failure = error
    raise failure


def _close(opened: Socket) -> None:
    opened.close()
