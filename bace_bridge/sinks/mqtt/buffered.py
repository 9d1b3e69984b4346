"""A socket that is read in large pieces, below a paho client, which asks for a packet's header byte by byte."""

from typing import Any

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
        if self._at == len(self._read):
            self._read, self._at = self._sock.recv(_MOST), 0
        begin, self._at = self._at, min(self._at + size, len(self._read))
        return self._read[begin : self._at]

    def pending(self) -> int:
        return len(self._read) - self._at or int(self._pending_below())
