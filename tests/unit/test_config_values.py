import base64
import math
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from bace_bridge.config.models import FILE_MODEL, CloudConfig, Config, HttpConfig, StoreConfig, WatchConfig, warnings
from bace_bridge.config.values import (
    StartFrom,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    parse_start_from,
    secrets_of,
)
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.mqtt.config import MqttConfig, TlsConfig
from bace_bridge.sinks.webhook.config import WebhookConfig

SECRET = "whsec_" + "A" * 40


def configured(**sections: object) -> Config:
    return FILE_MODEL.model_validate(sections)


def webhook(**given: Any) -> WebhookConfig:
    return WebhookConfig.model_validate({"name": "w", "url": "https://h/x", "secret": SECRET, **given})


def broker(url: str, **given: Any) -> MqttConfig:
    return MqttConfig.model_validate({"name": "m", "url": url, **given})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("10s", 10.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("7d", 604_800.0),
        ("250ms", 0.25),
        ("1m30s", 90.0),
        ("0.5s", 0.5),
        (3, 3.0),
        (0.25, 0.25),
        ("90", 90.0),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds
    assert WatchConfig.model_validate({"session_interval": written}).session_interval == seconds


@pytest.mark.parametrize(
    "written",
    ["", "0s", 0, -1, "-1s", "10 s", "s", "1w", True, None, [], "1e3", math.nan, math.inf, "99999d", 1e-300, 10**400],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be a duration such as 10s, 5m or 7d"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("1 GiB", 2**30),
        ("1.5GiB", 3 * 2**29),
        ("500MB", 500_000_000),
        ("20kB", 20_000),
        ("3TB", 3 * 10**12),
        ("1048576", 2**20),
        (" 7B ", 7),
        (5, 5),
    ],
)
def test_sizes(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["", "1G", "1gib", "-1MiB", "MiB", "1,5GiB", True, 1.5, None, -1, []])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as 512MiB, 2GiB or 500MB"):
        parse_size(written)


@given(st.integers(0, 2**60))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=1, max_value=86_400_000 * 400))
def test_a_formatted_duration_reads_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("written", "start"),
    [
        ("now", StartFrom("now")),
        ("all", StartFrom("all")),
        ("7d", StartFrom("ago", 604_800.0)),
        ("1970-01-02T00:00:00Z", StartFrom("since", 86_400.0)),
        ("1970-01-02T01:00:00+01:00", StartFrom("since", 86_400.0)),
        ("1970-01-02", StartFrom("since", 86_400.0)),
    ],
)
def test_start_from(written: str, start: StartFrom) -> None:
    assert WatchConfig.model_validate({"start_from": written}).start_from == start


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_a_date_begins_at_midnight_in_utc_wherever_the_machine_is() -> None:
    assert time.timezone == -9 * 3600, "or this shows nothing"
    for written in ("1970-01-02", date(1970, 1, 2)):
        assert parse_start_from(written) == StartFrom("since", 86_400.0)


@pytest.mark.parametrize("written", ["", "later", 7, "2026", "1970-01-02T00:00:00", "1970-13-01"])
def test_what_is_no_start_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        WatchConfig.model_validate({"start_from": written})


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("mqtt://h", ("h", 1883, "/mqtt", False, False)),
        ("mqtts://h", ("h", 8883, "/mqtt", True, False)),
        ("ws://h/", ("h", 80, "/", False, True)),
        ("wss://h:444/a/b", ("h", 444, "/a/b", True, True)),
        ("mqtt://[::1]:99", ("::1", 99, "/mqtt", False, False)),
    ],
)
def test_broker_urls(url: str, parts: tuple[str, int, str, bool, bool]) -> None:
    assert broker(url).address == parts


