"""The demonstration's broker."""

import shutil
import socket

import pytest

from bace_bridge.demo.outside import HOST, DemoFailed, any_port, broker, is_free, started, subscribed


async def test_a_port_that_somebody_was_faster_to_take_is_passed_over() -> None:
    with socket.create_server((HOST, 0)) as taken:
        amqtt, port = await started([taken.getsockname()[1], any_port()])
        try:
            assert port != taken.getsockname()[1]
            assert not is_free(port)
        finally:
            await amqtt.shutdown()


async def test_without_any_port_it_says_so() -> None:
    with socket.create_server((HOST, 0)) as taken, pytest.raises(DemoFailed, match="does not start"):
        await started([taken.getsockname()[1]])


@pytest.mark.parametrize("installed", [True, False])
async def test_mosquitto_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if installed and shutil.which("mosquitto") is None:
        pytest.skip("no mosquitto here")
    if not installed:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    async with broker() as one:
        assert not is_free(one.port)
        assert (one.name, one.protocol) == (("Mosquitto", "5") if installed else ("amqtt", "3.1.1"))
        assert bool(one.note) is not installed
        heard: list[str] = []
        async with subscribed(one.port, "a/#", lambda topic, _: heard.append(topic)):
            pass
    assert is_free(one.port)
