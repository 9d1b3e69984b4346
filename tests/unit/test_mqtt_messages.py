"""What the MQTT sink says and decides, without a broker."""

import ssl
from typing import Any

import msgspec
import pytest
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from bace_bridge.errors import DeliveryFailed, DeliveryRejected
from bace_bridge.events.types import Attempt, Event, LoggedEvent
from bace_bridge.sinks.mqtt.dialing import Outage
from bace_bridge.sinks.mqtt.manners import (
    During,
    Ending,
    Kind,
    Limits,
    Manner,
    ending_of,
    limits,
    may_be_about_a_message,
    publish_refused,
    refused,
)
from bace_bridge.sinks.mqtt.messages import EventMessages, introduction, of_response, of_state
from bace_bridge.sinks.mqtt.refusals import Suspicion
from bace_bridge.sinks.mqtt.sockets import reason
from bace_bridge.sinks.mqtt.topics import Topics

TOPICS = Topics("bace")
SESSION_DATA = b'{"session":{"id":"s1","label":"caf\xc3\xa9"},"device":{"id":"g1","label":"Bed"},"observed_at":"x"'


def event(kind: str = "session.started", data: bytes = SESSION_DATA + b"}", **changed: Any) -> Event:
    facts: dict[str, Any] = {
        "session_id": "s1",
        "device_id": "g1",
        "time": 1769860800.5,
        "observed_at": 1769860900.0,
    }
    return Event(id="evt_1", type=kind, data=data, **(facts | changed))


def message(one: Event, *, replay: bool = False) -> tuple[str, bytes]:
    sent = EventMessages("x", TOPICS, qos=1).message(Attempt(LoggedEvent(1, one), 1, replay), speaks_5=False)
    assert sent.properties is None
    return sent.topic, sent.payload


def properties(one: Event, *, source: str = "x", replay: bool = False) -> Any:
    attempt = Attempt(LoggedEvent(42, one), 1, replay)
    encoded = EventMessages(source, TOPICS, qos=1).message(attempt, speaks_5=True).properties
    assert encoded is not None
    read: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    read.unpack(encoded.pack())
    return read


def test_an_event_is_its_data_with_type_id_and_time_before_it() -> None:
    topic, payload = message(event())

    assert topic == "bace/g1/event"
    assert payload.startswith(b'{"event_type":"session.started","id":"evt_1","time":"2026-01-31T12:00:00.500Z",')
    assert payload.endswith(SESSION_DATA.removeprefix(b"{") + b"}"), "the data is not encoded again"
    assert msgspec.json.decode(payload)["session"] == {"id": "s1", "label": "café"}


def test_datapoints_have_a_topic_and_a_shape_of_their_own() -> None:
    points = b'[{"series_id":"a","min":1.5e300,"revision":0},{"x":1}]'
    data = SESSION_DATA + b',"datapoints":' + points + b"}"

    topic, payload = message(event("session.datapoints", data))

    assert topic == "bace/g1/datapoints"
    expected = b'{"id":"evt_1","time":"2026-01-31T12:00:00.500Z","session_id":"s1","datapoints":' + points + b"}"
    assert payload == expected


@pytest.mark.parametrize("kind", ["alert.firing", "cloud.unreachable", "sink.disabled"])
def test_what_belongs_to_no_session_is_the_bridges_own_event(kind: str) -> None:
    topic, payload = message(event(kind, b"{}", session_id=None, device_id=None))

    assert topic == "bace/bridge/event"
    assert msgspec.json.decode(payload) == {
        "event_type": kind,
        "id": "evt_1",
        "time": "2026-01-31T12:00:00.500Z",
    }


def test_an_alert_about_a_session_is_the_bridges_event_too() -> None:
    topic, _ = message(event("alert.firing", b'{"alert":{}}'))

    assert topic == "bace/bridge/event"


