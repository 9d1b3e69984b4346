import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest

from tests.faults.proxy import Fault, FaultProxy, proxy_to

Connect = Callable[[FaultProxy], Awaitable["Client"]]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """Before a server that sends back what it gets."""
    echoing: set[asyncio.Task[None]] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(1000):
                writer.write(piece)
        writer.close()

    server = await asyncio.start_server(lambda *ends: echoing.add(asyncio.create_task(echo(*ends))), "127.0.0.1", 0)
    async with proxy_to(server.sockets[0].getsockname()[1]) as one:
        yield one
    server.close()
    if echoing:
        await asyncio.wait(echoing, timeout=5)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def says(self, text: bytes, *, within: float = 60.0) -> bytes:
        self._writer.write(text)
        return await asyncio.wait_for(self._reader.read(1000), within)

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@pytest.fixture
async def client() -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def connect(proxy: FaultProxy) -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return clients[-1]

    yield connect
    for one in clients:
        await one.close()


async def test_it_passes_everything_on(proxy: FaultProxy, client: Connect) -> None:
    one = await client(proxy)
    assert await one.says(b"hello") == b"hello"


async def test_cut_ends_the_old_and_the_new_until_it_passes_again(proxy: FaultProxy, client: Connect) -> None:
    one = await client(proxy)
    assert await one.says(b"hello") == b"hello"
    proxy.switch(Fault.CUT)
    assert await one.says(b"") == b""
    assert await (await client(proxy)).says(b"") == b""
    proxy.switch(Fault.PASS)
    assert await (await client(proxy)).says(b"again") == b"again"


async def test_reset_is_a_reset(proxy: FaultProxy, client: Connect) -> None:
    one = await client(proxy)
    assert await one.says(b"hello") == b"hello"
    proxy.switch(Fault.RESET)
    with pytest.raises(ConnectionResetError):
        await one.says(b"")


async def test_a_hole_swallows_and_its_connections_do_not_outlive_it(proxy: FaultProxy, client: Connect) -> None:
    one = await client(proxy)
    proxy.switch(Fault.HOLE)
    other = await client(proxy)
    for caller in (one, other):
        with pytest.raises(TimeoutError):
            await caller.says(b"hello", within=0.1)
    proxy.switch(Fault.PASS)
    assert await one.says(b"") == b""
    assert await other.says(b"") == b""


async def test_delay_delays_each_piece_both_ways(proxy: FaultProxy, client: Connect) -> None:
    clock = asyncio.get_running_loop().time
    one = await client(proxy)
    proxy.switch(Fault.DELAY, delay=0.1)
    began = clock()
    assert await one.says(b"hello") == b"hello"
    assert clock() - began >= 0.2


async def test_it_admits_none_while_it_is_set_so(proxy: FaultProxy, client: Connect) -> None:
    before = await client(proxy)
    assert await before.says(b"hello") == b"hello"
    proxy.admits = False
    assert await (await client(proxy)).says(b"") == b""
    assert await before.says(b"still") == b"still"
