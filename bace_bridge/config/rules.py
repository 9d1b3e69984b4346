"""What must hold between keys. The rules read the raw sections, so other mistakes do not silence them."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from bace_bridge.config.mqtt import MqttConfig
from bace_bridge.errors import Mistake

_LOGIN = ("client_id", "client_secret", "username", "password")


def mistakes_between(raw: dict[Any, Any]) -> list[Mistake]:
    sinks = [*_entries(raw, "mqtt"), *_entries(raw, "webhooks")]
    brokers = _entries(raw, "mqtt")
    return [*_login(raw.get("cloud")), *_names(sinks), *_mqtt_logins(brokers), *_brokers(brokers)]


def _entries(raw: dict[Any, Any], section: str) -> list[tuple[str, dict[Any, Any]]]:
    entries = raw.get(section)
    if not isinstance(entries, list):
        return []
    return [(f"{section}[{index}]", entry) for index, entry in enumerate(entries) if isinstance(entry, dict)]


def _login(cloud: Any) -> Iterator[Mistake]:
    if not isinstance(cloud, dict):
        return
    given = [key for key in _LOGIN if cloud.get(key) is not None]
    missing = [key for key in _LOGIN if key not in given]
    if cloud.get("access_token") is not None:
        if given:
            hint = "keep either the access token or the login"
            yield Mistake("cloud.access_token", f"is given besides {', '.join(given)}", hint)
    elif missing:
        hint = "or give access_token instead of client_id, client_secret, username and password"
        yield Mistake("cloud", f"lacks {', '.join(missing)}", hint)


def _names(sinks: list[tuple[str, dict[Any, Any]]]) -> Iterator[Mistake]:
    first: dict[str, str] = {}
    for path, sink in sinks:
        name = sink.get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            hint = "what a sink has got so far is kept under its name, so no two may share one"
            yield Mistake(f"{path}.name", f"{name!r} is the name of {first[name]} as well", hint)
        first.setdefault(name, path)


def _mqtt_logins(brokers: list[tuple[str, dict[Any, Any]]]) -> Iterator[Mistake]:
    for path, sink in brokers:
        if sink.get("password") is not None and sink.get("username") is None:
            yield Mistake(f"{path}.username", "is missing, while a password is given")
        tls = sink.get("tls")
        if isinstance(tls, dict) and tls.get("key_file") is not None and tls.get("cert_file") is None:
            yield Mistake(f"{path}.tls.cert_file", "is missing, while key_file is given")


def _brokers(brokers: list[tuple[str, dict[Any, Any]]]) -> Iterator[Mistake]:
    """Sinks on the same topics would undo each other's state; with one client id, throw each other out."""
    first: dict[tuple[object, ...], str] = {}
    for path, sink in brokers:
        address = _address(sink.get("url"))
        if address is None:
            continue
        for key, value in (
            ("base_topic", sink.get("base_topic") or "bace"),
            ("client_id", sink.get("client_id")),
        ):
            if not isinstance(value, str):
                continue
            other = first.setdefault((*address, key, value), path)
            if other != path:
                yield Mistake(f"{path}.{key}", f"{other} has the same {key} at the same broker", "choose another")


def _address(url: Any) -> tuple[str, int] | None:
    try:
        sink = MqttConfig(name="any", url=url)
    except ValidationError:
        return None
    return sink.host, sink.port
