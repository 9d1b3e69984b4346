"""A simulated cloud, the real bridge, a real Mosquitto and a real Home Assistant in one line."""

import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Device
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import Process, configuration, running
from tests.homeassistant.home import Entity, HomeAssistant
from tests.integration.brokers import Mosquitto

Entities = Mapping[str, Entity]
SOON = 60.0

# Of a device, beside its series; and those that the clock or a poll moves.
OF_A_DEVICE = ("running", "session", "started", "ended", "csv", "duration", "datapoints", "last_seen")
MOVING = ("_last_poll", "_last_seen", "_duration", "_poll")

# What it says itself when it loses its broker.
OF_THE_BROKER = re.compile(
    r"(?:homeassistant\.components\.mqtt|paho\.mqtt)\.client: |homeassistant: .*Task exception was never retrieved"
)


class Line:
    """`device` and `other` are there from the beginning, without a data session."""

    def __init__(self, folder: Path, server: SimulatedServer, home: HomeAssistant, mosquitto: Mosquitto) -> None:
        self.folder, self.server, self.home, self.mosquitto = folder, server, home, mosquitto
        self.cloud = server.cloud
        self.device = self.cloud.add_device("BaceGo-001-002-00020", datatypes=(6000, 6011, 9999))
        self.other = self.cloud.add_device("BaceGo-001-002-00035")
        self.values = 60.0
        self.bridge: Process | None = None

    def configure(self, *, watch: Any = None, datatypes: Any = None, hook_url: str | None = None, **mqtt: Any) -> Path:
        """Writes the configuration, with these keys of the MQTT sink, and of other sections."""
        extra = {"watch": watch} if watch else {}
        path = configuration(
            self.folder, cloud_url=self.server.url, mqtt_port=self.mosquitto.port, hook_url=hook_url, extra=extra
        )
        settings = json.loads(path.read_text())
        settings["mqtt"][0] |= mqtt
        settings["datatypes"] = datatypes or {}
        path.write_text(json.dumps(settings))
        return path

    @asynccontextmanager
    async def bridged(self, config: Path | None = None, module: str = "bace_bridge") -> AsyncIterator[Process]:
        """Stops in an orderly way at the end of the context, if it still runs."""
        async with running(config or self.configure(), module=module) as bridge:
            self.bridge = bridge
            yield bridge
            if bridge.process.returncode is None:
                assert await bridge.stop() == 0
        assert "Traceback" not in bridge.log

    def measures(self, device: Device, session: str, *, series: Sequence[int] = (6000, 6011, 9999)) -> float:
        """The value that each of these series has from now on."""
        self.values += 1
        for one in device.series:
            if one.datatype in series:
                points = [(time.time(), self.values)]
                self.cloud.add_points(session, one.id_container_data_latest, points)
        return self.values

    def starts(self, device: Device) -> str:
        """The id of a new data session, with a value of each series."""
        session = self.cloud.open_session(device.id_group)
        self.measures(device, session)
        return session

    def ends(self, session: str) -> None:
        self.cloud.end_session(session)
        self.cloud.finish_ingestion(session)

    def of(self, entities: Entities, device: Device, key: str | int) -> Entity | None:
        """An entity by its key; a number is a series."""
        name = f"{device.sources[0]}_{key}" if isinstance(key, int) else key
        return entities.get(f"bace_{device.id_group}_{name}")

    def says(self, entities: Entities, device: Device, **states: str | None) -> bool:
        """Whether these entities have these states; `heart` is the series of heart rates, None an entity less."""
        keys: dict[str, str | int] = {"heart": 6000, "weight": 6011, "unknown": 9999}
        return all(
            (found.state if (found := self.of(entities, device, keys.get(key, key))) else None) == state
            for key, state in states.items()
        )

    async def device_id(self, device: Device) -> str:
        return str((await self.home.devices())[f"bace_{device.id_group}"]["id"])

    def settled(self, entities: Entities, *, broker_was_away: bool = False) -> None:
        """Nothing doubled, and nothing that Home Assistant complains about, but of the broker where that was away."""
        doubled = [one.entity_id for one in entities.values() if one.entity_id.rsplit("_", 1)[-1] in {"2", "3"}]
        assert doubled == [], doubled
        complaints = [one for one in self.home.complaints if not (broker_was_away and OF_THE_BROKER.match(one))]
        assert complaints == [], complaints


def steady(entities: Entities) -> dict[str, tuple[str, str | None]]:
    """Each entity's id and state, without the states that move by themselves."""
    return {name: (one.entity_id, None if name.endswith(MOVING) else one.state) for name, one in entities.items()}


@asynccontextmanager
async def line(folder: Path, home: HomeAssistant, mosquitto: Mosquitto) -> AsyncIterator[Line]:
    async with SimulatedServer(SimulatedCloud()) as server:
        yield Line(folder, server, home, mosquitto)