@pytest.mark.parametrize(
    "url",
    [
        "h:1883",
        "http://h",
        "mqtt://",
        "mqtt://u:geheim@h",
        "mqtt://h:0",
        "mqtt://h:70000",
        "mqtt://h:x",
        "mqtt://h/topic",
        "mqtt://[h",
        "mqtt://h h",
        "wss://h/x?token=geheim",
    ],
)
def test_broker_urls_that_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        broker(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"base_topic": "a/#"},
        {"base_topic": "/a"},
        {"base_topic": "a/"},
        {"base_topic": ""},
        {"protocol": 4},
        {"protocol": True},
        {"qos": 3},
        {"qos": True},
        {"max_in_flight": 0},
        {"max_in_flight": 65536},
        {"keepalive": "250ms"},
        {"events": []},
        {"events": ["session.strted"]},
        {"name": "a b"},
        {"client_id": ""},
    ],
)
def test_broker_settings_that_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        broker("mqtt://h", **given)


def test_protocol_and_event_globs() -> None:
    assert broker("mqtt://h", protocol=5).protocol == "5"
    assert broker("mqtt://h", protocol="3.1.1").protocol == "3.1.1"
    assert broker("mqtt://h", events=["session.*", "alert.firing"]).events == ("session.*", "alert.firing")


def test_webhook_secrets() -> None:
    shortest = "whsec_" + base64.b64encode(b"x" * 24).decode()
    longest = "whsec_" + base64.b64encode(b"x" * 64).decode()
    found = webhook(secret=[shortest, longest]).secret
    assert [secret.get_secret_value() for secret in found or ()] == [shortest, longest]
    assert webhook(secret=f"{shortest}\n{longest}").secret == found
    assert webhook(secret=[f"{shortest} ", f"\t{longest}\r"]).secret == found, "as in files and in a single text"


@pytest.mark.parametrize(
    "secret",
    [
        "geheim",
        "whsec_geheim!",
        "A" * 40,
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        [],
        "",
        7,
        "whsec_äöü",
    ],
)
def test_webhook_secrets_that_are_refused(secret: object) -> None:
    with pytest.raises(ValidationError) as caught:
        webhook(secret=secret)
    assert "geheim" not in str(caught.value)
    assert "must be a list" not in str(caught.value)


@pytest.mark.parametrize("name", ["Content-Type", "webhook-id", "HOST", "a b", "", "Content-Length"])
def test_headers_that_the_bridge_sets_itself_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        webhook(headers={name: "x"})


def test_header_values_are_single_lines_and_secret() -> None:
    with pytest.raises(ValidationError):
        webhook(headers={"X-A": "a\r\nHost: b"})
    assert "geheim" not in repr(webhook(headers={"Authorization": "geheim"}))


def test_a_webhooks_url_is_a_secret_and_only_its_host_is_shown() -> None:
    sink = webhook(url="https://u:p@Example.org:8443/geheim?a=geheim")
    assert sink.host == "example.org:8443"
    assert webhook(url="http://[::1]/x").host == "[::1]"
    assert "geheim" not in repr(sink)


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:8099", "::1", 8099),
        ("[fe80::1%lo]:1", "fe80::1%lo", 1),
        ("my_host.lan.:1", "my_host.lan.", 1),
        ("", "", 0),
    ],
)
def test_listen(listen: str, host: str, port: int) -> None:
    http = HttpConfig(listen=listen)
    assert (http.host, http.port, http.enabled) == (host, port, bool(listen))


@pytest.mark.parametrize(
    "listen",
    [
        "8099", ":8099", "h:", "h:x", "h:99999", "::1:8099", "h :1", "h:-1",
        "256.1.1.1:1", "1.2.3.4.5:1", "a..b:1", "-:1", "%:1", "[zz]:1", "[127.0.0.1]:1", "x" * 64 + ":1",
    ],
)  # fmt: skip
def test_listen_addresses_that_are_refused(listen: str) -> None:
    with pytest.raises(ValidationError):
        HttpConfig(listen=listen)


