"""What the real Bridge does and answers when it is asked over MQTT."""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import receiver, until
from tests.integration.brokers import Broker, Listener, Mosquitto, listening
from tests.integration.whole_bridge import SOON, bridge_file, whole_bridge


async def ask(listener: Listener, name: str, **payload: Any) -> Any:
    """The answer to a request. Before the bridge is online it has not subscribed to them."""
    online = "bace/bridge/state"
    await until(lambda: listener.payloads(online)[-1:] == [b"online"], within=SOON, what="the bridge is online")
    topic = f"bace/bridge/response/{name}"
    before = len(listener.on(topic))
    await asyncio.to_thread(listener.publish, f"bace/bridge/request/{name}", json.dumps(payload).encode())
    await until(lambda: len(listener.on(topic)) > before, within=SOON, what=f"the answer to {name}")
    return json.loads(listener.payloads(topic)[before])


@pytest.fixture
def eight_hours_west(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is eight hours behind UTC."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "PST8")
        time.tzset()
        yield
    time.tzset()


def waiting_in(store: Path) -> int:
    """Lanes with something to deliver; an event that is not recorded as delivered would come again, not as a replay."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        (count,) = connection.execute("select count(*) from lanes").fetchone()
    return int(count)


async def test_a_replay_comes_at_the_broker_where_it_was_asked_for(
    tmp_path: Path, new_mosquitto: Callable[..., Mosquitto]
) -> None:
    cloud, home, other = SimulatedCloud(), new_mosquitto(), new_mosquitto()
    device = cloud.add_device("BaceGo-1")
    topic = f"bace/{device.id_group}/event"
    async with SimulatedServer(cloud) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=home.port)
        settings = json.loads(path.read_text())
        settings["mqtt"].append({"name": "other", "url": f"mqtt://127.0.0.1:{other.port}"})
        path.write_text(json.dumps(settings))
        with listening(home.port, "bace/#") as at_home, listening(other.port, "bace/#") as at_other:
            async with whole_bridge(path):
                await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                session = cloud.open_session(device.id_group)
                for listener in (at_home, at_other):
                    await until(lambda on=listener: len(on.on(topic)) == 1, within=SOON, what="the start")  # type: ignore[misc]  # binds now
                await until(lambda: waiting_in(tmp_path / "bridge.db") == 0, within=SOON, what="recorded deliveries")
                answer = await ask(at_other, "replay", session=session)
                assert answer == {"status": "ok", "data": {"events": 1}}
                await until(lambda: len(at_other.on(topic)) == 2, within=SOON, what="the replay")
            assert len(at_home.on(topic)) == 1
            first, again = (json.loads(one) for one in at_other.payloads(topic))
            assert (first["id"], again["replay"]) == (again["id"], True)


@pytest.mark.usefixtures("eight_hours_west")
async def test_what_a_replay_takes(tmp_path: Path, broker: Broker) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port, hooks={"hook": {"url": hook.url}})
        with listening(broker.port, "bace/#") as listener:
            async with whole_bridge(path):
                await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                session = cloud.open_session(device.id_group)
                await until(lambda: bool(hook.arrivals), within=SOON, what="the start")
                hour = timedelta(hours=1)
                now = datetime.now(UTC)
                for since, events in [
                    ((now - hour).isoformat(), 1),
                    ((now + hour).isoformat(), 0),
                    ((now - hour).replace(tzinfo=None).isoformat(), 1),  # without a zone it is UTC, wherever we are
                    ((now + hour).replace(tzinfo=None).isoformat(), 0),
                ]:
                    answer = await ask(listener, "replay", since=since)
                    assert answer == {"status": "ok", "data": {"events": events}}, since
                both = {"session": session, "since": now.isoformat()}
                wrong: list[dict[str, Any]] = [{}, both, {"since": "soon"}]
                for payload in wrong:
                    answer = await ask(listener, "replay", **payload)
                    assert answer["status"] == "error"
                    assert "2026-01-31T00:00:00Z" in answer["error"], "it says how to write it"


async def test_a_poll_is_made_at_once(tmp_path: Path, broker: Broker) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port, interval="1h")
        with listening(broker.port, "bace/#") as listener:
            async with whole_bridge(path) as bridge:
                await until(
                    lambda: b'"last_poll_at":"' in (listener.newest("bace/bridge/health") or b""),
                    within=SOON,
                    what="the first poll",
                )
                cloud.open_session(device.id_group)
                assert await ask(listener, "poll", transaction=7) == {"status": "ok", "data": {}, "transaction": 7}
                await bridge.has_said("session.started")


async def test_what_runs_is_reported_and_a_wrong_log_level_is_refused(tmp_path: Path, broker: Broker) -> None:
    async with SimulatedServer(SimulatedCloud()) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        with listening(broker.port, "bace/#") as listener:
            async with whole_bridge(path):
                answer = await ask(listener, "info")
                assert answer["data"]["version"] == "test"
                for level in ("loud", 10, None):
                    answer = await ask(listener, "log_level", level=level)
                    assert (answer["status"], '"debug"' in answer["error"]) == ("error", True)
