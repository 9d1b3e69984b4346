"""Whether the bridge's parts are connected: the real Bridge between a simulated cloud and real receivers."""

import asyncio
import base64
import json
import math
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bace_bridge.events.types import Claimed, Event
from bace_bridge.polling.rules.changes import Changes
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile
from tests.acceptance.line import receiver, until
from tests.integration.brokers import Broker, Mosquitto, free_port, listening
from tests.integration.polling_line import Clock
from tests.integration.test_dispatcher import serving
from tests.integration.whole_bridge import SOON, Times, bridge_file, whole_bridge

DAYS = 3 * 86400.0
STANDS_STILL = 200.0


@pytest.fixture
def only_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that nothing wakes goes on by itself after an hour, and not after half a minute."""
    for loops in ("delivery.dispatcher", "polling.loops"):
        monkeypatch.setattr(f"bace_bridge.{loops}.LONGEST_REST", 3600.0)


async def command(path: Path, *arguments: str) -> str:
    """A command beside the running bridge."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "bace_bridge", *arguments, "-c", str(path)],
        capture_output=True, text=True, check=False, timeout=SOON,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def test_a_loop_that_stands_still_is_seen_by_the_health_answer_and_the_watchdog(tmp_path: Path) -> None:
    port = free_port()
    async with SimulatedServer(SimulatedCloud()) as server, aiohttp.ClientSession() as http:
        extra = {"http": {"listen": f"127.0.0.1:{port}"}, "cloud": {"timeout": "10m"}}
        path = bridge_file(tmp_path, cloud_url=server.url, extra=extra)

        async def healthz() -> tuple[int, dict[str, Any]]:
            async with http.get(f"http://127.0.0.1:{port}/healthz") as response:
                return response.status, await response.json()

        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            await until(lambda: "WATCHDOG=1" in bridge.states, within=SOON, what="the watchdog is fed")
            assert (await healthz())[0] == 200
            server.faults.delay("/api/", 3600)
            await until(lambda: not server.faults.waiting, within=SOON, what="a request hangs")
            bridge.times.forward(STANDS_STILL)
            status, body = await healthz()
            assert (status, body["status"], body["checks"]["sessions"]["ok"]) == (503, "stalled", False)
            await bridge.has_ticked()
            bridge.states.clear()
            await bridge.has_ticked(3)
            assert bridge.states == []
            await server.stop()  # which ends the request
            await until(lambda: "WATCHDOG=1" in bridge.states, within=SOON, what="the watchdog is fed again")
            assert (await healthz())[0] == 200


async def test_a_webhook_is_degraded_from_its_second_failed_attempt_on(tmp_path: Path) -> None:
    port, cloud = free_port(), SimulatedCloud()
    devices = [cloud.add_device(f"BaceGo-{one}") for one in range(2)]
    async with SimulatedServer(cloud) as server, serving(Clock()) as hook, aiohttp.ClientSession() as http:
        listen = {"http": {"listen": f"127.0.0.1:{port}"}}
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}}, extra=listen)

        async def degraded() -> dict[str, str]:
            async with http.get(f"http://127.0.0.1:{port}/readyz") as response:
                found: dict[str, str] = (await response.json()).get("degraded", {})
                return found

        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            for number, device in enumerate(devices, start=1):
                session = cloud.open_session(device.id_group, label=f"refused {number}")
                hook.fails(session, 503, Retry_After="3600")
                await bridge.has_said("delivery.retry_scheduled", times=number)
                shown = await degraded()
                assert ("webhook:hook" in shown) == (number == 2), shown
            assert shown["webhook:hook"].startswith("2 failed attempts in a row: HTTP 503")