@pytest.mark.parametrize(
    ("kind", "data"),
    [("session.started", b"[]"), ("session.datapoints", b"{}"), ("session.datapoints", b"{")],
)
def test_broken_data_is_named_and_not_sent(kind: str, data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        message(event(kind, data))


def test_the_cloudevents_attributes_read_as_paho_reads_properties() -> None:
    source = "https://dashboard.bace-iot.com"
    read = properties(event(), source=source)

    assert read.ContentType == "application/json"
    assert dict(read.UserProperty) == {
        "specversion": "1.0",
        "id": "evt_1",
        "source": source,
        "type": "bace.session.started",
        "subject": "s1",
        "time": "2026-01-31T12:00:00.500Z",
        "sequence": "00000000000000000042",
    }


@pytest.mark.parametrize("replay", [False, True])
def test_a_replay_is_marked_in_the_message_and_its_properties(replay: bool) -> None:
    read = properties(event(), replay=replay)
    assert dict(read.UserProperty).get("replay") == ("true" if replay else None)
    for kind, data in (("session.ended", b'{"a":1}'), ("session.datapoints", b'{"datapoints":[]}')):
        _, payload = message(event(kind, data), replay=replay)
        assert msgspec.json.decode(payload).get("replay") is (True if replay else None)


def test_an_event_without_a_session_has_no_subject() -> None:
    read = properties(event("cloud.recovered", b"{}", session_id=None))

    assert "subject" not in dict(read.UserProperty)


def test_long_and_other_properties_are_encoded_as_paho_does() -> None:
    for correlation in (b"\x00" * 9000, b"\x00\xff", None):
        theirs: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        theirs.unpack(of_response(correlation).pack())
        assert getattr(theirs, "CorrelationData", None) == correlation
        assert (theirs.ContentType, theirs.MessageExpiryInterval) == ("application/json", 60)


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [(b'{"a":1}', "application/json"), (b"[]", "application/json"), (b"online", None), (b"", None)],
)
def test_retained_json_says_that_it_is_json_and_nothing_retained_expires(
    payload: bytes, content_type: str | None
) -> None:
    read: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if (ours := of_state(payload)) is not None:
        read.unpack(ours.pack())
    assert getattr(read, "ContentType", None) == content_type
    assert not hasattr(read, "MessageExpiryInterval")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0x80, DeliveryFailed),
        (0x83, DeliveryFailed),
        (0x97, DeliveryFailed),
        (0x87, DeliveryRejected),
        (0x90, DeliveryRejected),
        (0x95, DeliveryRejected),
        (0x99, DeliveryRejected),
    ],
)
def test_a_refusal_says_where_and_why(code: int, expected: type[Exception]) -> None:
    error = publish_refused("bace/g1/event", code, "Some reason")

    assert type(error) is expected
    assert str(error) == f"the broker refused a message on bace/g1/event: some reason (0x{code:02x})"


def test_an_attempt_that_failed_is_told_in_words() -> None:
    untrusted = ssl.SSLCertVerificationError(1, "x")
    untrusted.verify_message = "self-signed certificate"

    for error, words in [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (untrusted, "its certificate is not trusted: self-signed certificate"),
        (TimeoutError(), "no answer in time"),
        (ValueError("Invalid host."), "Invalid host."),
        (UnicodeEncodeError("idna", "x", 0, 1, "label too long"), "its host name cannot be written in DNS"),
        (
            tls_alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"),
            "it wants a client certificate (tls.cert_file and tls.key_file)",
        ),
        (
            tls_alert("WRONG_VERSION_NUMBER"),
            "the server does not speak TLS; use mqtt:// or ws:// for a connection without TLS",
        ),
        (tls_alert("NO_CIPHERS_AVAILABLE"), "TLS failed (no ciphers available)"),
    ]:
        assert reason(error, certificate=False) == words
    assert "perhaps it wants a client certificate" in reason(
        tls_alert("SSLV3_ALERT_HANDSHAKE_FAILURE"), certificate=False
    )
    assert "does not take the client certificate" in reason(tls_alert("TLSV1_ALERT_UNKNOWN_CA"), certificate=True)


def tls_alert(name: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {name}]")
    error.reason = name
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0x84, "version_refused"),
        (0x86, "login_refused"),
        (0x87, "login_refused"),
        (0x88, "unreachable"),
        (0x9A, "unreachable"),
    ],
)
def test_refusals_of_connect(code: int, kind: Kind) -> None:
    assert refused("b:1", code, "Reason").kind == kind


@pytest.mark.parametrize(
    ("code", "said_by_broker", "during", "socket_error", "expected"),
    [
        (0x8E, True, "use", "", ("taken_over", "took it over")),
        (0x8E, False, "use", "", ("lost", "was lost: reason")),
        (0x80, False, "connect", "", ("silent", "before CONNACK")),
        (0x8D, False, "connect", "", ("mute", "does not answer")),
        (0x80, False, "connect", "it wants a client certificate", ("unreachable", "it wants a client certificate")),
        (0x80, False, "use", "TLS failed (x)", ("lost", "was lost: TLS failed (x)")),
        (0x80, False, "use", "", ("lost", "was lost")),
        (0x8B, True, "subscribe", "", ("lost", "was lost: reason")),
    ],
)
def test_ends_of_connections(
    code: int, said_by_broker: bool, during: During, socket_error: str, expected: tuple[Kind, str]
) -> None:
    ending = ending_of("b:1", code, "Reason", said_by_broker=said_by_broker, during=during, socket_error=socket_error)

    assert ending.kind == expected[0]
    assert ending.problem.endswith(expected[1])


def test_connect_says_who_we_are_and_how_much_we_take() -> None:
    read: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    read.unpack(introduction("1.2.3", 2**20).pack())

    assert dict(read.UserProperty) == {"bace-bridge": "1.2.3"}
    assert read.MaximumPacketSize == 2**20


def test_limits_are_what_connack_announces() -> None:
    class Announced:
        ReceiveMaximum = 20
        MaximumPacketSize = 1000
        MaximumQoS = 1
        RetainAvailable = 0

    assert limits(Announced(), Manner("5", 2)) == Limits(20, 1000, 1, retain=False)
    assert limits(None, Manner("5", 2)) == Limits()
    assert limits(None, Manner("3.1.1", 2, retain=False)) == Limits(20, retain=False)
    assert limits(None, Manner("3.1.1", 1)) == Limits(qos=1)


