"""What a reload keeps, ends and begins."""

import asyncio
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.app.outlets import outlet_config
from bace_bridge.app.running import Reloads, Running, task_group
from bace_bridge.config.models import Config
from bace_bridge.errors import ConfigError, Mistake
from bace_bridge.sinks.mqtt.config import MqttConfig, TlsConfig
from bace_bridge.sinks.webhook.config import WebhookConfig


class Part:
    def __init__(self) -> None:
        self.usable = True
        self.ended = False
        self.heard: list[int] = []

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.ended = True

    def hear(self, number: int) -> None:
        self.heard.append(number)


class Fails(Part):
    async def run(self, stop: asyncio.Event) -> None:
        raise ValueError(f"broken, stop: {stop.is_set()}")


async def test_parts_are_kept_ended_and_named_as_new_by_their_configuration() -> None:
    async with asyncio.TaskGroup() as group:
        running = Running[str, Part](group)
        assert await running.keep(["a", "b"]) == ["a", "b"]
        a, b = Part(), Part()
        running.start("a", a)
        running.start("b", b)
        assert await running.keep(["c", "a"]) == ["c"]
        assert (a.ended, b.ended) == (False, True)
        assert list(running) == [a]
        a.usable = False
        assert await running.keep(["a"]) == ["a"], "one without a connection may begin anew"
        assert a.ended
        await running.end()


async def test_a_method_of_each_is_one_of_those_that_run_when_it_is_called() -> None:
    async with asyncio.TaskGroup() as group:
        running = Running[str, Part](group)
        hear, a, b = running.each(Part.hear), Part(), Part()
        hear(1)
        running.start("a", a)
        hear(2)
        running.start("b", b)
        await running.keep(["b"])
        hear(3)
        assert (a.heard, b.heard) == ([2], [3])
        await running.end()


async def run_one_that_fails() -> None:
    async with task_group() as group:
        Running[str, Part](group).start("a", Fails())
        await asyncio.Event().wait()


async def test_what_a_part_raises_ends_everything_as_it_is() -> None:
    with pytest.raises(ValueError, match="broken"):
        await run_one_that_fails()


def test_a_certificate_that_was_renewed_in_its_place_is_a_change(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    sink = MqttConfig(name="home", url="mqtts://broker.example", tls=TlsConfig(ca_file=file))
    before = outlet_config(sink, "https://cloud.example")
    file.write_text("new")
    after = outlet_config(sink, "https://cloud.example")
    os.utime(file, ns=(1, 1))
    assert len({before.files, after.files, outlet_config(sink, "https://cloud.example").files}) == 3


def test_a_webhook_reads_no_file_itself() -> None:
    hook = WebhookConfig.model_validate({"name": "hook", "url": "https://example.org", "secret": "whsec_" + "A" * 32})
    assert outlet_config(hook, "https://cloud.example").files == ()


def configuration(listen: str) -> Config:
    given = {"cloud": {"url": "https://cloud.example", "access_token": "x"}, "http": {"listen": listen}}
    return Config.model_validate(given)


async def test_neither_the_new_listener_nor_the_old_one_can_be_had_and_the_rest_goes_on() -> None:
    """As where the host has got another address, and the file a wrong one."""
    can_be_had = True

    async def become(config: Config) -> None:
        if not can_be_had:
            raise ConfigError([Mistake("http.listen", f"cannot listen on {config.http.listen}")])

    reloads = Reloads(old := configuration("10.0.0.1:8099"))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(reloads.serve(become))
        can_be_had = False
        with capture_logs() as logs, pytest.raises(ConfigError, match=r"10\.0\.0\.2"):
            await reloads.ask(configuration("10.0.0.2:8099"))
        assert [one["event"] for one in logs] == ["config.not_restored"]
        assert "10.0.0.1" in logs[0]["mistakes"][0]
        assert reloads.config == old
        can_be_had = True
        await reloads.ask(new := configuration("10.0.0.3:8099"))
        assert reloads.config == new
        serving.cancel()