def test_store() -> None:
    assert StoreConfig(url="sqlite:////var/lib/b.db").path == Path("/var/lib/b.db")
    assert StoreConfig(url="sqlite:///a/b.db").path == Path("a/b.db")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://b.db", "sqlite:///", "sqlite:///:memory:", "b.db", "sqlite:///a/", "sqlite:///a/..", "sqlite:///a\0b",
        "sqlite:///" + "ä" * 128, "sqlite:///" + "a/" * 2000 + "b",
    ],
)  # fmt: skip
def test_stores_that_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="must name an SQLite file"):
        StoreConfig(url=url)


def test_postgresql_is_refused_with_a_hint_that_repeats_no_password() -> None:
    with pytest.raises(ValidationError, match="this version stores in SQLite only") as caught:
        StoreConfig(url="postgresql://u:geheim@h/d")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["dashboard", "ftp://h", "https://u:p@h", "https://h?x=1", "https://"])
def test_cloud_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        CloudConfig(url=url)


def test_the_cloud_url_loses_its_last_slash() -> None:
    assert CloudConfig(url="http://localhost:8180/").url == "http://localhost:8180"


def test_every_secret_is_known_to_the_redaction() -> None:
    config = configured(
        cloud=CloudConfig(access_token=SecretStr("t0ken"), password=SecretStr("abc")),
        mqtt=(broker("mqtt://h", username="u", password="mqttpass"),),
        webhooks=(webhook(url="https://u:hunter22@h/services/T000/B000/XYZ", headers={"X-Key": "headerkey"}),),
    )
    assert secrets_of(config) == {
        "t0ken",
        "abc",
        "mqttpass",
        "https://u:hunter22@h/services/T000/B000/XYZ",
        "/services/T000/B000/XYZ",
        "u",
        "hunter22",
        "services",
        "headerkey",
        SECRET,
        SECRET.removeprefix("whsec_"),
    }


@pytest.mark.parametrize(
    ("url", "parts", "words"),
    [
        ("https://h/hook/8-letters", {"8-letters", "/hook/8-letters"}, {"hook", "h"}),
        ("https://h/x?sig=aB%2B&v=1", {"aB%2B", "sig=aB%2B&v=1", "/x?sig=aB%2B&v=1"}, {"1", "x"}),
        ("https://h/?api_key=k&page=longer-than-7", {"k", "longer-than-7"}, set()),
        ("https://p%40ss@h/", {"p@ss"}, set()),
    ],
)
def test_the_parts_of_a_url_that_may_be_credentials(url: str, parts: set[str], words: set[str]) -> None:
    found = secrets_of(webhook(url=url))
    assert parts <= found
    assert not words & found


def test_what_a_header_carries_after_its_scheme_is_secret_too() -> None:
    headers = {"Authorization": "Bearer t0ken", "X-Login": "Basic dXNlcjpodW50ZXIyMg=="}
    assert {"t0ken", "Bearer t0ken", "dXNlcjpodW50ZXIyMg==", "hunter22"} <= secrets_of(webhook(headers=headers))


@pytest.mark.parametrize(
    "value",
    [
        "session=T0kenT0ken; theme=dark",
        'Digest username="x", response="T0kenT0ken"',
        "SharedAccessSignature sr=x&sig=T0kenT0ken&se=1",
        "AWS4-HMAC-SHA256 Signature=T0kenT0ken",
        "Api-Key T0kenT0ken",
        "key:T0kenT0ken",
    ],
)
def test_a_receiver_may_repeat_a_piece_of_a_header(value: str) -> None:
    found = secrets_of(webhook(headers={"X-Login": value}))
    assert Redaction(found)("no session T0kenT0ken") == "no session ***"


@pytest.mark.parametrize("end", ["bot1:T0kenT0ken/send", "a;T0kenT0ken", "x,T0kenT0ken", "?s=v1%2CT0kenT0ken"])
def test_a_receiver_may_repeat_a_piece_of_its_url(end: str) -> None:
    found = secrets_of(webhook(url=f"https://receiver.example/{end}"))
    assert Redaction(found)("no T0kenT0ken at receiver.example") == "no *** at receiver.example"