class HoldsEmptyClaims:
    """Around the log's claim: one that found nothing ends only when `let_go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds = asyncio.Event()
        self.let_go = asyncio.Event()
        claim = EventLog.claim

        async def held(log: EventLog, *given: Any, **named: Any) -> Claimed:
            found = await claim(log, *given, **named)
            if not found.begun:
                self.holds.set()
                await self.let_go.wait()
            return found

        monkeypatch.setattr(EventLog, "claim", held)


async def test_what_is_committed_while_the_log_is_read_is_delivered_without_a_further_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud, holding = SimulatedCloud(), HoldsEmptyClaims(monkeypatch)
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}})
        async with whole_bridge(path) as bridge:
            await asyncio.wait_for(holding.holds.wait(), SOON)
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(device.id_group)
            await bridge.has_said("session.started")
            await bridge.has_ticked(3)
            holding.let_go.set()
            await until(lambda: [one.session for one in hook.arrivals] == [session], within=SOON, what="the start")


async def test_what_a_command_beside_the_bridge_asks_for_is_begun_without_a_further_event(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}})
        async with whole_bridge(path):
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(device.id_group)
            await until(lambda: len(hook.arrivals) == 1, within=SOON, what="the start")
            async with SqliteFile(tmp_path / "bridge.db", beside=True) as file:
                assert await EventLog(file).replay("hook", session=session, since=None) == 1
            await until(lambda: len(hook.arrivals) == 2, within=SOON, what="the replay")


async def test_a_sink_gets_only_what_is_of_its_groups(tmp_path: Path, broker: Broker) -> None:
    cloud = SimulatedCloud()
    foreign, own = cloud.add_device("BaceGo-1"), cloud.add_device("BaceGo-2")
    async with SimulatedServer(cloud) as server, receiver() as hook, receiver() as everything:
        hooks: dict[str, dict[str, Any]] = {
            "own": {"url": hook.url, "groups": [own.id_group]},
            "everything": {"url": everything.url},
        }
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port, hooks=hooks)
        settings = json.loads(path.read_text())
        settings["mqtt"][0]["groups"] = [own.id_group]
        path.write_text(json.dumps(settings))
        with listening(broker.port, "bace/#") as listener:
            async with whole_bridge(path) as bridge:
                await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                cloud.open_session(foreign.id_group)
                await bridge.has_said("session.started")
                session = cloud.open_session(own.id_group)
                await until(lambda: len(everything.arrivals) == 2, within=SOON, what="both, where no groups are given")
                await until(lambda: bool(hook.arrivals), within=SOON, what="its own at the webhook")
                topic = f"bace/{own.id_group}/event"
                await until(lambda: bool(listener.on(topic)), within=SOON, what="its own at the broker")
            assert [one.session for one in hook.arrivals] == [session]
            assert {one.topic.split("/")[1] for one in listener.heard} == {"bridge", own.id_group}


async def test_a_replay_by_command_reaches_the_running_bridge(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}})
        async with whole_bridge(path):
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(device.id_group)
            await until(lambda: len(hook.arrivals) == 1, within=SOON, what="the start")
            await command(path, "replay", "--sink", "hook", "--session", session)
            await until(lambda: len(hook.arrivals) == 2, within=SOON, what="it comes again")
        first, again = hook.arrivals
        assert first == again


async def test_a_dead_letter_that_is_retried_by_command_reaches_the_running_bridge(
    tmp_path: Path, new_mosquitto: Callable[..., Mosquitto]
) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    topic, acl = f"bace/{device.id_group}/event", tmp_path / "acl"
    acl.write_text(f"topic deny {topic}\ntopic readwrite #\n")
    broker = new_mosquitto(f"acl_file {acl}")
    async with SimulatedServer(cloud) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            cloud.open_session(device.id_group)
            await bridge.has_said("delivery.dead_letter")
            acl.write_text("topic readwrite #\n")
            broker.reload()
            with listening(broker.port, topic) as listener:
                letters: list[Any] = []
                while not letters:
                    letters = json.loads(await command(path, "dead-letters", "list", "--json"))
                await command(path, "dead-letters", "retry")
                await until(lambda: len(listener.on(topic)) == 1, within=SOON, what="the dead letter")
                assert json.loads(listener.payloads(topic)[0])["event_type"] == "session.started"


async def test_what_was_acknowledged_while_it_ends_is_not_delivered_again(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    acknowledges = asyncio.Event()
    async with SimulatedServer(cloud) as server, serving(Clock()) as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}})
        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            hook.holds = acknowledges
            first = cloud.open_session(device.id_group)
            await until(lambda: hook.of(first) != [], within=SOON, what="the start is under way")
            bridge.stop.set()
            await bridge.has_said("bridge.stopping")
            acknowledges.set()
        async with whole_bridge(path):
            second = cloud.open_session(device.id_group)
            await until(lambda: hook.of(second) != [], within=SOON, what="the next start")
        assert len(hook.of(first)) == 1


async def test_what_is_in_the_log_is_delivered_while_it_ends(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    answers = asyncio.Event()
    async with SimulatedServer(cloud) as server, serving(Clock()) as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}})
        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            hook.holds = answers
            session = cloud.open_session(device.id_group)
            await until(lambda: hook.of(session) != [], within=SOON, what="the start is under way")
            cloud.end_session(session)
            await bridge.has_said("session.ended")
            bridge.stop.set()
            await bridge.has_said("bridge.stopping")
            answers.set()
        assert len(hook.taken) == 2, "the end too, which had to wait for the start"


@pytest.mark.usefixtures("only_woken")
async def test_the_others_get_an_event_when_a_sink_is_disabled(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as gone, receiver() as other:
        gone.refuse_with = 410
        hooks = {"gone": {"url": gone.url}, "other": {"url": other.url}}
        path = bridge_file(tmp_path, cloud_url=server.url, hooks=hooks)
        async with whole_bridge(path):
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            cloud.open_session(device.id_group)
            await until(
                lambda: len(other.arrivals) == 2,
                within=SOON,
                what="the start, and that the other is disabled",
            )
        assert {one.type for one in other.arrivals} == {"session.started", "sink.disabled"}
        (reported,) = [one for one in other.arrivals if one.type == "sink.disabled"]
        assert (reported.body["sink"], "HTTP 410" in reported.body["reason"]) == ("gone", True)


@pytest.mark.usefixtures("only_woken")
async def test_the_others_get_an_event_of_a_dead_letter_without_a_further_event(
    tmp_path: Path, new_mosquitto: Callable[..., Mosquitto]
) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    acl = tmp_path / "acl"
    acl.write_text(f"topic deny bace/{device.id_group}/event\ntopic readwrite #\n")
    broker = new_mosquitto(f"acl_file {acl}")
    broker.stop()
    async with SimulatedServer(cloud) as server, receiver() as hook:
        hooks = {"hook": {"url": hook.url}}
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port, hooks=hooks)
        async with whole_bridge(path) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            cloud.open_session(device.id_group)
            await until(lambda: len(hook.arrivals) == 1, within=SOON, what="the start")
            await bridge.has_ticked(5)  # by now the webhook has nothing to do
            broker.start()
            await bridge.has_said("delivery.dead_letter")
            await until(lambda: len(hook.arrivals) == 2, within=SOON, what="that the broker refused it")
        assert [one.type for one in hook.arrivals] == ["session.started", "sink.dead_letter"]


@pytest.mark.usefixtures("only_woken")
async def test_points_of_a_new_session_do_not_wait_for_the_longest_rest(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"hook": {"url": hook.url}})
        async with whole_bridge(path):
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(device.id_group)
            cloud.add_points(session, device.series[0].id_container_data_latest, [(cloud.session(session).start, 1.0)])
            await until(
                lambda: "session.datapoints" in {one.type for one in hook.arrivals},
                within=SOON,
                what="its points",
            )


async def test_a_sink_that_left_the_configuration_keeps_no_event_longer_than_the_retention(tmp_path: Path) -> None:
    cloud, times = SimulatedCloud(), Times()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, receiver() as hook:
        hook.refuse_with = 500
        path = bridge_file(tmp_path, cloud_url=server.url, hooks={"left": {"url": hook.url}})
        async with whole_bridge(path, times=times) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            cloud.open_session(device.id_group)
            await bridge.has_said("delivery.retry_scheduled")
        times.forward(8 * 86400.0)
        bridge_file(tmp_path, cloud_url=server.url, hooks={"stays": {"url": hook.url}})
        reading = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
        assert reading.execute("select count(*) from events").fetchone() == (1,)
        async with whole_bridge(path, times=times):
            await until(
                lambda: reading.execute("select count(*) from events").fetchone() == (0,),
                within=SOON,
                what="it is pruned",
            )
        reading.close()


async def test_the_retained_state_of_a_device_follows_where_no_event_is_sent(tmp_path: Path, broker: Broker) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    topic = f"bace/{device.id_group}/session"
    async with SimulatedServer(cloud) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        settings = json.loads(path.read_text())
        settings["mqtt"][0]["events"] = ["cloud.*"]
        path.write_text(json.dumps(settings))
        with listening(broker.port, topic) as listener:

            def shown() -> tuple[Any, Any]:
                session = json.loads(listener.newest(topic) or b"{}")
                return session.get("label"), session.get("state")

            async with whole_bridge(path):
                await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                session = cloud.open_session(device.id_group, label="first")
                await until(lambda: shown() == ("first", "active"), within=SOON, what="the session")
                cloud.change(session, label="second")
                await until(lambda: shown() == ("second", "active"), within=SOON, what="its new label")
                cloud.end_session(session)
                await until(lambda: shown() == ("second", "ended"), within=SOON, what="its end")
        with listening(broker.port, topic) as late:
            await until(lambda: bool(late.heard), within=SOON, what="the retained message")
            assert late.heard[0].retained
            assert late.newest(topic) == listener.newest(topic)


async def test_devices_are_offline_while_the_cloud_is_away(tmp_path: Path, broker: Broker) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    topic = f"bace/{device.id_group}/availability"
    async with SimulatedServer(cloud) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        with listening(broker.port, topic) as listener:
            async with whole_bridge(path):
                await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                cloud.open_session(device.id_group)
                await until(lambda: listener.payloads(topic)[-1:] == [b"online"], within=SOON, what="it is online")
                await server.stop()
                await until(lambda: listener.payloads(topic)[-1:] == [b"offline"], within=SOON, what="it is offline")
                await server.start()
                await until(lambda: listener.payloads(topic)[-1:] == [b"online"], within=SOON, what="online again")


async def test_devices_are_offline_while_the_store_fails(tmp_path: Path, broker: Broker) -> None:
    """What is known of them is not what the cloud shows."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    topic = f"bace/{device.id_group}/availability"
    async with SimulatedServer(cloud) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port)
        with listening(broker.port, topic) as listener:
            async with whole_bridge(path):
                await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
                session = cloud.open_session(device.id_group)
                await until(lambda: listener.payloads(topic)[-1:] == [b"online"], within=SOON, what="it is online")
                other = sqlite3.connect(tmp_path / "bridge.db", isolation_level=None)
                other.execute("begin immediate")
                cloud.end_session(session)
                await until(lambda: listener.payloads(topic)[-1:] == [b"offline"], within=SOON, what="it is offline")
                other.close()
                await until(lambda: listener.payloads(topic)[-1:] == [b"online"], within=SOON, what="online again")


