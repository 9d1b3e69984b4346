"""A webhook receiver in a process of its own: `python -m bench.receiver PORT`.

The path says how it answers: /hang never, /fail with 500, anything else with 204. It prints "ready"; a line "arrivals"
on stdin makes it print per path what has come when, and a line "down" or "up" changes /switch.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Receiver:
    def __init__(self) -> None:
        self.arrivals: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self.down = False

    def answer(self, path: str, event_id: str, _body: bytes) -> bytes:
        """The answer, and a note of what was taken."""
        if path == "/hang":
            return b""
        if path == "/fail" or (path == "/switch" and self.down):
            return FAILED
        self.arrivals[path].append((time.time(), event_id))
        return OK

    def told(self, command: str) -> object:
        if command in {"up", "down"}:
            self.down = command == "down"
        return self.arrivals if command == "arrivals" else None


class Endpoint(asyncio.Protocol):
    """Reads no more than it must, so that the sender is what is measured."""

    def __init__(self, answer: Callable[[str, str, bytes], bytes]) -> None:
        """`answer` makes an answer of a path, an event's id and a body."""
        self._answer = answer
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            length = int(header(head, b"content-length:") or 0)
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            path = head.split(b" ", 2)[1].decode()
            self._transport.write(self._answer(path, header(head, b"webhook-id:").decode(), body))


def header(head: bytes, name: bytes) -> bytes:
    start = head.lower().find(name)
    return head[start + len(name) :].split(b"\r\n", 1)[0].strip() if start >= 0 else b""


async def main(port: int) -> None:
    receiver = Receiver()
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: Endpoint(receiver.answer), "127.0.0.1", port):
        print("ready", flush=True)
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        while line := (await commands.readline()).decode().strip():
            print(json.dumps(receiver.told(line)), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
