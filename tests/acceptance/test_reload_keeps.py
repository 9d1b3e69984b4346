"""SIGHUP with one thing changed: that begins anew, and the connections of everything else go on."""

import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, Process, Receiver, configuration, receiver, running, until
from tests.acceptance.test_reload import ready
from tests.integration.brokers import Listener, Mosquitto, free_port, listening

SOON = 60.0

Start = Callable[[], Mosquitto]


class Homes:
    """A running process with two brokers' sinks, `home` and `office`, and a webhook."""

    def __init__(
        self,
        path: Path,
        bridge: Process,
        cloud: SimulatedCloud,
        device: Device,
        broker: Mosquitto,
        hook: Receiver,
        listener: Listener,
    ) -> None:
        self.path, self.bridge, self.cloud, self.device = path, bridge, cloud, device
        self.broker, self.hook, self.listener = broker, hook, listener

    def change(self, change: Callable[[dict[str, Any]], None]) -> None:
        settings = json.loads(self.path.read_text())
        change(settings)
        self.path.write_text(json.dumps(settings))

    async def reload(self, *, until_it_says: str = "bridge.running") -> None:
        before = self.bridge.log.count(until_it_says)
        self.bridge.process.send_signal(signal.SIGHUP)
        await until(lambda: self.bridge.log.count(until_it_says) > before, within=SOON, what=until_it_says)

    def connections(self) -> dict[str, int]:
        lines = [line for line in self.broker.log().splitlines() if "New client connected" in line]
        return {name: sum(f"-{name} " in line for line in lines) for name in ("home", "office")}

    def ended(self) -> bool:
        return any("bace-bridge-" in line and "disconnected" in line for line in self.broker.log().splitlines())

    def said_offline(self) -> list[str]:
        """Where the bridge or a device was said to be offline."""
        return [one.topic for one in self.listener.heard if one.payload == b"offline"]

    async def shown(self) -> None:
        """Until the state of the device at `home` is that of the last data session."""
        session = self.hook.arrivals[-1].session or ""
        shown = f"home/{self.device.id_group}/session"
        await until(
            lambda: any(one.topic == shown and session.encode() in one.payload for one in self.listener.heard),
            within=SOON,
            what="the retained state",
        )

    async def delivers(self) -> None:
        """A new data session reaches the webhook, once."""
        before = len(self.hook.arrivals)
        if self.hook.arrivals:
            self.cloud.end_session(self.hook.arrivals[-1].session or "")
        session = self.cloud.open_session(self.device.id_group)
        await until(lambda: len(self.hook.arrivals) > before, within=SOON, what="the new session")
        assert [one.session for one in self.hook.arrivals[before:]] == [session]


@asynccontextmanager
async def homes(folder: Path, broker: Mosquitto) -> AsyncIterator[Homes]:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        path = configuration(folder, cloud_url=server.url)
        settings = json.loads(path.read_text())
        url = f"mqtt://127.0.0.1:{broker.port}"
        settings["mqtt"] = [{"name": name, "url": url, "base_topic": name} for name in ("home", "office")]
        settings["webhooks"] = [{"name": "hook", "url": hook.url, "secret": SECRET, "events": ["session.started"]}]
        settings["http"]["listen"] = f"127.0.0.1:{(port := free_port())}"
        path.write_text(json.dumps(settings))
        async with running(path) as bridge, aiohttp.ClientSession() as http:
            await until(lambda: "bridge.running" in bridge.log, within=SOON, what="it runs")
            await ready(bridge, http, port)
            with listening(broker.port, "home/#") as listener:
                one = Homes(path, bridge, cloud, device, broker, hook, listener)
                await one.delivers()
                yield one
            assert await bridge.stop() == 0
            assert "Traceback" not in bridge.log


def a_webhook(settings: dict[str, Any]) -> None:
    settings["webhooks"][0]["timeout"] = "7s"


def polling(settings: dict[str, Any]) -> None:
    settings["watch"] = {"session_interval": "200ms", "datapoint_interval": "400ms"}
    settings["cloud"]["requests_per_minute"] = 50_000


def what_is_kept(settings: dict[str, Any]) -> None:
    settings["store"] |= {"retention": "1d", "session_retention": "2d", "max_size": "32MiB"}


def names(settings: dict[str, Any]) -> None:
    settings["datatypes"] = {"6000": {"name": "Pulse"}}


def health(settings: dict[str, Any]) -> None:
    settings["http"]["listen"] = f"127.0.0.1:{free_port()}"


def nothing(_: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("change", [a_webhook, polling, what_is_kept, names, health, nothing])
async def test_no_broker_notices_that_something_else_has_changed(
    tmp_path: Path, new_mosquitto: Start, change: Callable[[dict[str, Any]], None]
) -> None:
    async with homes(tmp_path, new_mosquitto()) as one:
        one.change(change)
        await one.reload()
        await one.delivers()
        await one.shown()
        assert one.connections() == {"home": 1, "office": 1}
        assert not one.ended()
        assert not one.said_offline()


async def test_a_sink_that_has_changed_begins_anew_alone(tmp_path: Path, new_mosquitto: Start) -> None:
    def other_topic(settings: dict[str, Any]) -> None:
        settings["mqtt"][1]["base_topic"] = "bureau"

    async with homes(tmp_path, new_mosquitto()) as one:
        one.change(other_topic)
        await one.reload()
        await until(lambda: one.connections()["office"] == 2, within=SOON, what="the new connection")
        await one.delivers()
        assert one.connections() == {"home": 1, "office": 2}


async def test_sinks_come_and_go_beside_one_that_stays(tmp_path: Path, new_mosquitto: Start) -> None:
    def without_office(settings: dict[str, Any]) -> None:
        settings["gone"] = settings["mqtt"].pop()
        del settings["gone"]

    async with homes(tmp_path, new_mosquitto()) as one:
        before = json.loads(one.path.read_text())
        one.change(without_office)
        await one.reload()
        await until(one.ended, within=SOON, what="the goodbye")
        await one.delivers()
        one.path.write_text(json.dumps(before))
        await one.reload()
        await until(lambda: one.connections()["office"] == 2, within=SOON, what="it is back")
        await one.delivers()
        assert one.connections() == {"home": 1, "office": 2}


@pytest.mark.parametrize("way", ["unknown key", "port in use"])
async def test_a_wrong_file_touches_no_connection(tmp_path: Path, new_mosquitto: Start, way: str) -> None:
    broker = new_mosquitto()

    def wrong(settings: dict[str, Any]) -> None:
        settings["webhooks"][0]["timeout"] = "7s"
        if way == "unknown key":
            settings["mqtt"][0]["base_topics"] = "x"
        else:
            settings["http"]["listen"] = f"127.0.0.1:{broker.port}"

    async with homes(tmp_path, broker) as one:
        one.change(wrong)
        await one.reload(until_it_says="config.not_reloaded")
        await one.delivers()
        assert one.connections() == {"home": 1, "office": 1}
        assert one.bridge.log.count("webhook.opened") == 1, "its timeout is not changed either"