@asynccontextmanager
async def waiting_retry(folder: Path, times: Times) -> AsyncIterator[Any]:
    """A bridge whose webhook has put off the start of a session by an hour."""
    cloud = SimulatedCloud()
    devices = [cloud.add_device(f"BaceGo-{one}") for one in range(4)]
    async with SimulatedServer(cloud) as server, serving(Clock()) as hook:
        path = bridge_file(folder, cloud_url=server.url, hooks={"hook": {"url": hook.url}})

        async def passes(number: int) -> None:
            """Another session's start goes through, so the deliveries have looked at their clock."""
            other = cloud.open_session(devices[number].id_group)
            await until(lambda: hook.of(other) != [], within=SOON, what="another session's start")

        async with whole_bridge(path, times=times) as bridge:
            await until(lambda: len(server.requests) > 4, within=SOON, what="the first polls")
            session = cloud.open_session(devices[0].id_group, label="put off")
            hook.fails(session, 503, Retry_After="3600")
            await bridge.has_said("delivery.retry_scheduled")
            hook.recovers(session)
            yield bridge, lambda: len(hook.of(session)), passes, path


@pytest.mark.parametrize("step", [DAYS, -DAYS])
async def test_a_retry_that_waits_goes_through_a_step_of_the_clock(tmp_path: Path, step: float) -> None:
    times = Times()
    async with waiting_retry(tmp_path, times) as (bridge, attempts, passes, _):
        times.set_wall(step)
        await bridge.has_said("clock.stepped")
        await passes(1)
        await passes(2)
        assert attempts() == 1, "it is not due yet"
        times.forward(2 * 3600.0)
        await passes(3)
        await until(lambda: attempts() == 2, within=SOON, what="the retry")


