"""The sockets below paho: opened with TLS or a WebSocket, read in large pieces, with reasons for each failure."""

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from bace_bridge.sinks.mqtt.config import MqttConfig, TlsFileProblem, tls_context
from bace_bridge.waiting import in_thread

_MOST = 64 * 1024


class BufferedSocket:
    """Behaves as the connected TCP, TLS or WebSocket socket that it is given, as far as paho uses one.

    What it has read already does not make the socket readable again: as with TLS, `pending` says how much there is.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._read = b""
        self._at = 0
        self._pending_below = getattr(sock, "pending", lambda: 0)
        self.send, self.close, self.fileno = sock.send, sock.close, sock.fileno

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        """At most `size` bytes, none at the end; raises what the socket raises, BlockingIOError where it has none."""
        # paho reads a packet's header byte by byte, each of which would be a system call.
        if self._at == len(self._read):
            self._read, self._at = self._sock.recv(_MOST), 0
        begin, self._at = self._at, min(self._at + size, len(self._read))
        return self._read[begin : self._at]

    def pending(self) -> int:
        return len(self._read) - self._at or int(self._pending_below())


_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_LONGEST_HEAD = 16 * 1024
_LARGEST_FRAME = 64 * 1024
_MASKED, _FINAL = 0x80, 0x80
_LARGEST_IN_7_BITS = 125
_IN_TWO_BYTES, _IN_EIGHT_BYTES = 126, 127
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10
_DATA = (0, 1, _BINARY)
_KNOWN = (*_DATA, _CLOSE, _PING, _PONG)
_SWITCHING_PROTOCOLS = 101


class UpgradeRefused(ConnectionError):
    """The server does not switch to WebSocket; the text says why."""


def upgraded(sock: socket.socket, *, host: str, port: int, path: str, within: float) -> "WebSocket":
    """Asks for the upgrade and reads the answer, which takes `within` seconds at most.

    Raises UpgradeRefused, or the OSError of the socket.
    """
    secure = isinstance(sock, ssl.SSLSocket)
    bare = host.partition("%")[0]  # the zone of an IPv6 address means something on this machine only (RFC 6874)
    authority = f"[{bare}]" if ":" in host else host.encode("idna").decode()
    if port != (443 if secure else 80):
        authority += f":{port}"
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {quote(path, safe='/%:@!$&()*+,;=~-._')} HTTP/1.1",
        f"Host: {authority}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Origin: {'https' if secure else 'http'}://{authority}",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        # The name that MQTT's section on WebSocket demands; some brokers refuse an upgrade without it.
        "Sec-WebSocket-Protocol: mqtt",
    ]
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    _check_answer(sock, key, deadline=time.monotonic() + within)
    return WebSocket(sock)


def _check_answer(sock: socket.socket, key: str, *, deadline: float) -> None:
    read = bytearray()
    while not read.endswith(b"\r\n\r\n"):
        if len(read) > _LONGEST_HEAD or time.monotonic() > deadline:
            raise UpgradeRefused("its answer to the WebSocket upgrade does not end")
        # Byte by byte: what follows belongs to the first frame.
        byte = sock.recv(1)
        if not byte:
            raise UpgradeRefused("it closes the connection on the WebSocket upgrade")
        read += byte
    head = read.decode("latin-1")
    status = re.match(r"HTTP/1\.\d (\d{3})", head)
    if status is None:
        raise UpgradeRefused("the server that answers the WebSocket upgrade is not an HTTP server")
    if int(status[1]) != _SWITCHING_PROTOCOLS:
        raise UpgradeRefused(f"it answers the WebSocket upgrade with HTTP {status[1]}; check the port and the path")
    expected = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode(), usedforsecurity=False).digest()).decode()
    accept = re.search(r"^sec-websocket-accept:[ \t]*(\S*)", head, re.IGNORECASE | re.MULTILINE)
    if accept is None or accept[1] != expected:
        raise UpgradeRefused("its answer to the WebSocket upgrade does not belong to the request")


class WebSocket:
    """`recv` and `send` as of a socket that does not block; a peer that breaks the protocol is a ConnectionError."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head = bytearray()
        self._left = 0
        self._out = bytearray()
        self.fileno, self.close, self.setblocking = sock.fileno, sock.close, sock.setblocking
        self.pending: Callable[[], int] = getattr(sock, "pending", lambda: 0)
        self._taken = 0
        """Bytes of the caller's data that the frame in `_out` stands for."""

    def recv(self, most: int) -> bytes:
        """b"" when the other side has closed."""
        while not self._left:
            opcode = self._next_frame()
            if opcode is None or opcode == _CLOSE:
                return b""
        # Frames are no borders of packets: a packet may be in several, and a frame may hold several.
        data = self._sock.recv(min(most, self._left))
        self._left -= len(data)
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Raises BlockingIOError until a whole frame has left; the caller then gives the same data again."""
        if self._out and not self._taken:
            self._flush()
        if not self._taken:
            self._taken = min(len(data), _LARGEST_FRAME)
            self._out += _frame(_BINARY, bytes(data[: self._taken]))
        self._flush()
        # Only now: a caller that hears of part of a frame would give the rest of its data a frame of its own.
        taken, self._taken = self._taken, 0
        return taken

    def _next_frame(self) -> int | None:
        """Reads a frame's head, and all of one that carries no data. None at the end of the connection."""
        if not self._filled(2):
            return None
        opcode, length = self._head[0] & 0x0F, self._head[1] & 0x7F
        # A server masks nothing (RFC 6455, 5.1), and control frames are short (5.5).
        if self._head[1] & _MASKED or opcode not in _KNOWN or (opcode >= _CLOSE and length > _LARGEST_IN_7_BITS):
            raise ConnectionAbortedError("the broker sent an invalid WebSocket frame")
        size = {_IN_TWO_BYTES: 2, _IN_EIGHT_BYTES: 8}.get(length, 0)
        if not self._filled(2 + size):
            return None
        if size:
            length = int.from_bytes(self._head[2:])
        if opcode in _DATA:
            self._left = length
        elif not self._filled(2 + length):
            return None
        elif opcode == _PING and len(self._out) < _LARGEST_FRAME:  # a flood of pings must not fill the memory
            self._out += _frame(_PONG, bytes(self._head[2:]))
            if not self._taken:
                with contextlib.suppress(BlockingIOError):  # it goes with the next packet
                    self._flush()
        self._head.clear()
        return opcode

    def _filled(self, size: int) -> bool:
        while len(self._head) < size:
            data = self._sock.recv(size - len(self._head))
            if not data:
                return False
            self._head += data
        return True

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._sock.send(self._out)]
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None