def test_warnings_name_what_they_are_about() -> None:
    config = configured(
        cloud=CloudConfig(url="http://dashboard.example.org", access_token=SecretStr("t")),
        watch=WatchConfig(start_from=StartFrom("since", 1)),
        mqtt=(
            broker("mqtt://broker.lan", username="u", password="p"),
            broker("mqtts://h", tls=TlsConfig(insecure=True)),
            broker("mqtt://localhost", tls=TlsConfig(insecure=True)),
            broker("mqtt://broker.example.org"),
        ),
        webhooks=(webhook(url="http://example.org/geheim"), webhook(url="http://192.168.1.2/x")),
        http=HttpConfig(listen="0.0.0.0:8099"),
    )
    found = warnings(config, now=0)
    assert [line.split(": ")[0] for line in found] == [
        "cloud.url",
        "cloud.access_token",
        "watch.start_from",
        "http.listen",
        "mqtt[0].url",
        "mqtt[1].tls.insecure",
        "mqtt[2].tls",
        "mqtt[3].url",
        "webhooks[0].url",
    ]
    assert not any("geheim" in line for line in found)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, []),
        ({"home_assistant": {"enabled": True, "prefix": "ha"}}, []),
        ({"events": ["*", "s*", "session.*"]}, []),
        ({"events": ["alert.*"]}, ["mqtt[0].events[0]"]),
        ({"events": ["session.*", "alert.firing", "a*", "*.resolved"]}, [f"mqtt[0].events[{n}]" for n in (1, 2, 3)]),
    ],
)
def test_what_has_no_effect_yet_is_warned_about(given: dict[str, Any], found: list[str]) -> None:
    config = configured(cloud=CloudConfig(), mqtt=(broker("mqtt://localhost", **given),))
    warned = warnings(config, now=0)
    assert [line.split(": ")[0] for line in warned] == found
    assert all("has no effect yet" in line for line in warned)


def test_a_webhook_s_events_that_no_version_sends_yet_are_warned_about_too() -> None:
    config = configured(cloud=CloudConfig(), webhooks=(webhook(events=["session.ended", "alert.*"]),))
    assert warnings(config, now=0) == [
        "webhooks[0].events[1]: 'alert.*' has no effect yet: this version sends no such events"
    ]


@pytest.mark.parametrize("events", ["alert.firng", "alerts.*", "nothing", "session.strted"])
def test_no_hint_offers_events_that_no_version_sends_yet(events: str) -> None:
    with pytest.raises(ValidationError) as caught:
        broker("mqtt://h", events=[events])
    hint = caught.value.errors()[0]["ctx"]["hint"]
    assert "alert" not in hint
    assert "session.started" in hint


def test_a_label_in_a_sinks_groups_which_takes_ids_alone_is_warned_about() -> None:
    groups = ["6fd58d2a-5b9f-4d8e-9a51-0d5f6f1c9f30", "BaceGo-001-002-00020"]
    cloud, mqtt = CloudConfig(groups=tuple(groups)), broker("mqtt://localhost", groups=groups)
    warned = warnings(configured(cloud=cloud, mqtt=(mqtt,), webhooks=(webhook(groups=groups),)), now=0)
    assert [line.split(": ")[0] for line in warned] == ["mqtt[0].groups[1]", "webhooks[0].groups[1]"]
    assert "'BaceGo-001-002-00020' is not an id_group" in warned[0]


def test_nothing_to_warn_about() -> None:
    assert warnings(configured(cloud=CloudConfig(), webhooks=(webhook(),)), now=0) == []
    nobody = "mqtt, webhooks: there are no sinks, so no events will be delivered"
    assert warnings(configured(cloud=CloudConfig()), now=0) == [nobody]