@pytest.mark.parametrize("step", [DAYS, -DAYS])
async def test_the_times_of_the_polls_are_shown_by_the_clock_that_was_set(
    tmp_path: Path, broker: Broker, step: float
) -> None:
    hour = 3600.0
    async with SimulatedServer(SimulatedCloud()) as server:
        path = bridge_file(tmp_path, cloud_url=server.url, mqtt_port=broker.port, interval="1h")
        with listening(broker.port, "bace/bridge/health") as listener:
            async with whole_bridge(path) as bridge:

                def shown(name: str) -> float:
                    """Seconds from now."""
                    health = json.loads(listener.newest("bace/bridge/health") or b"{}")
                    text = health.get(name)
                    return math.inf if text is None else datetime.fromisoformat(text).timestamp() - bridge.times.wall()

                def right() -> bool:
                    return abs(shown("last_poll_at")) < hour / 2 and abs(shown("next_poll_at") - hour) < hour / 2

                await until(right, within=SOON, what="the first poll is shown")
                bridge.times.set_wall(step)
                await bridge.has_said("clock.stepped")
                await until(right, within=SOON, what="the same poll is shown by the new clock")


async def test_a_retry_that_lies_further_ahead_than_any_schedule_is_made_at_the_start(tmp_path: Path) -> None:
    times = Times()
    async with waiting_retry(tmp_path, times) as (bridge, attempts, _, path):
        await bridge.ends()
        times.set_wall(-DAYS)
        async with whole_bridge(path, times=times):
            await until(lambda: attempts() == 2, within=SOON, what="the retry")