def _frame(opcode: int, data: bytes) -> bytes:
    """A client's frames are masked."""
    # Without it a proxy between could be made to take a payload for HTTP (RFC 6455, 10.3).
    mask, size = os.urandom(4), len(data)
    if size <= _LARGEST_IN_7_BITS:
        head = bytes([_FINAL | opcode, _MASKED | size])
    elif size < _LARGEST_FRAME:
        head = bytes([_FINAL | opcode, _MASKED | _IN_TWO_BYTES]) + size.to_bytes(2, "big")
    else:
        head = bytes([_FINAL | opcode, _MASKED | _IN_EIGHT_BYTES]) + size.to_bytes(8, "big")
    pattern = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(data, "big") ^ pattern).to_bytes(size, "big")


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
            host, port, *_ = config.address
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [address for *_, address in found]
            return await in_thread(
                lambda: _opened(config, addresses), name="mqtt-connect", unwanted=lambda opened: opened.close()
            )
    except TlsFileProblem as error:
        raise Unreachable(f"mqtt.tls.{error.mistake.path}: {error}") from None
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
        return "the server does not speak TLS; use mqtt:// or ws:// for a connection without TLS"
    if not certificate and alert.endswith(("ALERT_HANDSHAKE_FAILURE", "ALERT_BAD_CERTIFICATE")):
        return f"TLS failed ({said}); perhaps {_WANTS_CERTIFICATE}"
    if certificate and "ALERT" in alert and ("CERTIFICATE" in alert or "UNKNOWN_CA" in alert):
        return f"it does not take the client certificate ({said}); see tls.cert_file"
    return f"TLS failed ({said})"


def _opened(config: MqttConfig, addresses: Sequence[tuple[Any, ...]]) -> Socket:
    """At the first address that answers; else the last one's error."""
    broker = config.address
    tls = tls_context(config.tls) if broker.tls else None
    failure = OSError("its name has no address")
    for host, port, *_ in addresses:
        try:
            sock = socket.create_connection((host, port), timeout=CONNECT_WITHIN)
            break
        except OSError as error:
            failure = error
    else:
        raise failure
    try:
        # paho writes one packet at a time; Nagle's algorithm would hold each back until the one before was received.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=broker.host)
        if broker.websocket:
            return upgraded(sock, host=broker.host, port=broker.port, path=broker.path, within=CONNECT_WITHIN)
    except BaseException:
        sock.close()
        raise
    return sock
