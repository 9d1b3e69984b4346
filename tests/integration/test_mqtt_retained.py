"""The retained picture at brokers: what is refused, what closes the connection, what is not known any more."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from bace_bridge.events.types import Attempt, DeviceState, Event, LatestPoint, LoggedEvent
from bace_bridge.sinks.mqtt.refusals import FIRST_AFTER_CLOSING
from bace_bridge.sinks.mqtt.sink import MqttSink
from tests.integration.brokers import Listener, eventually, listening
from tests.integration.scripted_broker import Script, ScriptedBroker, scripted
from tests.integration.test_mqtt_sink import (
    LISTED,
    Home,
    MemoryLedger,
    NewMosquitto,
    bed,
    connected,
    deliver,
    event,
    heard_on,
    named,
)

MAXIMUM_QOS_0 = b"\x24\x00"
"""As a property of CONNACK."""


class Later:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def device(name: str, *sources: str) -> DeviceState:
    points = tuple(LatestPoint(source, 6000, b'{"avg":1}') for source in sources)
    return DeviceState(name, available=True, session=b'{"id":"s"}', latest=points)


# --- hostile strings

ODD = [
    *map(chr, range(0x20)), *"+#/%$. ", "\x7f", "\x80", "\x9f", "\ufdd0", "\ufdef", "\ufffe", "\uffff", "\U0010ffff",
    "\u2028", "\u200b", "\u202e", "\ufeff", "\ue000", "\ud800", "\U0001f600", "e\u0301", "bridge", "%2F",
]  # fmt: skip


def hostile() -> Iterator[str]:
    yield from ODD
    yield from (
        "",
        "bridge",
        ".",
        "..",
        "$SYS",
        "$share/x",
        "dev\uffff",
        "/" * 256,
        "+/#",
        "x" * 256,
        "\U0010fffe" * 256,
    )
    draw = random.Random(10)  # the same strings each time
    for _ in range(150):
        yield "".join(draw.choices([*ODD, "a", "b"], k=draw.randint(1, 8)))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_no_id_that_a_cloud_can_hold_makes_mosquitto_close_the_connection(
    new_mosquitto: NewMosquitto, protocol: str
) -> None:
    names = list(dict.fromkeys(hostile()))
    port = new_mosquitto("max_queued_messages 0").port
    state = Home(*(device(name, *names[:9], name) for name in names))
    with capture_logs() as logs, heard_on(port) as listener:
        async with connected(port, state, protocol=protocol) as sink:
            for number, name in enumerate(names):
                of_name = Event(f"evt_{number}", "session.updated", name, name, 1.0, 2.0, b"{}")
                assert await deliver(sink, Attempt(LoggedEvent(number, of_name), 1)) is None
            await eventually(lambda: sum(one.topic.endswith("/event") for one in listener.heard) == len(names))
            assert sink.state_problem is None
    assert len(named(logs, "mqtt.connected")) == 1
    for end in ("availability", "session", "event"):
        assert len({one.topic for one in listener.heard if one.topic.endswith(f"/{end}")}) == len(names), end


# --- brokers that close the connection


def topics_on(broker: ScriptedBroker, text: str) -> set[str]:
    return {one.topic for one in broker.published if text in one.topic}


async def arrives(broker: ScriptedBroker, sink: MqttSink, number: int) -> None:
    await eventually(lambda: sink.problem is None)
    while await deliver(sink, event(number)) is not None:
        await eventually(lambda: sink.problem is None)
    assert topics_on(broker, "/event")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_closes_the_connection_on_a_kind_of_topic_gets_everything_else(protocol: str) -> None:
    clock, script = Later(), Script(closes_on_topic="/latest/")
    state = Home(*(device(f"g{n}", "a", "b", "c") for n in range(40)))
    with capture_logs() as logs:
        async with scripted(script) as broker, connected(broker.port, state, clock=clock, protocol=protocol) as sink:
            await arrives(broker, sink, 1)
            await eventually(lambda: len(topics_on(broker, "/session")) == 40)
            await eventually(lambda: "all of latest" in str(sink.state_problem))
            await eventually(lambda: bool(topics_on(broker, "bridge/info")))
            connections = len(broker.versions)
            await arrives(broker, sink, 2)
            assert connections == len(broker.versions) <= 8
            assert len(named(logs, "mqtt.state_refused")) == 3
            assert all("/latest/" in one["topic"] for one in named(logs, "mqtt.state_refused"))

            script.closes_on_topic = ""
            clock.seconds += 3 * FIRST_AFTER_CLOSING
            sink.refresh()
            await eventually(lambda: len(topics_on(broker, "/latest/")) == 120)
            await eventually(lambda: "refused" not in str(sink.state_problem))
            assert connections == len(broker.versions)


async def test_one_poison_topic_is_set_aside_alone() -> None:
    clock, script = Later(), Script(closes_on_topic="/latest/poison/")
    state = Home(*(device(f"g{n}", "a", "poison" if n == 20 else "b") for n in range(40)))
    async with scripted(script) as broker, connected(broker.port, state, clock=clock) as sink:
        await arrives(broker, sink, 1)
        await eventually(lambda: len(topics_on(broker, "/latest/")) == 79)
        await eventually(lambda: "bace/g20/latest/poison/6000" in str(sink.state_problem))
        assert str(sink.state_problem).startswith("1 retained topics")
        await eventually(lambda: sink.problem is None)
        assert len(broker.versions) <= 5


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_topics_that_the_broker_never_acknowledges_are_set_aside(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr("bace_bridge.sinks.mqtt.connection._ACKNOWLEDGED_WITHIN", 2.0)
    state = Home(*(device(f"g{n}", "a", "poison" if n < 2 else "b") for n in range(5)))
    script = Script(never_acknowledges="/latest/poison/")
    async with scripted(script) as broker, connected(broker.port, state, protocol=protocol) as sink:
        await eventually(lambda: str(sink.state_problem).startswith("2 retained topics"))
        assert "never acknowledges a message of" in str(sink.state_problem)
        await arrives(broker, sink, 1)
        assert len(topics_on(broker, "/latest/")) == 10


async def test_names_of_other_bridges_that_anybody_may_write_are_bounded(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with capture_logs() as logs, listening(port, "nothing") as other:
        for number in range(200):
            other.publish(f"bace/bridge/guest/{number:03}" + 300 * "x", b"{}", retain=True)
        other.publish("bace/bridge/info", json.dumps({"installation": "\x1b" + 300_000 * "y"}).encode(), retain=True)
        async with connected(port) as sink:
            await eventually(lambda: bool(named(logs, "mqtt.base_topic_shared")))
            assert "and 198 more" in str(sink.state_problem)
            assert len(str(sink.state_problem)) < 1000
    assert max(len(str(one)) for one in logs) < 1000


async def test_at_qos_0_too_a_poison_topic_is_set_aside() -> None:
    state = Home(*(device(f"g{n}", "poison" if n == 1 else "b") for n in range(3)))
    script = Script(closes_on_topic="/latest/poison/", connack_properties=MAXIMUM_QOS_0)
    async with scripted(script) as broker, connected(broker.port, state) as sink:
        await eventually(lambda: "bace/g1/latest/poison/6000" in str(sink.state_problem))
        assert str(sink.state_problem).startswith("1 retained topics")
        await sink.ready()
        assert await deliver(sink, event(1)) is None
        await eventually(lambda: bool(topics_on(broker, "/event")))
        await eventually(lambda: len({*topics_on(broker, "/latest/")}) == 2)


async def test_a_poison_topic_that_comes_later_is_found_and_events_go_on() -> None:
    script, state = Script(closes_on_topic="/latest/poison/"), Home(*(device(f"g{n}", "a") for n in range(5)))
    async with scripted(script) as broker, connected(broker.port, state) as sink:
        state.known["g2"] = device("g2", "a", "poison")
        sink.refresh(["g2"])
        await eventually(lambda: "bace/g2/latest/poison/6000" in str(sink.state_problem))
        await arrives(broker, sink, 1)


async def test_a_broker_that_ends_the_connection_on_the_reading_is_read_no_more() -> None:
    script = Script(closes_on_subscribing="bace/bridge/guest/+")
    with capture_logs() as logs:
        async with scripted(script) as broker, connected(broker.port, Home(bed())) as sink:
            await eventually(lambda: bool(topics_on(broker, "bridge/info")))
            await eventually(lambda: "ends the connection when the bridge subscribes" in str(sink.state_problem))
            await arrives(broker, sink, 1)
            assert len(broker.versions) == 3
    assert len(named(logs, "mqtt.tree_not_read")) == 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_shows_nothing_retained_to_wildcards_is_not_taken_for_one_that_loses_it(
    protocol: str,
) -> None:
    state = Home(*(device(f"g{n}", "a") for n in range(3)))
    with capture_logs() as logs:
        async with scripted(Script(keeps=True)) as broker:
            async with connected(broker.port, state, protocol=protocol) as sink:
                await eventually(lambda: bool(topics_on(broker, "/session")))
                while not named(logs, "mqtt.tree_not_read") and not named(logs, "mqtt.state_not_kept"):
                    state.known["g2"] = msgspec.structs.replace(
                        state.known["g2"], session=b"%d" % len(broker.published)
                    )
                    sink.refresh(["g2"])  # so that messages come while it is read
                    await asyncio.sleep(0.05)
                assert "sends no retained messages for wildcards" in str(sink.state_problem)
            assert broker.kept["bace/bridge/state"] == b"offline"
    assert not named(logs, "mqtt.state_not_kept")


async def test_the_reading_is_unsubscribed_from_and_what_names_this_bridge_is_watched() -> None:
    async with scripted(Script()) as broker, connected(broker.port, Home(bed())):
        await eventually(lambda: len(broker.unsubscribed) == 2)
    left = {one for some in broker.unsubscribed for one in some}
    assert {one for some in broker.subscribed for one in some} - left == {
        "bace/bridge/request/+",
        "bace/bridge/state",
        "bace/bridge/info",
        "bace/bridge/guest/here",
    }


# --- goodbye


@pytest.mark.parametrize(("protocol", "goodbyes"), [("5", [b"\x04"]), ("3.1.1", [])])
async def test_where_offline_is_not_acknowledged_the_will_has_to_say_it(protocol: str, goodbyes: list[bytes]) -> None:
    script = Script()
    async with scripted(script) as broker:
        async with connected(broker.port, Home(bed()), protocol=protocol):
            await eventually(lambda: bool(topics_on(broker, "bridge/info")))
            script.holds_acknowledgements = True
        await eventually(broker.connections[-1].is_closing)  # with all that came before
        assert [one[:1] for one in broker.goodbyes] == goodbyes


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_offline_is_said_of_the_bridge_first(protocol: str) -> None:
    async with scripted(Script()) as broker:
        async with connected(broker.port, Home(device("g1"), device("g2")), protocol=protocol):
            await eventually(lambda: bool(topics_on(broker, "bridge/info")))
        said = [one.topic for one in broker.published if one.payload == b"offline"]
        assert said[-3:] == [  # 3.1.1 has tried it as the first message
            "bace/bridge/state",
            "bace/g1/availability",
            "bace/g2/availability",
        ]
        await eventually(lambda: bool(broker.goodbyes))
        assert broker.goodbyes[0] in {b"", b"\x00", b"\x00\x00"}


# --- the ledger


async def until_shown(listener: Listener, payload: bytes) -> None:
    await eventually(lambda: listener.newest("bace/g1/latest/src/6000") == payload)


async def test_the_ledger_is_written_for_new_topics_and_not_for_new_values(new_mosquitto: NewMosquitto) -> None:
    port, state, ledger = new_mosquitto().port, Home(bed()), MemoryLedger()
    with heard_on(port) as listener:
        async with connected(port, state, ledger=ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            before = ledger.writes
            for avg in range(10, 20):
                state.known["g1"] = bed(avg=avg)
                sink.refresh(["g1"])
                await until_shown(listener, b'{"avg":%d}' % avg)
            assert ledger.writes == before
        async with connected(port, state, ledger=ledger):
            await eventually(lambda: len(listener.on("bace/bridge/info")) == 2)
    assert ledger.writes == before
    assert ledger.held == {one.topic for one in listener.heard}


async def test_a_ledger_that_cannot_be_written_holds_up_nothing_and_is_written_later(
    new_mosquitto: NewMosquitto,
) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(bed())
    ledger.broken = True
    with capture_logs() as logs, heard_on(port) as listener:
        async with connected(port, state, ledger=ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/g1/session")))
            ledger.broken = False
            sink.refresh()
            await eventually(lambda: "bace/g1/session" in ledger.held)
    assert named(logs, "mqtt.ledger_not_written")


async def test_while_the_state_cannot_be_read_nothing_is_cleared(new_mosquitto: NewMosquitto) -> None:
    port, state = new_mosquitto().port, Home(bed())
    ledger = MemoryLedger("bace/bridge/state", "bace/g1/session", "bace/g2/session")
    with heard_on(port) as listener:
        listener.publish("bace/g1/session", b"{}", retain=True)
        listener.publish("bace/g2/session", b"{}", retain=True)
        state.broken = True
        async with connected(port, state, ledger=ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            assert listener.payloads("bace/g1/session") == listener.payloads("bace/g2/session") == [b"{}"]
            state.broken = False
            sink.refresh(None)
            await eventually(lambda: listener.newest("bace/g2/session") == b"")
            assert listener.newest("bace/g1/session") == b'{"id":"s1"}'
            await eventually(lambda: "bace/g2/session" not in ledger.held)


async def test_what_no_ledger_knows_stays_until_the_cloud_was_polled(new_mosquitto: NewMosquitto) -> None:
    port, state = new_mosquitto().port, Home()
    state.current = False
    with heard_on(port) as listener:
        listener.publish("bace/g1/session", b"{}", retain=True)
        listener.publish("bace/g2/session", b"{}", retain=True)
        async with connected(port, state) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            state.known, state.current = {"g1": bed()}, True
            sink.refresh(None)
            await eventually(lambda: listener.newest("bace/g2/session") == b"")
    assert listener.payloads("bace/g1/session") == [b"{}", b'{"id":"s1"}'], "it was never cleared"


async def test_a_clearing_that_is_refused_is_tried_again(new_mosquitto: NewMosquitto, tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite bace/#\ntopic deny bace/g2/session\n")
    clock, mosquitto = Later(), new_mosquitto(f"acl_file {acl}")
    ledger = MemoryLedger("bace/bridge/state", "bace/g2/session")
    async with connected(mosquitto.port, Home(bed()), ledger=ledger, clock=clock) as sink:
        await eventually(lambda: "bace/g2/session" in str(sink.state_problem))
        assert "bace/g2/session" in ledger.held
        acl.write_text("topic readwrite bace/#\n")
        mosquitto.reload()
        clock.seconds += 60
        sink.refresh()
        await eventually(lambda: "bace/g2/session" not in ledger.held)
        await eventually(lambda: sink.state_problem is None)


@pytest.mark.parametrize(
    ("forbidden", "payload"),
    [
        ("bace/g1/session", b'{"id":"s1"}'),
        ("bace/bridge/state", b"online"),
        ("bace/bridge/health", b'{"healthy":true}'),
        ("bace/bridge/info", b'{"version":"1","installation":"here"}'),
        ("bace/bridge/devices", LISTED),
    ],
)
async def test_what_a_3_1_1_broker_acknowledges_and_forbids_is_published_when_it_is_allowed(
    new_mosquitto: NewMosquitto, tmp_path: Path, forbidden: str, payload: bytes
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite bace/#\ntopic deny {forbidden}\nuser reader\ntopic readwrite #\n")
    mosquitto = new_mosquitto(f"acl_file {acl}")
    with capture_logs() as logs, listening(mosquitto.port, username="reader") as listener:
        listener.publish(forbidden, b"stale", retain=True)
        async with connected(mosquitto.port, Home(bed()), protocol="3.1.1") as sink:
            await eventually(lambda: forbidden in str(sink.state_problem))
            acl.write_text("topic readwrite bace/#\nuser reader\ntopic readwrite #\n")
            mosquitto.reload()
            await eventually(lambda: listener.newest(forbidden) == payload)
            await eventually(lambda: sink.state_problem is None)
    assert len(named(logs, "mqtt.state_not_kept")) == 1


@pytest.mark.parametrize("readable", ["bace/bridge/#", "bace/g1/#"])
async def test_what_may_not_be_read_is_not_taken_for_lost(
    new_mosquitto: NewMosquitto, tmp_path: Path, readable: str
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic write bace/#\ntopic read {readable}\nuser reader\ntopic readwrite #\n")
    port = new_mosquitto(f"acl_file {acl}").port
    with capture_logs() as logs, listening(port, username="reader") as listener:
        async with connected(port, Home(bed()), protocol="3.1.1"):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))  # it comes when the broker was read
    assert not named(logs, "mqtt.state_not_kept")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_what_may_be_read_later_is_read_then(new_mosquitto: NewMosquitto, tmp_path: Path, protocol: str) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic write bace/#\nuser reader\ntopic readwrite #\n")
    mosquitto = new_mosquitto(f"acl_file {acl}")
    with capture_logs() as logs, listening(mosquitto.port, username="reader") as listener:
        listener.publish("bace/ghost/session", b"{}", retain=True)
        async with connected(mosquitto.port, Home(bed()), protocol=protocol) as sink:
            await eventually(lambda: "does not allow reading" in str(sink.state_problem))
            acl.write_text("topic readwrite bace/#\nuser reader\ntopic readwrite #\n")
            mosquitto.reload()
            await eventually(lambda: listener.newest("bace/ghost/session") == b"")
            await eventually(lambda: sink.state_problem is None)
    assert len(named(logs, "mqtt.connected")) == len(named(logs, "mqtt.tree_not_read")) == 1


async def test_what_changes_while_the_broker_is_read_is_not_taken_for_lost(new_mosquitto: NewMosquitto) -> None:
    port, state = new_mosquitto().port, Home(bed())
    with capture_logs() as logs, heard_on(port) as listener:
        async with connected(port, state) as sink:
            avg = 0
            while not listener.on("bace/bridge/info"):
                avg += 1
                state.known["g1"] = bed(avg=avg)
                sink.refresh(["g1"])
                await asyncio.sleep(0.01)
            assert sink.state_problem is None
    assert not named(logs, "mqtt.state_not_kept")


# --- the list of devices


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_the_list_of_a_fleet_is_cut_where_the_broker_says_what_it_takes_and_else_set_aside(
    new_mosquitto: NewMosquitto, protocol: str
) -> None:
    port = new_mosquitto("max_packet_size 50000", "max_queued_messages 0").port
    state = Home(*(device(f"g{n:04}" + 31 * "x") for n in range(1000)))
    with listening(port, "bace/bridge/#") as listener:
        async with connected(port, state, protocol=protocol) as sink:
            said = "leaves out" if protocol == "5" else "bace/bridge/devices"
            await eventually(lambda: said in str(sink.state_problem) and bool(listener.on("bace/bridge/info")))
            await sink.ready()
            assert await deliver(sink, event(1)) is None
        lists = [json.loads(one) for one in listener.payloads("bace/bridge/devices")]
    assert [0 < len(one) < 1000 for one in lists] == ([True] if protocol == "5" else [])
