"""No text that a configuration accepts closes the connection, and nothing that is asked over MQTT ends anything."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import ValidationError
from structlog.testing import capture_logs

from bace_bridge.app.outlets import request_handlers
from bace_bridge.sinks.api import Answer
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.requests import LARGEST, MOST_A_MINUTE, Requests
from bace_bridge.sinks.mqtt.topics import Topics
from tests.integration.brokers import Mosquitto, eventually, listening
from tests.integration.polling_line import Clock
from tests.integration.test_mqtt_sink import (
    REQUESTS,
    Home,
    MemoryLedger,
    bed,
    connected,
    context_of,
    deliver,
    event,
    heard_on,
    named,
    new_sink,
    running,
)

NewMosquitto = Callable[..., Mosquitto]

TEXTS = st.text(st.characters(), min_size=1, max_size=20)
ODD = st.sampled_from(
    ["\x00", "\n", "\t", "\x7f", "\x85", "\ud800", "\ufdd0", "\ufffe", "\uffff", "\U0010fffe", "$", "+", "#"]
)
HOSTILE = st.one_of(
    TEXTS,
    st.builds(lambda before, odd, after: before + odd + after, st.text(max_size=3), ODD, st.text(max_size=3)),
    st.builds(lambda one, times: one * times, st.sampled_from(["a", "a/", "/", "\u2603"]), st.integers(190, 70_000)),
)


def accepted(**keys: str) -> dict[str, str] | None:
    try:
        MqttConfig.model_validate({"name": "home", "url": "mqtt://127.0.0.1:1", **keys})
    except ValidationError:
        return None
    return keys


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_no_text_that_is_accepted_closes_the_connection(new_mosquitto: NewMosquitto, protocol: str) -> None:
    mosquitto = new_mosquitto()

    @given(base_topic=HOSTILE, client_id=HOSTILE, username=HOSTILE, password=HOSTILE)
    @example(base_topic="/".join("a" * 196), client_id="a" * 65_535, username="\u2603", password="\x01\n")
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def try_them(base_topic: str, client_id: str, username: str, password: str) -> None:
        keys: dict[str, Any] = {}
        for key, value in {"base_topic": base_topic, "username": username, "client_id": client_id}.items():
            keys |= accepted(**{key: value}) or {}
        if "username" in keys:
            keys |= accepted(username=keys["username"], password=password) or {}
        identity = keys.pop("client_id", "bridge")
        asyncio.run(use(identity, keys))

    async def use(identity: str, keys: dict[str, Any]) -> None:
        with capture_logs() as logs:
            sink = new_sink(mosquitto.port, Home(bed()), REQUESTS, identity, protocol=protocol, **keys)
            async with running(sink):
                assert await deliver(sink, event(1)) is None
        assert [one["event"] for one in logs] == ["mqtt.connected"], (keys, logs)

    try_them()


@pytest.mark.parametrize("character", ["\uffff", "\n", "\ud800", "\x80", "\U0010ffff"])
async def test_what_a_source_holds_in_the_properties_of_an_event_closes_no_connection(
    new_mosquitto: NewMosquitto, character: str
) -> None:
    port = new_mosquitto().port
    sink = new_sink(port, source=f"https://cloud.example/{character}")
    with heard_on(port) as listener, capture_logs() as logs:
        async with running(sink):
            assert await deliver(sink, event(1)) is None
            await eventually(lambda: bool(listener.on("bace/g1/event")))

    assert not named(logs, "mqtt.unreachable")


# --- requests


def asked_for(topic: str, correlation: bytes | None = None) -> Any:
    properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("$SYS/x", "begins with $"),
        ("$share/g/x", "begins with $"),
        ("/".join("a" * 201), "has more than 200 levels"),
        ("bace/bridge/state", "belongs to the bridge"),
        ("bace/bridge/request/info", "belongs to the bridge"),
        ("bace/g1/session", "belongs to the bridge"),
        ("bace", "belongs to the bridge"),
        ("x" * 2000, "is longer than 1024 bytes"),
    ],
)
async def test_a_response_topic_that_is_not_for_answers_is_refused(
    new_mosquitto: NewMosquitto, topic: str, why: str
) -> None:
    port, usual = new_mosquitto().port, "bace/bridge/response/info"
    with heard_on(port) as listener, capture_logs() as logs:
        async with connected(port, Home(bed()), REQUESTS) as sink:
            before = len(listener.on(topic))
            send = listener.publish
            await asyncio.to_thread(send, "bace/bridge/request/info", b"{}", properties=asked_for(topic, b"\x01"))
            await eventually(lambda: bool(listener.on(usual)))
            assert await deliver(sink, event(1)) is None

    answer = json.loads(listener.payloads(usual)[0])
    assert (answer["status"], why in answer["error"], len(answer["error"]) < 300) == ("error", True, True)
    assert listener.on(usual)[0].properties.CorrelationData == b"\x01"
    assert topic == "bace/bridge/request/info" or not any(b"status" in one for one in listener.payloads(topic)[before:])
    assert not named(logs, "mqtt.unreachable")


@pytest.mark.parametrize("topic", ["my/own/place", "bace/bridge/response/mine/1", "/a//b", "bacex/bridge/state"])
async def test_other_response_topics_get_the_answer(new_mosquitto: NewMosquitto, topic: str) -> None:
    port = new_mosquitto().port
    with heard_on(port) as listener:
        async with connected(port, Home(bed()), REQUESTS):
            send = listener.publish
            await asyncio.to_thread(send, "bace/bridge/request/info", b"{}", properties=asked_for(topic))
            await eventually(lambda: bool(listener.on(topic)))

    assert json.loads(listener.payloads(topic)[0])["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("info", {"ResponseTopic": "bace/bridge/state"}),
        ("info", {"CorrelationData": b"x" * 1025}),
        ("coffee", {}),
    ],
)
def test_an_answer_that_refuses_repeats_the_transaction(name: str, properties: dict[str, Any]) -> None:
    published: list[Any] = []
    asyncio.run(answered(answers(), name, b'{"transaction": [1, "\xc3\xa9"]}', published, **properties))

    answer = json.loads(published[0].payload)
    assert (answer["status"], answer["transaction"]) == ("error", [1, "\u00e9"])


@pytest.mark.parametrize("where", ["UserProperty", "ResponseTopic", "ContentType"])
async def test_properties_that_brokers_pass_on_and_paho_does_not_take_close_no_connection(
    new_mosquitto: NewMosquitto, where: str
) -> None:
    port, usual = new_mosquitto().port, "bace/bridge/response/info"
    odd: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    setattr(odd, where, ("a", "\ufeff") if where == "UserProperty" else "a\ufeff")
    with listening(port, usual) as listener, capture_logs() as logs:
        for topic in ("bace/g9/session", "bace/g9/availability", "bace/bridge/request/info"):
            await asyncio.to_thread(listener.publish, topic, b"{}", retain=True, properties=odd)
        async with connected(port, Home(bed()), REQUESTS) as sink:
            await asyncio.to_thread(
                listener.publish, "bace/bridge/request/info", b'{"transaction":"odd"}', properties=odd
            )
            await eventually(lambda: bool(listener.on(usual)))
            assert await deliver(sink, event(1)) is None

    assert json.loads(listener.payloads(usual)[0])["transaction"] == "odd"
    assert len(named(logs, "mqtt.connected")) == 1


@pytest.mark.parametrize(
    ("payload", "correlation", "problem"),
    [
        (b'{"transaction":"%b"}' % (b"x" * 1023), None, "transaction is larger than 1024 bytes"),
        (b'{"a":"%b"}' % (b"x" * LARGEST), None, "the request is larger than 65536 bytes"),
        (b"{}", b"x" * 1025, "the correlation data are larger than 1024 bytes"),
    ],
)
async def test_what_is_echoed_and_kept_is_bounded(
    new_mosquitto: NewMosquitto, payload: bytes, correlation: bytes | None, problem: str
) -> None:
    port, topic = new_mosquitto().port, "bace/bridge/response/info"
    with heard_on(port) as listener:
        async with connected(port, Home(bed()), REQUESTS):
            properties = asked_for(topic, correlation) if correlation is not None else None
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", payload, properties=properties)
            await eventually(lambda: bool(listener.on(topic)))

    assert json.loads(listener.payloads(topic)[0]) == {"status": "error", "error": problem}


async def test_a_flood_of_requests_costs_a_minute_s_answers_and_few_log_lines(new_mosquitto: NewMosquitto) -> None:
    mosquitto, clock, flood = new_mosquitto("max_queued_messages 0"), Clock(), 20_000
    topic = "bace/bridge/response/info"
    with capture_logs() as logs, listening(mosquitto.port, "bace/bridge/response/+") as listener:
        async with connected(mosquitto.port, Home(bed()), REQUESTS, clock=clock) as sink:
            await asyncio.to_thread(publish_many, listener, flood)
            assert await deliver(sink, event(1)) is None
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b"{}", retain=True)
            await eventually(lambda: bool(named(logs, "mqtt.retained_request_ignored")))  # which comes after them
            assert len(listener.on(topic)) <= MOST_A_MINUTE
            assert len(logs) <= 4
            clock.now += 1
            await asyncio.to_thread(listener.publish, "bace/bridge/request/info", b'{"transaction":"after"}')
            await eventually(lambda: b"after" in (listener.newest(topic) or b""))
            clock.now += 60
            await asyncio.to_thread(publish_many, listener, 2 * MOST_A_MINUTE)
            await eventually(lambda: len(named(logs, "mqtt.request_dropped")) == 2)
            assert named(logs, "mqtt.request_dropped")[1]["more_before"] > flood - 2 * MOST_A_MINUTE


def publish_many(listener: Any, count: int) -> None:
    sent = [listener._client.publish("bace/bridge/request/info", b"{}", 1) for _ in range(count)]
    sent[-1].wait_for_publish(60)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TIMES = st.sampled_from(
    ["0001-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "now", "", "2026-01-31T00:00:00Z", "1e999"]
)
ASKED = st.fixed_dictionaries(
    {}, optional={"level": JSON, "session": JSON, "since": JSON | TIMES, "transaction": JSON, "x": JSON}
)


def answers() -> Any:
    async def replay(*, session: str | None, since: float | None) -> int:
        assert (session is None) != (since is None)
        assert session is None or isinstance(session, str)
        assert since is None or isinstance(since, float)
        return 0

    return request_handlers(
        poll_now=lambda: None,
        info=lambda: {"version": "1"},
        set_level=lambda _: None,
        replay=replay,
        log_grew=lambda: None,
    )


@given(name=st.sampled_from(["poll", "info", "log_level", "replay"]), asked=ASKED)
@example(name="log_level", asked={"level": []})
@example(name="log_level", asked={"level": {"a": 1}})
@example(name="replay", asked={"session": [], "since": None})
@example(name="replay", asked={"session": 10**400})
@example(name="replay", asked={"since": "0001-01-01T00:00:00+23:59"})
@settings(deadline=None)
def test_every_json_gets_an_answer_and_no_traceback(name: str, asked: dict[str, Any]) -> None:
    handlers: dict[str, Answer] = answers()
    published: list[Any] = []
    with capture_logs() as logs:
        asyncio.run(answered(handlers, name, json.dumps(asked).encode(), published))

    assert not logs
    answer = json.loads(published[0].payload)
    assert answer["status"] in {"ok", "error"}
    assert "internal" not in answer.get("error", "")


async def answered(
    handlers: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]],
    name: str,
    payload: bytes,
    published: list[Any],
    **properties: Any,
) -> None:
    context = context_of(Home(), MemoryLedger(), handlers)
    requests = Requests(context, Topics("bace"), structlog.get_logger(), clock=lambda: 0.0)
    message = MQTTMessage(topic=f"bace/bridge/request/{name}".encode("utf-8", "surrogatepass"))
    message.payload = payload
    message.properties = type("Properties", (), properties)()
    requests.take(message)
    serving = asyncio.create_task(requests.serve(lambda message, _: published.append(message)))
    for _ in range(5):
        await asyncio.sleep(0)
    serving.cancel()


@given(name=st.text(max_size=40) | HOSTILE, payload=st.binary(max_size=64), topic=HOSTILE, data=st.binary(max_size=9))
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_answers_go_only_where_brokers_take_them(
    name: str, payload: bytes, topic: str, data: bytes
) -> None:
    published: list[Any] = []
    asyncio.run(answered(answers(), name, payload, published, ResponseTopic=topic, CorrelationData=data))

    for message in published:
        assert "\ufffe" not in message.topic
        assert len(message.topic.encode()) <= 1024
        assert message.topic.startswith("bace/bridge/response/") or message.topic == topic
        assert json.loads(message.payload)["status"] in {"ok", "error"}