async def test_at_the_cap_the_cloud_is_not_asked_until_deliveries_have_made_room(tmp_path: Path) -> None:
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server, serving(Clock()) as hook:
        lets_through = hook.holds = asyncio.Event()
        path = bridge_file(
            tmp_path,
            cloud_url=server.url,
            hooks={"hook": {"url": hook.url}},
            extra={"store": {"max_size": "16MiB"}, "watch": {"start_from": "all"}},
        )
        async with SqliteFile(tmp_path / "bridge.db") as file:
            await EventLog(file).open_sink("hook", target="its url, as a fingerprint")
            filling = base64.b64encode(random.Random(1).randbytes(170_000))  # the store can make nothing less of it
            waiting = [
                Event(f"evt_{one}", "session.updated", "s", "g", 1.0, 1.0, b'"%s"' % filling) for one in range(100)
            ]
            await Journal(file).commit(Changes(events=tuple(waiting)))
        session = cloud.open_session(device.id_group)
        async with whole_bridge(path) as bridge:
            await until(lambda: hook.of("s") != [], within=SOON, what="the first delivery is under way")
            await bridge.has_said("store.at_its_cap")
            await bridge.has_ticked(5)
            assert [one.path for one in server.requests] == []
            lets_through.set()
            await until(lambda: hook.of(session) != [], within=SOON, what="what the cloud shows is reported")
        assert len(hook.of("s")) == 100
