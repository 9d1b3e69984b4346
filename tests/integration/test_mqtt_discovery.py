"""Discovery for Home Assistant at real brokers: its order, what waits for it, what goes, and when it comes again."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bace_bridge.config.datatypes import KNOWN_DATATYPES, DatatypeConfig
from bace_bridge.errors import SinkError, SinkUnavailable
from bace_bridge.events.types import Announced, Attempt, DeviceState, Event, LatestPoint, LoggedEvent, Series
from bace_bridge.sinks.mqtt import mirror
from bace_bridge.sinks.mqtt.homeassistant.announcing import SETTLES_IN
from bace_bridge.sinks.mqtt.sink import MqttSink
from tests.integration.brokers import Listener, eventually
from tests.integration.scripted_broker import Script, scripted
from tests.integration.test_mqtt_retained import Later
from tests.integration.test_mqtt_sink import (
    Home,
    MemoryLedger,
    NewMosquitto,
    deliver,
    event,
    heard_on,
    named,
    nap,
    new_sink,
    running,
)

BRIDGE = "homeassistant/device/bace_bridge_here/config"
G1 = "homeassistant/device/bace_g1/config"
G2 = "homeassistant/device/bace_g2/config"
BIRTH = b"\x30\x1d\x00\x14homeassistant/status\x00online"
"""As a packet of MQTT 5."""


class Gate:
    """The second after a discovery lasts until a test says so; other pauses are short."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open
        self._waiting: list[asyncio.Event] = []

    async def __call__(self, seconds: float) -> None:
        if seconds != SETTLES_IN or self.is_open:
            await nap(seconds)
            return
        passed = asyncio.Event()
        self._waiting.append(passed)
        await passed.wait()

    async def reached(self) -> None:
        await eventually(lambda: bool(self._waiting))

    async def once(self) -> None:
        """Lets the one that is waited for pass."""
        await self.reached()
        self._waiting.pop(0).set()

    def open(self) -> None:
        self.is_open = True
        while self._waiting:
            self._waiting.pop().set()

    def close(self) -> None:
        self.is_open = False


def device(name: str, *sources: str, label: str | None = None) -> DeviceState:
    points = tuple(LatestPoint(source, 6000, b'{"avg":1}') for source in sources)
    series = tuple(Series(source, 6000) for source in sources)
    return DeviceState(name, available=True, session=b'{"id":"s"}', latest=points, label=label, series=series)


@asynccontextmanager
async def announcing(
    port: int, state: Home, ledger: MemoryLedger | None = None, *, ready: bool = True, **settings: Any
) -> AsyncIterator[MqttSink]:
    settings = {"home_assistant": {}, "datatypes": lambda: KNOWN_DATATYPES} | settings
    made: Any = new_sink
    async with running(made(port, state, ledger=ledger or MemoryLedger(), **settings), ready=ready) as sink:
        yield sink


def of_device(number: int, name: str, kind: str = "session.updated") -> Attempt:
    return Attempt(LoggedEvent(number, Event(f"evt_{number}", kind, f"s-{name}", name, 1.0, 2.0, b"{}")), 1)


