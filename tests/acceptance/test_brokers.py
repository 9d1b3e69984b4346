"""The real process at brokers of every kind: what `check` lets pass `run` can use, and what it cannot use is named."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.line import Process, configuration, until
from tests.acceptance.test_hostile_mqtt import RESPONSE, SOON, bridge_at
from tests.integration.brokers import Certificates, Mosquitto, listening
from tests.integration.peers import speaking
from tests.integration.scripted_broker import Script, scripted
from tests.integration.test_mqtt_hostile import asked_for

NewMosquitto = Callable[..., Mosquitto]


async def says(bridge: Process, text: str) -> None:
    await until(lambda: text in bridge.log, within=SOON, what=text)


# --- what the broker does not take


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_subscription_on_which_the_broker_closes_the_connection(tmp_path: Path, protocol: str) -> None:
    script = Script(closes_on_subscribing="bace/bridge/request/+")
    async with scripted(script) as broker, bridge_at(tmp_path, broker.port, protocol=protocol) as bridge:
        await says(bridge, "mqtt.connected")
        await until(lambda: any("bridge/state" in one.topic for one in broker.published), within=SOON, what="the state")
    assert bridge.log.count('"mqtt.requests_refused"') == 1


@pytest.mark.parametrize("lacks", ["retain_available false", "max_qos 0"])
async def test_3_1_1_at_a_mosquitto_that_takes_less(tmp_path: Path, new_mosquitto: NewMosquitto, lacks: str) -> None:
    mosquitto = new_mosquitto(listener=(lacks,)) if lacks.startswith("max") else new_mosquitto(lacks)
    with listening(mosquitto.port, "bace/bridge/state") as listener:
        async with bridge_at(tmp_path, mosquitto.port, protocol="3.1.1") as bridge:
            await says(bridge, "mqtt.connected")
            await until(lambda: b"online" in listener.payloads("bace/bridge/state"), within=SOON, what="it is online")


async def test_a_slow_broker_is_still_spoken_to_in_5(tmp_path: Path) -> None:
    async with scripted(Script(connack_after=6.4)) as broker, bridge_at(tmp_path, broker.port) as bridge:
        await says(bridge, "mqtt.connected")
    assert set(broker.versions) == {5}


# --- what cannot be used


def refused(folder: Path, mqtt: dict[str, Any], *said: str) -> None:
    """By `check` as by `run`, which asks nobody for anything."""
    path = configuration(folder, cloud_url="http://127.0.0.1:9", mqtt_port=9)
    settings = json.loads(path.read_text())
    settings["mqtt"][0] |= mqtt
    path.write_text(json.dumps(settings))
    for name in ("check", "run"):
        ended = subprocess.run(
            [sys.executable, "-m", "bace_bridge", name, "-c", str(path)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False, start_new_session=True,
        )  # fmt: skip
        assert ended.returncode == 78
        assert all(one in ended.stdout + ended.stderr for one in said)
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("text", ["bace\n", "ba\x01ce", "ba\tce", "bace\ufffe", "x" * 70_000])
def test_a_text_that_brokers_refuse(tmp_path: Path, text: str) -> None:
    keys = ("base_topic", "client_id", "username")
    refused(tmp_path, dict.fromkeys(keys, text), *(f"mqtt[0].{key}: " for key in keys))


def test_a_base_topic_of_too_many_levels(tmp_path: Path) -> None:
    refused(tmp_path, {"base_topic": "/".join("x" * 201)}, "mqtt[0].base_topic: has more than 196 levels")


@pytest.mark.parametrize(
    ("key", "said"),
    [("encrypted", "is encrypted"), ("server_key", "is not the key of the certificate"), ("empty", "no certificate")],
)
def test_files_of_tls(tmp_path: Path, certificates: Certificates, key: str, said: str) -> None:
    tls = {"ca_file": certificates.ca, "cert_file": certificates.client, "key_file": certificates.client_key}
    match key:
        case "encrypted":
            encrypted = tmp_path / "encrypted.key"
            command = ["openssl", "pkey", "-in", str(certificates.client_key), "-aes256", "-passout", "pass:words"]
            subprocess.run([*command, "-out", str(encrypted)], check=True, capture_output=True)
            tls["key_file"] = encrypted
        case "server_key":
            tls["key_file"] = certificates.server_key
        case _:
            tls["ca_file"] = tmp_path / "empty.pem"
            tls["ca_file"].touch()
    files = {name: str(path) for name, path in tls.items()}
    refused(tmp_path, {"url": "mqtts://localhost:9", "tls": files}, said)


async def test_a_client_certificate_that_the_broker_wants(
    tmp_path: Path, new_mosquitto: NewMosquitto, certificates: Certificates
) -> None:
    lines = (f"certfile {certificates.server}", f"keyfile {certificates.server_key}", f"cafile {certificates.ca}")
    mosquitto = new_mosquitto(extra_listener=(*lines, "require_certificate true"))
    url, tls = f"mqtts://localhost:{mosquitto.extra_port}", {"ca_file": str(certificates.ca)}
    async with bridge_at(tmp_path, 9, url=url, tls=tls) as bridge:
        await says(bridge, "it wants a client certificate (tls.cert_file and tls.key_file)")


async def test_the_status_of_a_websocket_over_ipv6(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def like_nginx(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        status = b"403 Forbidden" if f"Host: [::1]:{port}\r\n".encode() in heads[0] else b"400 Bad Request"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with (
        speaking(like_nginx, host="::1") as port,
        bridge_at(tmp_path, 9, url=f"ws://[::1]:{port}/mqtt") as bridge,
    ):
        await says(bridge, "answers the WebSocket upgrade with HTTP 403")


# --- requests


async def test_requests_that_would_make_the_bridge_harm_itself(tmp_path: Path, new_mosquitto: NewMosquitto) -> None:
    topics = ["$SYS/x", "$share/g/x", "/".join("x" * 300), "bace/bridge/state", "bace/bridge/info", "a/+/b"]
    mosquitto = new_mosquitto()
    with listening(mosquitto.port, "bace/bridge/state", "bace/bridge/info", "bace/bridge/response/+") as listener:
        async with bridge_at(tmp_path, mosquitto.port) as bridge:
            await until(lambda: bool(listener.on("bace/bridge/info")), within=SOON, what="the bridge is online")
            for topic in topics:
                listener.publish("bace/bridge/request/info", b"{}", properties=asked_for(topic))
            for level in (b"[]", b"{}", b"null", b"1e999", b'"\xff"', b"[" * 5000):
                listener.publish("bace/bridge/request/log_level", b'{"level": %b}' % level)
            log_level = RESPONSE.replace("info", "log_level")
            await until(lambda: len(listener.on(log_level)) == 6, within=SOON, what="an answer to each")
            answers = [json.loads(one) for one in listener.payloads(RESPONSE) + listener.payloads(log_level)]
            assert [one["status"] for one in answers] == 12 * ["error"]
            assert listener.payloads("bace/bridge/state") == [b"online"]
            assert len(listener.on("bace/bridge/info")) == 1
        assert bridge.log.count("mqtt.connected") == 1
        assert "Traceback" not in bridge.log
