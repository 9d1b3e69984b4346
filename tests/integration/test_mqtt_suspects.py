"""Brokers that answer an event by closing the connection, and those that close it for reasons of their own."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bace_bridge.errors import SinkError, SinkUnavailable
from bace_bridge.events.types import Event
from bace_bridge.retry import RETRY_SCHEDULE
from bace_bridge.sinks.mqtt.sink import MqttSink
from tests.integration.brokers import Mosquitto, eventually
from tests.integration.polling_line import Clock
from tests.integration.scripted_broker import Script, ScriptedBroker, scripted
from tests.integration.test_dispatcher import Line
from tests.integration.test_dispatcher import running as line_running
from tests.integration.test_mqtt_sink import connected, deliver_all, event, heard_on, named, new_sink, numbers

LANES = 40


def events(count: int, *, poison: int = 0, size: int = 0) -> list[Event]:
    """Numbered from 1, in data sessions that take turns; one of them is large and says `poison`."""
    data = [{"n": n, "filling": "poison" + "x" * size} if n == poison else {"n": n} for n in range(1, count + 1)]
    return [
        Event(f"evt_{one['n']}", "session.updated", f"s{n % LANES}", "g1", 1.0, 2.0, json.dumps(one).encode())
        for n, one in enumerate(data, start=1)
    ]


def lanes_of(reported: list[int]) -> dict[int, list[int]]:
    """What was delivered first, by data session."""
    lanes: dict[int, list[int]] = {}
    for number in dict.fromkeys(reported):
        lanes.setdefault(number % LANES, []).append(number)
    return lanes


def assert_in_order(reported: list[int]) -> None:
    assert all(lane == sorted(lane) for lane in lanes_of(reported).values())


def reported_by(broker: ScriptedBroker) -> list[int]:
    return [json.loads(one.payload)["n"] for one in broker.published if one.topic == "bace/g1/event"]


async def test_an_event_on_which_mosquitto_closes_the_connection_is_retried_on_the_schedule_and_others_go_on(
    new_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    mosquitto, clock = new_mosquitto("max_packet_size 20000", "max_queued_messages 0"), Clock()
    sink = new_sink(mosquitto.port, protocol="3.1.1")
    with capture_logs() as logs, heard_on(mosquitto.port) as listener:
        async with line_running(tmp_path / "b.db", clock, sink) as line:
            await line.tell(*events(299, poison=50, size=30_000))
            parked = await line.parked(1)
            assert (parked.key, parked.seq, parked.due_at) == ("s10", 50, clock.now + RETRY_SCHEDULE[0])
            assert "closes the connection on a message of 30" in parked.reason
            assert parked.reason.endswith("on bace/g1/event")
            await line.done()
            waiting = set(range(50, 300, LANES))
            await eventually(lambda: set(numbers(listener)) == set(range(1, 300)) - waiting)
            # With the connection Mosquitto loses acknowledgements, and how many is chance. Each end of it brings the
            # oldest event in flight forward, or is one of the three at the same one after which they are sent alone.
            found_after = len(named(logs, "mqtt.connected"))
            assert found_after <= 3 * 50 + 1

            line.forward(RETRY_SCHEDULE[0])
            assert (await line.parked(2)).due_at == clock.now + RETRY_SCHEDULE[1]
            await eventually(lambda: len(named(logs, "mqtt.connected")) == found_after + 1)
            await dies(line, clock)
            await eventually(lambda: set(numbers(listener)) == set(range(1, 300)) - {50})
            assert [letter[:3] for letter in await line.dead_letters()] == [(50, "s10", len(RETRY_SCHEDULE) + 1)]

    assert len(named(logs, "mqtt.events_suspected")) == 1
    assert len(named(logs, "mqtt.connected")) == found_after + len(RETRY_SCHEDULE), (
        "a later attempt costs one connection"
    )
    assert_in_order(numbers(listener))


async def dies(line: Line, clock: Clock) -> None:
    for attempt in range(2, len(RETRY_SCHEDULE) + 1):
        parked = await line.parked(attempt)
        line.forward(parked.due_at - clock.now)
    await line.all_done()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_the_guilty_event_is_found_among_those_that_wait_for_the_broker_s_word(
    tmp_path: Path, protocol: str
) -> None:
    """This broker acknowledges nothing of what came shortly before, so the oldest in flight is innocent."""
    clock, script = Clock(), Script(closes_on=b"poison", acknowledges_after=0.1)
    async with scripted(script) as broker:
        sink = new_sink(broker.port, protocol=protocol)
        async with line_running(tmp_path / "b.db", clock, sink) as line:
            await line.tell(*events(400, poison=5))
            parked = await line.parked(1)
            assert parked.seq == 5
            script.acknowledges_after = 0.001
            await line.done()
            assert len(broker.versions) == 5
            assert max(Counter(reported_by(broker)).values()) <= 4
            assert broker.most_unacknowledged > 1

            broker.unacknowledged = broker.most_unacknowledged = 0
            await line.tell(*(one for one in events(600) if one.id not in {f"evt_{n}" for n in range(401)}))
            await line.done()
            assert broker.most_unacknowledged > 20, "the window has its full size again"

            script.closes_on = b""
            line.forward(RETRY_SCHEDULE[0])
            await eventually(lambda: set(reported_by(broker)) == set(range(1, 601)))
            while await line.lanes():
                line.dispatcher.log_grew()
            assert not await line.dead_letters()
            assert len(broker.versions) == 5
    assert_in_order(reported_by(broker))


async def test_three_cuts_amid_the_same_events_count_no_attempt_and_the_window_opens_again() -> None:
    script = Script()
    with capture_logs() as logs:
        async with scripted(script) as broker, connected(broker.port) as sink:
            script.holds_acknowledgements = True
            delivering = asyncio.create_task(deliver_all(sink, [event(number) for number in range(1000)]))
            for number in range(1, 4):
                await cut_with_events_in_flight(broker, sink, number, script)
            await asyncio.wait_for(delivering, 60)  # which fails for anything but SinkUnavailable

    assert len(named(logs, "mqtt.events_suspected")) == 1
    assert list(dict.fromkeys(reported_by(broker))) == list(range(1000))
    assert broker.most_unacknowledged > 20


async def cut_with_events_in_flight(broker: ScriptedBroker, sink: MqttSink, number: int, script: Script) -> None:
    """The n-th time; after the third the broker acknowledges again."""
    await eventually(lambda: reported_by(broker).count(0) == number and len(reported_by(broker)) % sink.window == 0)
    script.holds_acknowledgements = False  # the state of the next connection is acknowledged
    broker.unacknowledged = broker.most_unacknowledged = 0
    broker.connections[-1].transport.abort()
    await eventually(lambda: sink.problem is not None)
    async with asyncio.timeout(60):
        await sink.ready()
    script.holds_acknowledgements = number < 3


async def test_a_broker_that_says_that_it_shuts_down_accuses_no_event() -> None:
    script = Script()
    with capture_logs() as logs:
        async with scripted(script) as broker, connected(broker.port) as sink:
            for number in range(6):
                script.holds_acknowledgements = True
                reported: list[SinkError | None] = []
                sink.send(event(1), reported.append)
                await eventually(lambda number=number: len(reported_by(broker)) == number + 1)  # type: ignore[misc]
                script.holds_acknowledgements = False
                broker.send(b"\xe0\x02\x8b\x00")
                await eventually(lambda reported=reported: bool(reported))  # type: ignore[misc]
                assert isinstance(reported[0], SinkUnavailable)
                async with asyncio.timeout(60):
                    await sink.ready()

    assert not named(logs, "mqtt.events_suspected")
