"""The stage: a simulated cloud, a broker, a webhook receiver and the real bridge, in one process."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec

from bace_bridge.app.bridge import Bridge
from bace_bridge.config.load import load
from bace_bridge.config.models import Config
from bace_bridge.demo.board import BASE_TOPIC, Board
from bace_bridge.demo.outside import (
    HOST,
    Broker,
    DemoFailed,
    any_port,
    broker,
    ports_to_try,
    subscribed,
    webhook_receiver,
)
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.player import play
from bace_bridge.simulator.samples import SIGNALS
from bace_bridge.simulator.scenario import History, bundled
from bace_bridge.simulator.server import SimulatedServer

_SPEED = 1.5
"""How much faster than written the scenario is played: its first session is ingested 6 s after the start."""

_PREFERRED_CLOUD_PORT = 8180


class Addresses(msgspec.Struct, frozen=True):
    """Where the parts are to be found."""

    cloud: str
    mqtt: Broker
    webhook: str
    health: str

    @property
    def broker(self) -> str:
        return f"mqtt://{HOST}:{self.mqtt.port}"

    @property
    def subscribe(self) -> str:
        """The command that shows the messages in another terminal."""
        return f"mosquitto_sub -h {HOST} -p {self.mqtt.port} -t '{BASE_TOPIC}/#' -v"


class Stage(NamedTuple):
    """Everything but the play: `play` lets it begin."""

    addresses: Addresses
    config: Config
    cloud: SimulatedCloud

    async def play(self, stop: asyncio.Event, *, version: str) -> None:
        """Runs the bridge while things happen in the cloud; returns when it has ended after `stop`."""
        if stop.is_set():
            return
        # Nothing lies in the past here: whatever the bridge finds, it may report from the beginning.
        scenario = bundled("quick").model_copy(update={"history": History()})
        async with asyncio.TaskGroup() as group:
            player = group.create_task(play(self.cloud, scenario, speed=_SPEED))
            bridge = Bridge(self.config, version=version)
            await bridge.run(stop, notify=lambda _state: None, watchdog=None)
            # The play has no end of its own; the bridge, which has ended here, has.
            player.cancel()


@asynccontextmanager
async def staged(board: Board) -> AsyncIterator[Stage]:
    """Everything around the bridge, listening; what arrives goes to the board. Raises DemoFailed."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bace-bridge-demo-")))
        # Another seed each time: two demos must not have the same session ids on one broker.
        cloud = SimulatedCloud(seed=time.time_ns())
        cloud_url = await stack.enter_async_context(_simulated(cloud))
        mqtt = await stack.enter_async_context(broker())
        webhook = await stack.enter_async_context(
            webhook_receiver(secret, lambda body, signed: board.delivered(body, signed, now=time.time()))
        )
        await stack.enter_async_context(
            subscribed(
                mqtt.port, f"{BASE_TOPIC}/#", lambda topic, payload: board.heard(topic, payload, now=time.time())
            )
        )
        # Health on any port: it is printed, and the default port may belong to a bridge that runs here.
        addresses = Addresses(cloud_url, mqtt, webhook, f"{HOST}:{any_port()}")
        yield Stage(addresses, _configured(folder, addresses, secret, cloud), cloud)


@asynccontextmanager
async def _simulated(cloud: SimulatedCloud) -> AsyncIterator[str]:
    reason = ""
    for port in ports_to_try(_PREFERRED_CLOUD_PORT):
        server = SimulatedServer(cloud, HOST, port)
        try:
            await server.start()
        except OSError as error:
            reason = str(error)
            continue
        try:
            yield server.url
        finally:
            await server.stop()
        return
    raise DemoFailed(f"the simulated cloud does not start: {reason}")


def _configured(folder: Path, addresses: Addresses, secret: str, cloud: SimulatedCloud) -> Config:
    """A configuration as a person would write it, through the same door."""
    account, mqtt = cloud.credentials, {"url": addresses.broker, "protocol": addresses.mqtt.protocol}
    settings = {
        "cloud": {
            "url": addresses.cloud,
            "client_id": account.client_id,
            "client_secret": account.client_secret,
            "username": account.username,
            "password": account.password,
            "requests_per_minute": 1200,
        },
        "watch": {"session_interval": "1s", "datapoint_interval": "1s", "start_from": "all"},
        "store": {"url": f"sqlite:///{folder}/bridge.db"},
        "mqtt": [{"name": "broker", **mqtt, "base_topic": BASE_TOPIC}],
        "webhooks": [{"name": "receiver", "url": addresses.webhook, "secret": secret}],
        "http": {"listen": addresses.health},
        "datatypes": {number: {"name": one.name, "unit": one.unit} for number, one in SIGNALS.items()},
    }
    file = folder / "bridge.yaml"
    # JSON is YAML.
    file.write_text(json.dumps(settings), encoding="utf-8")
    return load(file, {})
