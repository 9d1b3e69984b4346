"""A TCP proxy between the bridge and one other side, which a test makes misbehave while the bridge runs."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

CHUNK = 65536
NO_LINGER = struct.pack("ii", 1, 0)


class Fault(Enum):
    PASS = "pass"  # no password
    CUT = "cut"
    """Every connection ends, with FIN, and so does each new one."""
    RESET = "reset"
    """The same with RST."""
    HOLE = "hole"
    """Connections stay and are accepted, and nothing comes through. They end with the fault: bytes are missing."""
    DELAY = "delay"
    """Each piece takes `delay` seconds."""


class FaultProxy:
    """Listens on `port` and passes on to `upstream`. While it does not `admit`, a new connection ends at once."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.fault = Fault.PASS
        self.delay = 0.0
        self.admits = True
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def switch(self, fault: Fault, *, delay: float = 0.0) -> None:
        before, self.fault, self.delay = self.fault, fault, delay
        if fault is Fault.RESET:
            for writer in list(self._open):
                _reset(writer)
        elif fault is Fault.CUT or before is Fault.HOLE:
            for writer in list(self._open):
                writer.close()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def close(self) -> None:
        self.switch(Fault.RESET)
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is Fault.RESET:
            _reset(writer)
        if self.fault in {Fault.CUT, Fault.RESET} or not self.admits:
            writer.close()
            return
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            _reset(writer)
        else:
            self._open.add(far_writer)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            self._open.discard(far_writer)
        finally:
            self._open.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(CHUNK):
                if self.fault is Fault.DELAY:
                    await asyncio.sleep(self.delay)
                if self.fault is not Fault.HOLE:
                    writer.write(piece)
                    await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()


@asynccontextmanager
async def proxy_to(upstream: int) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(upstream)
    server = await asyncio.start_server(proxy.take, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
