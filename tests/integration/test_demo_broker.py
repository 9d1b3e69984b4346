"""The demonstration's broker."""

import socket

import pytest

from bace_bridge.demo.outside import HOST, DemoFailed, any_port, is_free, started


async def test_a_port_that_somebody_was_faster_to_take_is_passed_over() -> None:
    with socket.create_server((HOST, 0)) as taken:
        broker, port = await started([taken.getsockname()[1], any_port()])
        try:
            assert port != taken.getsockname()[1]
            assert not is_free(port)
        finally:
            await broker.shutdown()


async def test_without_any_port_it_says_so() -> None:
    with socket.create_server((HOST, 0)) as taken, pytest.raises(DemoFailed, match="does not start"):
        await started([taken.getsockname()[1]])
