"""The summary of a data session, as MQTT, a webhook and the retained session have it, over the real process."""

import json
import signal
from pathlib import Path
from typing import Any

from bace_bridge.polling.rules.event_schema import event_schema
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import Resolution
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import configuration, from_mqtt, receiver, running, until
from tests.integration.brokers import Broker, listening
from tests.integration.test_summaries import raw, recomputed, shown


async def test_both_sinks_and_the_retained_session_have_the_same_summary(broker: Broker, tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    cloud.resolution = Resolution(raw=3600)
    device = cloud.add_device("BaceGo-1", datatypes=(6000, 7000), sources=2)
    series = [one.id_container_data_latest for one in device.series]
    topics = f"bace/{device.id_group}"
    async with SimulatedServer(cloud) as server, receiver() as hook:
        with listening(broker.port, f"{topics}/#") as listener:

            def of_type(event_type: str) -> list[dict[str, Any]]:
                found = [from_mqtt(one.topic, one.payload) for one in listener.on(f"{topics}/event")]
                return [one.body for one in found if one is not None and one.type == event_type]

            def retained() -> dict[str, Any]:
                found = listener.on(f"{topics}/session")
                return dict(json.loads(found[-1].payload)) if found else {}

            config = configuration(tmp_path, cloud_url=server.url, mqtt_port=broker.port, hook_url=hook.url)
            async with running(config) as bridge:
                await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
                session = cloud.open_session(device.id_group, start=cloud.clock() - 7200)
                for number, one in enumerate(series):
                    made = [(cloud.clock() - 7000 + 31.5 * at + number, 60.0 + at % 9) for at in range(200)]
                    cloud.add_points(session, one, [*made, (cloud.clock() - 5, 70.0)])
                points = 201 * len(series)
                await until(lambda: points_of(hook.arrivals) >= points, within=60, what="the points")
                await bridge.stop(signal.SIGKILL)
            # A corrected point and late ones, while it is down; then the end.
            cloud.add_points(session, series[0], [(cloud.samples.of(session)[series[0]].times[-1], 99.5)])
            cloud.add_points(session, series[-1], [(cloud.clock() - 60 + at / 8, 1.25) for at in range(9)])
            cloud.end_session(session)
            expected = recomputed(cloud, raw(cloud, session))
            async with running(config) as bridge:
                await until(lambda: bool(of_type("session.ended")), within=60, what="the end")
                await until(lambda: "summary" in retained(), within=60, what="its summary is retained")
                assert shown(of_type("session.ended")[0]["summary"]) == expected
                assert shown(retained()["summary"]) == expected
                # In hours that are read no more before the CSV.
                old = cloud.samples.of(session)[series[0]].times[:20]
                cloud.add_points(session, series[0], [(at, 20.5) for at in old])
                cloud.add_points(session, series[1], [(cloud.clock() - 7100, 33.0)])
                cloud.finish_ingestion(session)
                final = recomputed(cloud, raw(cloud, session))
                await until(lambda: bool(of_type("session.csv_ready")), within=60, what="the CSV")
                assert shown(of_type("session.csv_ready")[-1]["summary"]) == final != expected
                await until(
                    lambda: retained().get("summary") == of_type("session.csv_ready")[-1]["summary"],
                    within=60,
                    what="the final summary is retained",
                )
                await until(lambda: bool(of_hook(hook.arrivals, "csv_ready")), within=60, what="the webhook's CSV")
                assert await bridge.stop() == 0
    for event_type in ("session.ended", "session.csv_ready"):
        bodies = of_hook(hook.arrivals, event_type.removeprefix("session."))
        assert [one["summary"] for one in bodies] == [one["summary"] for one in of_type(event_type)]
        assert {*bodies[0]["summary"]} == {*required(event_type)}


def points_of(arrivals: list[Any]) -> int:
    return sum(len(one.body["datapoints"]) for one in arrivals if one.type == "session.datapoints")


def of_hook(arrivals: list[Any], what: str) -> list[dict[str, Any]]:
    return [one.body for one in arrivals if one.type == f"session.{what}"]


def required(event_type: str) -> list[str]:
    """The keys that a summary has by the JSON Schema of the events."""
    schema = event_schema()
    (kind,) = [one for one in schema["oneOf"] if one["title"] == event_type]
    data = kind["properties"]["data"]
    assert "summary" in data["required"]
    name = data["properties"]["summary"]["$ref"].rsplit("/", 1)[-1]
    return list(schema["$defs"][name]["required"])
