"""The real process with labels in `cloud.groups`, before and after a restart."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, receiver, running, until
from tests.integration.brokers import free_port


@pytest.mark.parametrize("quirks", [[], ["no-expand"]], ids=["expanded", "not expanded"])
async def test_a_label_is_watched_and_one_without_a_device_is_said_by_every_process(
    tmp_path: Path, quirks: list[str]
) -> None:
    cloud = SimulatedCloud(quirks=Quirks.parse(quirks))
    ours, other = (cloud.add_device(label).id_group for label in ("BaceGo-001-002-00020", "BaceGo-001-002-00021"))
    listen = f"127.0.0.1:{free_port()}"
    async with SimulatedServer(cloud) as server, receiver() as hook, aiohttp.ClientSession() as http:
        extra: dict[str, Any] = {
            "cloud": {"groups": ["BaceGo-001-002-00020", "BaceGo-01-002-00022"]},
            "http": {"listen": listen},
        }
        config = configuration(tmp_path, cloud_url=server.url, hook_url=hook.url, extra=extra)
        for number in range(1, 3):
            async with running(config) as bridge:
                said = "cloud.group_matches_nothing"
                await until(lambda: bridge.log.count(said) == number, within=60, what="the warning")  # noqa: B023
                async with http.get(f"http://{listen}/readyz") as answer:
                    body = await answer.json()
                assert "'BaceGo-01-002-00022': no device that the account sees" in body["degraded"]["groups"]
                cloud.open_session(other)
                session = cloud.open_session(ours)
                await until(lambda: len(hook.arrivals) >= number, within=60, what="the start")  # noqa: B023
                assert hook.arrivals[-1].session == session
                assert await bridge.stop() == 0
                assert bridge.log.count(said) == number
    assert [one.type for one in hook.arrivals] == ["session.started"] * 2