def components(payload: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(payload)["cmps"]
    return found


def names(topics: list[str]) -> list[str]:
    """What kind of message each is."""
    ends = {"config": "discovery", "state": "availability", "availability": "availability"}
    return [ends.get(topic.rsplit("/", 1)[-1], "state") for topic in topics]


# --- order


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_devices_are_announced_a_second_before_availability_and_state(protocol: str) -> None:
    gate, state = Gate(), Home(device("g1", "a"), device("g2", "a"))
    async with (
        scripted(Script()) as broker,
        announcing(broker.port, state, sleep=gate, protocol=protocol, ready=False) as sink,
    ):
        await gate.reached()
        before = [one.topic for one in broker.published if one.retained]
        if protocol == "3.1.1":  # the probe
            assert before.pop(0) == "bace/bridge/state"
        assert before == [BRIDGE, G1, G2], "the bridge first, for the others name it"
        gate.open()
        await sink.ready()
        after = [one.topic for one in broker.published if one.retained]
        assert "discovery" not in names(after[len(before) + (protocol == "3.1.1") :])
        for name in ("g1", "g2"):
            assert after.index(f"bace/{name}/availability") < after.index(f"bace/{name}/session")


def fleet(most: int, *, active: int) -> Home:
    """Devices of which two make a group; the last ones have a data session."""
    made = [device(f"g{number}", *(f"s{one}" for one in range(250))) for number in range(most)]
    for number in range(most - active, most):
        made[number] = msgspec.structs.replace(made[number], active_session_id="s")
    return Home(*made)


@pytest.mark.parametrize("mode", ["device", "component"])
async def test_many_devices_are_announced_in_groups_those_with_a_session_first(mode: str) -> None:
    gate, state = Gate(), fleet(6, active=1)

    def described(first: int = 0) -> list[str]:
        """Devices in the order in which they were announced (in capitals) and in which their state came."""
        found: dict[str, None] = {}
        for one in broker.published[first:]:
            if one.retained and (
                match := re.fullmatch(r"bace/(g\d)/.*|homeassistant/.*/bace_(g\d)/.*config", one.topic)
            ):
                found[match[1] or match[2].upper()] = None
        return list(found)

    async with (
        scripted(Script()) as broker,
        announcing(broker.port, state, sleep=gate, home_assistant={"mode": mode}, ready=False) as sink,
    ):
        await gate.reached()
        assert described() == ["G5", "G0"]
        await gate.once()
        await gate.reached()
        assert described() == ["G5", "G0", "g5", "g0", "G1", "G2"]
        await sink.ready()
        sent = [asyncio.create_task(deliver(sink, of_device(number, f"g{number}"))) for number in (5, 3)]
        assert (await sent[0], sent[1].done()) == (None, False), "events wait for their own device only"
        gate.open()
        assert await sent[1] is None
        last = {"bace/g4/latest/s249/6000", "bace/bridge/devices"}
        await eventually(lambda: last <= {one.topic for one in broker.published})
        gate.close()
        first = len(broker.published)
        state.known["g4"] = msgspec.structs.replace(state.known["g4"], active_session_id="s")
        broker.send(BIRTH)
        await gate.reached()
        assert sorted(described(first)) == ["G4", "G5"]
        assert await deliver(sink, of_device(1, "g1")) is None, "it is known already"
        gate.open()
        await eventually(lambda: {f"g{number}" for number in range(6)} < set(described(first)))


async def test_devices_with_news_are_announced_first_and_their_events_wait_no_longer_than_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, gate = fleet(8, active=1), Gate()
    async with scripted(Script()) as broker, announcing(broker.port, state, sleep=gate, ready=False) as sink:
        await gate.once()
        await gate.reached()
        await sink.ready()
        first = asyncio.create_task(deliver(sink, of_device(0, "g6")))
        state.known["g5"] = msgspec.structs.replace(state.known["g5"], session=b"news")
        sink.refresh(["g5"])
        await gate.once()
        await gate.reached()
        announced = {one.topic for one in broker.published if one.topic.startswith("homeassistant/")}
        assert {G1.replace("g1", "g5"), G1.replace("g1", "g6")} <= announced, "before g3 and g4"
        assert len(announced) == 1 + 3 * 2
        monkeypatch.setattr(mirror, "LONGEST_HELD", 0.05)
        for numbers in (range(1, 5), range(5, 9)):
            sent = [deliver(sink, of_device(number, "g4")) for number in numbers]
            assert await asyncio.gather(*sent) == [None] * 4
        heard = [json.loads(one.payload)["id"] for one in broker.published if one.topic == "bace/g4/event"]
        assert heard == [f"evt_{number}" for number in range(1, 9)]
        monkeypatch.undo()
        last = asyncio.create_task(deliver(sink, of_device(9, "g3")))
        await asyncio.sleep(0)
        broker.connections[0].close()
        assert isinstance(await last, SinkUnavailable)
        gate.open()
        assert await first is None or isinstance(await first, SinkUnavailable)


async def test_who_leaves_between_two_groups_of_a_birth_says_offline_of_all_devices() -> None:
    gate = Gate(is_open=True)
    async with scripted(Script(keeps=True)) as broker:
        async with announcing(broker.port, fleet(6, active=1), sleep=gate):
            await eventually(lambda: "bace/bridge/info" in broker.kept)
            gate.close()
            broker.send(BIRTH)
            await gate.reached()
        assert {broker.kept[f"bace/g{number}/availability"] for number in range(6)} == {b"offline"}


async def test_who_leaves_between_two_groups_says_offline_of_what_a_killed_process_has_left_online() -> None:
    gate, left = Gate(), [f"bace/g{number}/availability" for number in range(5)]
    async with scripted(Script(keeps=True)) as broker:
        broker.kept = dict.fromkeys(left, b"online")
        ledger = MemoryLedger(*left)
        async with announcing(broker.port, fleet(6, active=1), ledger, sleep=gate, ready=False):
            await gate.reached()
        assert [broker.kept[topic] for topic in left] == [b"offline"] * 5
        assert "bace/g5/availability" not in broker.kept, "it was never there"


async def test_home_assistant_that_starts_gets_everything_again_in_order(new_mosquitto: NewMosquitto) -> None:
    port, gate = new_mosquitto().port, Gate(is_open=True)
    with heard_on(port) as listener:
        async with announcing(port, Home(device("g1", "a")), sleep=gate):
            # The last ones of the first round: they wait for what the broker keeps.
            await eventually(lambda: bool(listener.on("bace/bridge/info") and listener.on("bace/bridge/devices")))
            gate.close()
            first = len(listener.heard)
            for payload in (b"offline", b"", b"ONLINE", b'{"state":"online"}', b"\xff"):
                listener.publish("homeassistant/status", payload)
            listener.publish("homeassistant/status", b"online")
            listener.publish("homeassistant/status", b"online")
            await gate.reached()
            await eventually(lambda: len(listener.on(G1)) == 2)
            await asyncio.sleep(0.1)
            again = [one.topic for one in listener.heard[first:] if one.topic != "homeassistant/status"]
            assert again == [BRIDGE, G1]
            gate.open()
            await eventually(lambda: len(listener.on("bace/g1/latest/a/6000")) == 2)
            for topic in ("bace/bridge/state", "bace/bridge/info", "bace/g1/availability", "bace/g1/session"):
                await eventually(lambda topic=topic: len(listener.on(topic)) == 2)  # type: ignore[misc]
            listener.publish("homeassistant/status", b"online")
            await eventually(lambda: len(listener.on("bace/g1/latest/a/6000")) == 3)
    assert len(listener.on(G1)) == 3, "two births at once were one, and what is no birth was none"


async def test_a_birth_that_a_lost_connection_has_cut_off_is_answered_on_the_next_one() -> None:
    ledger, gate = MemoryLedger(), Gate(is_open=True)
    ledger.held, ledger.of_discovery = {G1}, {G1: Announced({"running": "binary_sensor"}, {"b_6000": "sensor"})}
    async with (
        scripted(Script(keeps=True)) as broker,
        announcing(broker.port, Home(device("g1", "a")), ledger, sleep=gate),
    ):
        await eventually(lambda: any(one.topic == "bace/bridge/info" for one in broker.published))
        gate.close()
        broker.send(BIRTH)
        await gate.reached()
        broker.connections[0].close()
        gate.open()
        await eventually(lambda: not ledger.of_discovery[G1].removed)
        assert len(broker.versions) == 2


async def test_a_birth_that_was_retained_is_none(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with heard_on(port) as listener:
        listener.publish("homeassistant/status", b"online", retain=True)
        async with announcing(port, Home(device("g1", "a"))):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            listener.publish("homeassistant/status", b"online")
            await eventually(lambda: len(listener.on("bace/g1/session")) == 2)
    assert len(listener.on(G1)) == 2


async def test_another_prefix_is_another_birth(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with heard_on(port) as listener:
        async with announcing(port, Home(device("g1", "a")), home_assistant={"prefix": "ha/disco"}):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            listener.publish("homeassistant/status", b"online")
            listener.publish("ha/disco/status", b"online")
            await eventually(lambda: len(listener.on("bace/g1/session")) == 2)
    assert len(listener.on("ha/disco/device/bace_g1/config")) == 2


# --- what may be refused


async def test_a_broker_that_refuses_discovery_and_the_birth_gets_everything_else(
    new_mosquitto: NewMosquitto, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite bace/#\n")
    clock, mosquitto = Later(), new_mosquitto(f"acl_file {acl}")
    state = Home(device("g1", "a"))
    with capture_logs() as logs, heard_on(mosquitto.port) as listener:
        async with announcing(mosquitto.port, state, clock=clock) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            assert f"2 retained topics are refused and tried again later: {BRIDGE}, {G1}" in str(sink.state_problem)
            assert sink.problem is None
            assert await deliver(sink, event(1)) is None
            state.known["new"] = device("new", "a")
            assert await deliver(sink, of_device(2, "new", "session.started")) is None
            await eventually(lambda: bool(listener.on("bace/new/session") and listener.on("bace/new/event")))
            acl.write_text("topic readwrite #\n")
            mosquitto.reload()
            clock.seconds += 60
            sink.refresh()
            await eventually(lambda: sink.state_problem is None)
    assert not listener.on("bace/new/event")[0].retained
    assert len(named(logs, "mqtt.connected")) == 1


async def test_a_birth_that_cannot_be_heard_is_named_and_tried_again() -> None:
    script = Script(suback=0x87)
    with capture_logs() as logs:
        async with scripted(script) as broker, announcing(broker.port, Home(device("g1", "a"))) as sink:
            assert "does not allow reading homeassistant/status" in str(sink.state_problem)
            assert await deliver(sink, event(1)) is None
            script.suback = 0
            await eventually(lambda: "homeassistant/status" not in str(sink.state_problem))
    assert len(named(logs, "mqtt.home_assistant_unheard")) == 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_broker_that_closes_the_connection_on_the_birth_is_left_alone(protocol: str) -> None:
    clock, script = Later(), Script(closes_on_subscribing="homeassistant/status")
    async with (
        scripted(script) as broker,
        announcing(broker.port, Home(device("g1", "a")), clock=clock, protocol=protocol) as sink,
    ):
        await eventually(lambda: any(one.topic == "bace/bridge/info" for one in broker.published))
        assert "ends the connection when the bridge subscribes to homeassistant/status" in str(sink.state_problem)
        assert await deliver(sink, event(1)) is None
        assert ["bace/bridge/request/+"] in broker.subscribed[-8:], "it is not to blame"
        assert not [one for some in broker.subscribed for one in some if one.endswith("/config")]
        assert len(broker.versions) <= 4


async def test_discovery_on_which_the_broker_closes_the_connection_is_set_aside() -> None:
    state = Home(*(device(f"g{n}", "a") for n in range(10)))
    async with scripted(Script(closes_on_topic="homeassistant/")) as broker, announcing(broker.port, state) as sink:
        await eventually(lambda: "all of discovery" in str(sink.state_problem))
        await eventually(lambda: any(one.topic == "bace/bridge/info" for one in broker.published))
        await eventually(lambda: sink.problem is None)
        assert await deliver(sink, event(1)) is None
        assert {one.topic for one in broker.published} >= {f"bace/g{n}/session" for n in range(10)}


async def test_refused_discovery_of_many_devices_does_not_hold_up_their_state() -> None:
    state, gate = fleet(6, active=1), Gate()
    answers = {f"homeassistant/device/bace_{name}/config": 0x87 for name in ("bridge_here", *state.known)}
    async with scripted(Script(answers=answers)) as broker, announcing(broker.port, state, sleep=gate):
        sessions = {f"bace/{name}/session" for name in state.known}
        await eventually(lambda: sessions <= {one.topic for one in broker.published})


@pytest.mark.parametrize("poison", ["homeassistant/", "/latest/"])
async def test_a_broker_that_closes_the_connection_on_all_of_a_kind_costs_few_connections(poison: str) -> None:
    state = fleet(40, active=1)
    async with (
        scripted(Script(closes_on_topic=poison)) as broker,
        announcing(broker.port, state, max_in_flight=50, ready=False) as sink,
    ):
        await eventually(lambda: any(one.topic == "bace/bridge/info" for one in broker.published))
        assert len(broker.versions) < 12
        assert {one.topic for one in broker.published} >= {f"bace/{name}/session" for name in state.known}
        assert "(and with them all of" in str(sink.state_problem)


# --- a new device


async def test_a_new_devices_first_events_wait_for_its_discovery_and_no_others_do(new_mosquitto: NewMosquitto) -> None:
    port, gate, state = new_mosquitto().port, Gate(is_open=True), Home(device("g1", "a"))
    with heard_on(port) as listener:
        async with announcing(port, state, sleep=gate) as sink:
            gate.close()
            state.known["g2"] = device("g2", "a")
            held = [asyncio.create_task(deliver(sink, of_device(n, "g2"))) for n in range(5)]
            await eventually(lambda: bool(listener.on(G2)))
            await gate.reached()
            assert await deliver(sink, of_device(10, "g1")) is None
            held += [asyncio.create_task(deliver(sink, of_device(n, "g2"))) for n in range(5, 9)]
            await asyncio.sleep(0.1)
            assert not any(one.done() for one in held)
            gate.open()
            assert await asyncio.gather(*held) == [None] * 9
            assert await deliver(sink, of_device(9, "g2")) is None
            await eventually(lambda: len(listener.on("bace/g2/event")) == 10)
    topics = [one.topic for one in listener.heard]
    assert topics.index(G2) < topics.index("bace/g2/availability") < topics.index("bace/g2/event")
    assert [json.loads(one)["id"] for one in listener.payloads("bace/g2/event")] == [f"evt_{n}" for n in range(10)]


async def test_a_device_that_comes_back_while_its_state_is_read_is_announced_before_its_first_event() -> None:
    sent: list[asyncio.Task[SinkError | None]] = []

    class Back(Home):
        async def devices(self, ids: Collection[str] | None) -> list[DeviceState]:
            found = await super().devices(ids)
            if ids == {"g2"} and len(sent) == 1:
                self.known["g2"] = device("g2", "a")
                sent.append(asyncio.create_task(deliver(sink, of_device(2, "g2", "session.started"))))
                await asyncio.sleep(0)
            return found

    state = Back(device("g1", "a"), DeviceState("g2", available=True, session=None))
    async with scripted(Script()) as broker, announcing(broker.port, state) as sink:
        sent.append(asyncio.create_task(deliver(sink, of_device(1, "g2", "session.removed"))))
        await eventually(lambda: len(sent) == 2)
        assert await asyncio.gather(*sent) == [None, None]
        topics = [one.topic for one in broker.published if one.topic in {G2, "bace/g2/event"}]
        assert topics.index(G2) < len(topics) - 1 - topics[::-1].index("bace/g2/event")


async def test_a_device_that_comes_back_is_announced_before_its_first_event(new_mosquitto: NewMosquitto) -> None:
    port, state = new_mosquitto().port, Home(device("g1", "a"), device("g2", "a"))
    gone = DeviceState("g2", available=True, session=None)
    with heard_on(port) as listener:
        async with announcing(port, state) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            state.known["g2"] = gone
            assert await deliver(sink, of_device(1, "g2", "session.removed")) is None
            await eventually(lambda: listener.newest(G2) == b"")
            assert await deliver(sink, of_device(2, "g2", "session.removed")) is None, "nothing to wait for"
            await eventually(lambda: len(listener.on("bace/g2/event")) == 2)  # its PUBACK may come before it
            state.known["g2"] = device("g2", "a")
            first = len(listener.heard)
            assert await deliver(sink, of_device(3, "g2", "session.started")) is None
            await eventually(lambda: len(listener.on("bace/g2/event")) == 3)
            topics = [one.topic for one in listener.heard[first:]]
            assert topics.index(G2) < topics.index("bace/g2/event")


@pytest.mark.parametrize("amid", ["its reading", "its clearing"])
async def test_a_device_that_comes_amid_its_reading_or_clearing_is_announced_before_its_first_event(
    new_mosquitto: NewMosquitto, monkeypatch: pytest.MonkeyPatch, amid: str
) -> None:
    port, gate, ledger = new_mosquitto().port, Gate(is_open=True), MemoryLedger()
    state = Home(*(device(name, "a") for name in (("g1",) if amid == "its reading" else ("g1", "g2"))))
    held, name = (state, "devices") if amid == "its reading" else (ledger, "note_announced")
    really = getattr(held, name)

    async def late(*given: Any) -> Any:
        found = await really(*given)
        await gate(SETTLES_IN)
        return found

    monkeypatch.setattr(held, name, late)
    with heard_on(port) as listener:
        async with announcing(port, state, ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info") and listener.on("bace/bridge/devices")))
            gate.close()
            state.known.pop("g2", None)
            sink.refresh(["g2"])
            await gate.reached()
            first = len(listener.heard)
            state.known["g2"] = device("g2", "a")
            delivering = asyncio.create_task(deliver(sink, of_device(1, "g2", "session.started")))
            await asyncio.sleep(0)
            gate.open()
            assert await delivering is None
            await eventually(lambda: bool(listener.on("bace/g2/event")))
    heard = [(one.topic, bool(one.payload)) for one in listener.heard[first:]]
    assert heard.index((G2, True)) < heard.index(("bace/g2/event", True))


async def test_events_that_wait_for_a_discovery_are_given_back_when_the_connection_ends(
    new_mosquitto: NewMosquitto,
) -> None:
    mosquitto, gate, state = new_mosquitto(), Gate(is_open=True), Home()
    async with announcing(mosquitto.port, state, sleep=gate) as sink:
        gate.close()
        state.known["g2"] = device("g2", "a")
        finished: list[SinkError | None] = []
        for number in range(3):
            sink.send(of_device(number, "g2"), finished.append)
        await gate.reached()
        mosquitto.kill()
        await eventually(lambda: len(finished) == 3)
        assert all(isinstance(one, SinkUnavailable) for one in finished)
        gate.open()


async def test_events_do_not_wait_for_a_device_that_cannot_be_read(new_mosquitto: NewMosquitto) -> None:
    state = Home()
    async with announcing(new_mosquitto().port, state) as sink:
        state.broken = True
        assert await deliver(sink, of_device(1, "g2")) is None


# --- what goes


Change = Callable[[dict[str, DeviceState]], None]


async def until_kept(listener: Listener, condition: Callable[[dict[str, bytes]], bool]) -> dict[str, bytes]:
    def kept() -> dict[str, bytes]:
        newest = {one.topic: one.payload for one in list(listener.heard)}
        return {topic: payload for topic, payload in newest.items() if payload and topic.startswith("homeassistant/")}

    await eventually(lambda: condition(kept()))
    return kept()


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_series_that_goes_is_announced_whole_then_removed_then_left_out(
    new_mosquitto: NewMosquitto, restarts: bool
) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(device("g1", "a", "b"))
    with heard_on(port) as listener:
        async with announcing(port, state, ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            if not restarts:
                state.known["g1"] = device("g1", "a")
                sink.refresh(["g1"])
                await eventually(lambda: len(listener.on(G1)) == 4)
                await eventually(lambda: "bace/g1/latest/b/6000" not in ledger.held)
        if restarts:
            state.known["g1"] = device("g1", "a")
            async with announcing(port, state, ledger):
                await eventually(lambda: len(listener.on("bace/bridge/info")) == 2)
                await eventually(lambda: "bace/g1/latest/b/6000" not in ledger.held)
        _, whole, removed, without = (components(one) for one in listener.payloads(G1))
        assert whole["b_6000"]["p"] == "sensor"
        assert removed["b_6000"] == {"p": "sensor"}
        assert "b_6000" not in without
        assert all("a_6000" in one for one in (whole, removed, without))
        assert ledger.of_discovery[G1].removed == {"b_6000": "sensor"}

        writes = ledger.writes
        async with announcing(port, state, ledger):
            await eventually(lambda: len(listener.on("bace/bridge/info")) == (3 if restarts else 2))
            assert len(listener.on(G1)) == 5, "once"
            assert ledger.writes == writes
            listener.publish("homeassistant/status", b"online")
            await eventually(lambda: len(listener.on(G1)) == 8)
            await eventually(lambda: not ledger.of_discovery[G1].removed)
        last = [components(one).get("b_6000") for one in listener.payloads(G1)[-3:]]
        assert [one and (len(one) > 1) for one in last] == [True, False, None], "Home Assistant may have missed it"


async def test_a_sink_that_leaves_and_one_that_comes_change_the_bridges_device(new_mosquitto: NewMosquitto) -> None:
    port, there = new_mosquitto().port, ["home", "hook"]
    with heard_on(port) as listener:
        async with announcing(port, Home(), sinks=lambda: there) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            there.remove("hook")
            there.append("other")
            sink.refresh()
            await eventually(lambda: len(listener.on(BRIDGE)) == 4)
    keys = [{key for key in components(one) if key.startswith("backlog")} for one in listener.payloads(BRIDGE)]
    home, hook, other = "backlog_home", "backlog_hook", "backlog_other"
    assert keys == [{home, hook}, {home, hook, other}, {home, hook, other}, {home, other}]


async def test_another_name_of_a_datatype_is_announced_without_another_connection(new_mosquitto: NewMosquitto) -> None:
    port, meanings = new_mosquitto().port, dict(KNOWN_DATATYPES)
    with capture_logs() as logs, heard_on(port) as listener:
        async with announcing(port, Home(device("g1", "a")), datatypes=lambda: meanings) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            meanings = {6000: DatatypeConfig(name="Pulse", unit="1/min")}
            sink.refresh(None)
            await eventually(lambda: len(listener.on(G1)) == 2)
            assert components(listener.payloads(G1)[-1])["a_6000"]["name"] == "Pulse"
    assert len(named(logs, "mqtt.connected")) == 1


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ({"home_assistant": {"enabled": False}}, set()),
        ({"home_assistant": {"prefix": "other"}}, {one.replace("homeassistant", "other") for one in (BRIDGE, G1, G2)}),
        ({"base_topic": "else"}, {BRIDGE, G1, G2}),
        ({"groups": ["g2"]}, {BRIDGE, G2}),
    ],
)
async def test_what_is_not_meant_any_more_is_cleared(
    new_mosquitto: NewMosquitto, after: dict[str, Any], left: set[str]
) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(device("g1", "a"), device("g2", "a"))
    with heard_on(port) as listener:
        async with announcing(port, state, ledger):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
        async with announcing(port, state, ledger, **after):
            await eventually(lambda: {topic for topic in ledger.held if topic.endswith("/config")} == left)
            with heard_on(port) as fresh:
                await eventually(lambda: any(one.topic.endswith("bridge/info") for one in fresh.heard))
                fresh.caught_up()
                assert {one.topic for one in fresh.heard if one.topic.endswith("/config")} == left
                if after.get("base_topic"):
                    assert b'"bace/' not in fresh.on(G1)[0].payload
    assert {topic for topic, one in ledger.of_discovery.items() if not one.is_cleared} == left


async def test_a_device_all_of_whose_data_sessions_were_removed_is_announced_no_more(
    new_mosquitto: NewMosquitto,
) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(device("g1", "a"), device("g2", "a"))
    with heard_on(port) as listener:
        async with announcing(port, state, ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            state.known["g2"] = DeviceState("g2", available=True, session=None)
            sink.refresh(["g2"])
            await eventually(lambda: listener.newest(G2) == b"")
            await eventually(lambda: G2 not in ledger.held)
            assert ledger.of_discovery[G2].is_cleared


@pytest.mark.parametrize("mode", ["device", "component"])
async def test_a_device_that_was_cleared_while_home_assistant_was_down_is_cleared_again_at_its_start(
    new_mosquitto: NewMosquitto, mode: str
) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(device("g1", "a"), device("g2", "b"))
    settings: dict[str, Any] = {"home_assistant": {"mode": mode}}
    with heard_on(port) as listener:
        async with announcing(port, state, ledger, **settings) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            topics = {topic for topic in ledger.held if "/bace_g2/" in topic and topic.startswith("homeassistant/")}
            del state.known["g2"]
            sink.refresh(None)
            await eventually(lambda: all(listener.newest(topic) == b"" for topic in topics))
            await eventually(lambda: not topics & ledger.held)
        for _ in range(2):
            before = {topic: len(listener.on(topic)) for topic in topics}
            starts = len(listener.on("bace/bridge/info"))
            async with announcing(port, state, ledger, **settings):
                await eventually(lambda starts=starts: len(listener.on("bace/bridge/info")) > starts)  # type: ignore[misc]
                assert {topic: len(listener.on(topic)) for topic in topics} == before, "cleared already"
                listener.publish("homeassistant/status", b"online")
                await eventually(lambda: len(listener.on("bace/g1/session")) % 2 == 1)
                await eventually(lambda: not any(one.is_cleared for one in ledger.of_discovery.values()))
        for topic in topics:
            whole, gone = listener.payloads(topic)[-2:]
            assert json.loads(whole)["dev"] == {"ids": ["bace_g2"]}
            assert gone == b""
            assert len(listener.on(topic)) == 4, "once"


@pytest.mark.parametrize("mode", ["device", "component"])
async def test_what_a_lost_store_has_announced_is_cleared_and_nothing_of_others(
    new_mosquitto: NewMosquitto, mode: str
) -> None:
    port, settings = new_mosquitto().port, dict[str, Any](home_assistant={"mode": mode})
    both, alone = Home(device("g1", "a"), device("g2", "a")), Home(device("g1", "a"))
    with heard_on(port) as listener:
        async with announcing(port, both, **settings):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
        await eventually(lambda: listener.newest("bace/bridge/state") == b"offline")
        there = {one.topic for one in listener.heard if one.topic.startswith("homeassistant/") and "_g2/" in one.topic}
        foreign = "homeassistant/device/zigbee_1/config", "homeassistant/sensor/bace_g9/a/config"
        other = Home(device("g3", "a"))
        other.info_payload = b'{"version":"1","installation":"there"}'
        below: dict[str, Any] = {"base_topic": "bace/x", "client_id": "other", "installation": "there"}
        async with announcing(port, other, **below, **settings):
            await eventually(lambda: bool(listener.on("bace/x/bridge/info")))
            for topic in foreign:
                listener.publish(topic, b'{"stat_t":"bace/g9/session/else"}', retain=True)
            async with announcing(port, alone, **settings):
                await eventually(lambda: all(listener.newest(topic) == b"" for topic in there))
                await eventually(lambda: len(listener.on("bace/bridge/info")) == 2)
    cleared = {one.topic for one in listener.heard if one.topic.startswith("homeassistant/") and not one.payload}
    assert cleared == there


# --- from one mode to the other


def of_mode(listener: Listener, first: int, mode: str) -> list[tuple[str, bytes]]:
    found = [(one.topic, one.payload) for one in listener.heard[first:] if one.topic.startswith("homeassistant/")]
    return [one for one in found if ("/device/" in one[0]) == (mode == "device")]


@pytest.mark.parametrize(("before", "after"), [("device", "component"), ("component", "device")])
async def test_entities_are_handed_over_from_one_mode_to_the_other_once(
    new_mosquitto: NewMosquitto, before: str, after: str
) -> None:
    port, ledger, gate = new_mosquitto("max_queued_messages 0").port, MemoryLedger(), Gate(is_open=True)
    state = Home(device("g1", "a"))
    with heard_on(port) as listener:
        async with announcing(port, state, ledger, sleep=gate, home_assistant={"mode": before}):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
        old = {topic for topic, _ in of_mode(listener, 0, before)}
        gate.close()
        first = len(listener.heard)
        async with announcing(port, state, ledger, sleep=gate, ready=False, home_assistant={"mode": after}) as sink:
            await gate.reached()
            await eventually(lambda: len(of_mode(listener, first, before)) >= len(old))
            assert of_mode(listener, first, before) == [(topic, b'{"migrate_discovery":true}') for topic in sorted(old)]
            await gate.once()
            await gate.reached()
            await eventually(lambda: len(of_mode(listener, first, before)) == 2 * len(old))
            assert of_mode(listener, first, before)[len(old) :] == [(topic, b"") for topic in sorted(old)]
            assert not of_mode(listener, first, after)
            gate.open()
            await sink.ready()
            await eventually(lambda: not old & ledger.held)
        first = len(listener.heard)
        async with announcing(port, state, ledger, sleep=gate, home_assistant={"mode": after}):
            await eventually(lambda: any(one.topic == "bace/bridge/info" for one in listener.heard[first:]))
        assert not of_mode(listener, first, before)
        assert not any(b"migrate" in one.payload for one in listener.heard[first:])


async def test_what_goes_together_with_the_mode_is_handed_over_to_nobody(new_mosquitto: NewMosquitto) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(device("g1", "a", "b"))
    with heard_on(port) as listener:
        async with announcing(port, state, ledger, sinks=lambda: ["home", "hook"]):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
        state.known["g1"] = device("g1", "a")
        async with announcing(port, state, ledger, sinks=lambda: ["home"], home_assistant={"mode": "component"}):
            await eventually(lambda: len(listener.on("bace/bridge/info")) == 2)
        for topic in ("sensor/bace_g1/b_6000", "sensor/bace_bridge_here/backlog_hook"):
            whole, gone = listener.payloads(f"homeassistant/{topic}/config")
            assert json.loads(whole)["uniq_id"] == topic.split("/", 1)[1].replace("/", "_", 1)
            assert gone == b""
            assert f"homeassistant/{topic}/config" not in ledger.held


# --- what it does not disturb


async def test_two_bridges_on_one_base_topic_do_not_clear_each_others_devices(new_mosquitto: NewMosquitto) -> None:
    port, ledger = new_mosquitto().port, MemoryLedger()
    theirs, ours = Home(device("g1", "a"), device("g2", "a")), Home(device("g1", "a"))
    theirs.info_payload = b'{"version":"1","installation":"there"}'
    with heard_on(port) as listener:
        async with announcing(port, theirs, client_id="other", installation="there"):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            ledger.held = {BRIDGE, G1, G2}  # from a time when it was alone, and had both
            async with announcing(port, ours, ledger, client_id="one") as one:
                await eventually(lambda: bool(listener.on("bace/bridge/guest/here")))
                await eventually(lambda: "another bridge uses the base topic" in str(one.state_problem))
            off: dict[str, Any] = {"home_assistant": {"enabled": False}}
            async with announcing(port, ours, ledger, client_id="one", **off):
                await eventually(lambda: listener.newest(BRIDGE) == b"")
    assert b"" not in listener.payloads(G1) + listener.payloads(G2)


async def test_discovery_that_the_broker_lost_is_no_broker_that_loses_state(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with capture_logs() as logs, heard_on(port) as listener:
        async with announcing(port, Home(device("g1", "a"))) as sink:
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
            listener.publish(G1, b"", retain=True)  # as Home Assistant does where an entity is deleted
            sink.refresh(["g1"])
            await eventually(lambda: sink.state_problem is None)
            listener.publish("homeassistant/status", b"online")
            await eventually(lambda: len(listener.on("bace/g1/session")) == 2)
        assert len(listener.on(G1)) == 3, "announced again at its next start"
    assert not named(logs, "mqtt.state_not_kept")
    assert not named(logs, "mqtt.foreign_message")


async def test_discovery_says_that_it_is_json_and_never_expires(new_mosquitto: NewMosquitto) -> None:
    port = new_mosquitto().port
    with heard_on(port) as listener:
        async with announcing(port, Home(device("g1", "a"))):
            await eventually(lambda: bool(listener.on("bace/bridge/info")))
    for one in listener.heard:
        is_json = one.payload.startswith((b"{", b"["))
        assert getattr(one.properties, "ContentType", None) == ("application/json" if is_json else None), one.topic
        assert not hasattr(one.properties, "MessageExpiryInterval")


async def test_a_ledger_that_cannot_be_written_does_not_hold_up_discovery(new_mosquitto: NewMosquitto) -> None:
    port, ledger, state = new_mosquitto().port, MemoryLedger(), Home(device("g1", "a"))
    ledger.broken = True
    with heard_on(port) as listener:
        async with announcing(port, state, ledger) as sink:
            await eventually(lambda: bool(listener.on("bace/g1/session")))
            ledger.broken = False
            state.known["g1"] = device("g1", "a", "b")
            sink.refresh(["g1"])
            await eventually(lambda: {BRIDGE, G1} <= ledger.of_discovery.keys())
    assert "b_6000" in ledger.of_discovery[G1].components


def test_what_the_ledger_holds_of_a_discovery_is_json() -> None:
    one = Announced({"a": "sensor"}, {"b": "sensor"})
    assert msgspec.json.decode(msgspec.json.encode(one), type=Announced) == one


async def test_an_idle_sink_publishes_and_writes_nothing(new_mosquitto: NewMosquitto) -> None:
    port, ledger = new_mosquitto().port, MemoryLedger()
    with heard_on(port) as listener:
        async with announcing(port, Home(device("g1", "a")), ledger) as sink:
            # The last ones of the first round: they wait for what the broker keeps.
            await eventually(lambda: bool(listener.on("bace/bridge/info") and listener.on("bace/bridge/devices")))
            heard, writes = len(listener.heard), ledger.writes
            for _ in range(20):
                sink.refresh(None)
                sink.refresh()
                await asyncio.sleep(0.02)
            listener.caught_up()
            assert (len(listener.heard), ledger.writes) == (heard, writes)
