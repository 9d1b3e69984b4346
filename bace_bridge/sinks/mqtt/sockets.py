"""A socket to the broker: TCP, and TLS and WebSocket where the URL says so. Whatever fails is one error, in words."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from threading import Thread

from bace_bridge.config.models import MqttConfig
from bace_bridge.config.tls import TlsFileProblem, tls_context
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
            return await _in_thread(lambda: _opened(config))
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


def _opened(config: MqttConfig) -> Socket:
    tls = tls_context(config.tls) if config.tls_enabled else None
    sock = socket.create_connection((config.host, config.port), timeout=CONNECT_WITHIN)
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


async def _in_thread(work: Callable[[], Socket]) -> Socket:
    """A daemon thread and not the loop's executor: a DNS server that is away must not hold up the exit."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[Socket] = loop.create_future()

    def hand_over(opened: Socket | None, error: Exception | None) -> None:
        if opened is None:
            if not finished.done():
                finished.set_exception(error or OSError("no socket"))
        elif finished.done():
            opened.close()
        else:
            finished.set_result(opened)

    def run() -> None:
        opened, failure = None, None
        try:
            opened = work()
        except Exception as error:  # noqa: BLE001  # it is raised again, on the loop
            failure = error
        try:
            loop.call_soon_threadsafe(hand_over, opened, failure)
        except RuntimeError:  # the loop has ended meanwhile
            with contextlib.suppress(OSError):
                if opened is not None:
                    opened.close()

    Thread(target=run, name="mqtt-connect", daemon=True).start()
    return await finished
