"""Very many devices at once: how long, how much, and that nothing is rejected."""

import asyncio
import time
from collections.abc import Callable

from tests.homeassistant.home import Entity
from tests.homeassistant.line import Line
from tests.integration.brokers import listening

DEVICES, SERIES = 200, 8
OF_EACH = 8
"""Entities beside the series; device triggers are none."""


async def test_200_devices_with_8_series(whole: Line, record_property: Callable[[str, object], None]) -> None:
    fleet = [
        whole.cloud.add_device(f"BaceGo-{number:05}", datatypes=range(6000, 6000 + SERIES)) for number in range(DEVICES)
    ]
    for device in fleet:
        session = whole.cloud.open_session(device.id_group)
        whole.measures(device, session, series=range(6000, 6000 + SERIES))

    def complete(found: dict[str, Entity]) -> bool:
        ours = [one for name, one in found.items() if not name.startswith("bace_bridge_")]
        states = [one.state for one in ours]
        return len(ours) == DEVICES * (OF_EACH + SERIES) and "unavailable" not in states

    with listening(whole.mosquitto.port, "homeassistant/#", "bace/#") as listener:
        async with whole.bridged(whole.configure(watch={"datapoint_interval": "15s"})):
            began = time.monotonic()
            found = await whole.home.becomes(complete, "all are there", within=90)
            record_property("first seconds", round(time.monotonic() - began, 1))
            values = {one.state for name, one in found.items() if name.rsplit("_", 1)[-1].isdigit()}
            assert "unknown" not in values
            burst = [one for one in listener.heard if one.topic.startswith("homeassistant/")]
            record_property("discovery", f"{len(burst)} messages, {sum(len(one.payload) for one in burst)} bytes")
            await whole.home.stop()
            listener.heard.clear()
            await whole.home.start()
            began = time.monotonic()
            await whole.home.becomes(complete, "all are there again", within=90)
            record_property("seconds after its restart", round(time.monotonic() - began, 1))
            await asyncio.sleep(5)
            record_property("burst", f"{len(listener.heard)} messages, {sum(len(o.payload) for o in listener.heard)} B")
            whole.settled(found, broker_was_away=True)  # it is slow to answer on a busy machine