def outage() -> Outage:
    return Outage(structlog.get_logger())


def test_an_outage_is_told_once_and_its_waits_double_up_to_a_minute() -> None:
    with capture_logs() as logs:
        away, gone = outage(), Ending("unreachable", "")
        waits = [away.failed(gone, lasted=0, jitter=0) for _ in range(8)]
        away.connected()
        away.failed(gone, lasted=100, jitter=0)

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [log["event"] for log in logs] == ["mqtt.unreachable", "mqtt.connected", "mqtt.unreachable"]


def test_a_connection_that_held_starts_the_waits_anew_and_a_short_one_does_not() -> None:
    away = outage()
    lost = Ending("lost", "")
    with capture_logs() as logs:
        assert [away.failed(lost, lasted=seconds, jitter=0) for seconds in (3, 3, 3, 100)] == [1, 2, 4, 1]

    assert [log["event"] for log in logs] == ["mqtt.unreachable", "mqtt.connection_keeps_breaking"]


def test_a_refused_login_and_a_taken_over_session_wait_long_and_say_what_to_do() -> None:
    with capture_logs() as logs:
        away = outage()
        assert away.failed(Ending("login_refused", ""), lasted=0, jitter=0) == 30
        assert away.failed(Ending("login_refused", ""), lasted=0, jitter=0) == 60
        assert away.failed(Ending("taken_over", ""), lasted=0, jitter=0) == 60

    assert [log["event"] for log in logs] == ["mqtt.login_refused", "mqtt.taken_over"]
    assert all(log["hint"] for log in logs)


def test_a_client_id_that_is_fought_over_is_told_once_until_there_was_peace() -> None:
    with capture_logs() as logs:
        away = outage()
        for lasted in (3, 60, 60, 60, 900):
            assert away.failed(Ending("taken_over", ""), lasted=lasted, jitter=0) == 60
            away.connected()

    told = [log["event"] for log in logs if log["log_level"] == "warning"]
    assert told == ["mqtt.taken_over", "mqtt.taken_over"]


# --- which event it is that the broker answers by closing the connection


def suspicion() -> Suspicion:
    return Suspicion(structlog.get_logger(), explained=lambda: None)


def test_only_the_third_loss_with_the_same_oldest_event_and_nothing_acknowledged_makes_suspects() -> None:
    found = suspicion()
    for in_flight in (["a", "b", "c"], ["a", "b"], []):
        assert not found.blames(in_flight)
        assert not found.sent_alone("a")
    assert not found.blames(["a", "b", "d"])

    assert [one for one in "abcd" if found.sent_alone(one)] == ["a", "b"], "the others were not there each time"
    found.acknowledged("x")
    found.acknowledged("a")
    assert not found.sent_alone("a")
    assert found.blames(["b"])


@pytest.mark.parametrize("between", ["acknowledged", "another oldest"])
def test_progress_between_two_losses_clears_everybody(between: str) -> None:
    found = suspicion()
    for _ in range(5):
        for _ in range(2):
            assert not found.blames(["a", "b"])
        if between == "acknowledged":
            found.acknowledged("z")
        else:
            assert not found.blames(["b", "c"])

    assert not found.sent_alone("a")
    assert not found.sent_alone("b")


def test_the_blamed_event_is_sent_alone_until_it_is_acknowledged_and_the_others_are_free() -> None:
    found = suspicion()
    for _ in range(3):
        assert not found.blames(["a", "b"])
    assert found.blames(["a"])
    assert found.sent_alone("a")
    assert not found.sent_alone("b")
    assert found.blames(["a"]), "at once, since it is known"
    assert not found.blames(["b"])
    found.acknowledged("a")
    assert not found.sent_alone("a")


def test_the_last_suspect_s_acknowledgement_ends_the_suspicion() -> None:
    found = suspicion()
    for _ in range(3):
        found.blames(["a", "b"])
    found.acknowledged("a")
    found.acknowledged("b")

    assert not found.blames(["b"])
    assert not found.sent_alone("b")


def end_of(code: int, reason: str, *, said_by_broker: bool, during: During) -> Ending:
    return ending_of("b", code, reason, said_by_broker=said_by_broker, during=during, socket_error="")


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (end_of(0x80, "Unspecified error", said_by_broker=False, during="use"), True),
        (end_of(0x95, "Packet too large", said_by_broker=True, during="use"), True),
        (end_of(0x8B, "Server shutting down", said_by_broker=True, during="use"), False),
        (end_of(0x8D, "Keep alive timeout", said_by_broker=False, during="use"), False),
        (end_of(0x8E, "Session taken over", said_by_broker=True, during="use"), False),
        (end_of(0x00, "Success", said_by_broker=False, during="use"), False),
        (end_of(0x80, "Unspecified error", said_by_broker=False, during="connect"), False),
        (Ending("lost", "it does not acknowledge"), False),
    ],
)
def test_only_a_connection_that_the_broker_closes_may_be_about_a_message(ending: Ending, expected: bool) -> None:
    assert may_be_about_a_message(ending) is expected
