"""Discovery for Home Assistant: topics and payloads, in either mode, and those that move or remove entities. Pure."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.events.types import SESSION_STARTED, DeviceState
from bace_bridge.formats import LONGEST_TOPIC
from bace_bridge.sinks.mqtt.config import HomeAssistantConfig
from bace_bridge.sinks.mqtt.homeassistant.entities import (
    Component,
    Components,
    availability_of,
    escaped,
    of_bridge,
    of_device,
    shown,
)
from bace_bridge.sinks.mqtt.topics import Topics

MIGRATE: Final = b'{"migrate_discovery":true}'
"""On each topic of the other mode, before these are cleared: so entities keep their ids, names and disabled states."""

LARGEST = 2**20
"""Bytes of a packet at any broker: some take no larger one, and do not say so."""

_BESIDE = LONGEST_TOPIC + 1024
"""Bytes of a packet beside its payload, at most."""

URL = "https://dashboard.bace-iot.com"
_PLATFORMS = ("binary_sensor", "button", "device_automation", "event", "sensor")
_SERIAL = re.compile(r"BaceGo-([0-9]+(?:-[0-9]+)+)")


class Discovery:
    """`largest` is what the broker takes as a packet, in bytes, None where it does not say.

    `installation` is this bridge's own name, and `requests` says whether it takes requests.
    """

    def __init__(
        self,
        config: HomeAssistantConfig,
        topics: Topics,
        *,
        installation: str,
        version: str,
        requests: bool,
        largest: int | None,
    ) -> None:
        self._config = config
        self._topics = topics
        self._requests = requests
        self._bridge = f"bace_bridge_{escaped(installation)}"
        self._version = version
        self._largest = max(0, min(LARGEST, largest or LARGEST) - _BESIDE)
        self._left_out: dict[str, tuple[int, str]] = {}
        platforms = "|".join(_PLATFORMS)
        self._ours = re.compile(
            rf"{re.escape(config.prefix)}/(?:device/bace_[\w-]+|(?:{platforms})/bace_[\w-]+/[\w-]+)/config", re.ASCII
        )

    @property
    def problem(self) -> str | None:
        """What is left out because it does not fit into a packet."""
        if not self._left_out:
            return None
        most, name = max(self._left_out.values())
        others = len(self._left_out) - 1
        more = f", and some of {others} more" if others else ""
        return (
            f"discovery for Home Assistant leaves out {most} entities of {name}{more}: more than {self._largest} bytes"
        )

    def is_discovery(self, topic: str) -> bool:
        """Whether it has the shape of a topic of ours under this prefix, in either mode."""
        return self._ours.fullmatch(topic) is not None

    def device(self, state: DeviceState, datatypes: Mapping[int, DatatypeConfig]) -> dict[str, bytes]:
        """The topics of a device with their payloads; none where discovery is not enabled."""
        if not self._config.enabled:
            return {}
        components = of_device(state, self._topics, datatypes, keep=self._config.after_session == "keep")
        label = shown(state.label)
        about = {
            "ids": [f"bace_{escaped(state.device_id)}"],
            "name": label,
            "mf": "BACE",
            "mdl": "BACE Go",
            "via_device": self._bridge,
        }
        # Home Assistant puts the device's name before that of an entity: one must not begin with the other.
        if not label or any(one.get("name", "").casefold().startswith(label.casefold()) for one in components.values()):
            about["name"] = f"BACE Go {label or shown(state.device_id)}".rstrip()
        if serial := _SERIAL.fullmatch(label):
            about["sn"] = serial[1]
        return self._topics_of(about, availability_of(state.device_id, self._topics), components)

    def bridge(self, sinks: Collection[str]) -> dict[str, bytes]:
        """The topics of the bridge's own device, as above; `sinks` are the names of all sinks."""
        if not self._config.enabled:
            return {}
        about = {
            "ids": [self._bridge],
            "name": "BACE bridge",
            "mf": "bace-bridge",
            "mdl": "Bridge",
            "sw": self._version,
        }
        components = of_bridge(self._topics, sinks, requests=self._requests)
        return self._topics_of(about, [{"t": self._topics.bridge_state}], components)

    def _topics_of(
        self, about: dict[str, Any], availability: list[dict[str, str]], components: Components
    ) -> dict[str, bytes]:
        (identifier,) = about["ids"]
        common = {"dev": about, "o": {"name": "bace-bridge", "sw": self._version, "url": URL}}
        available = {"avty": availability, "avty_mode": "all"}
        encoded = {}
        for key, one in components.items():
            whole: Component = {**one, "qos": 1}
            if one["p"] != "device_automation":
                whole["uniq_id"] = f"{identifier}_{key}"
            if self._config.mode == "component":
                whole = {**common, **(available if "uniq_id" in whole else {}), **whole}
            encoded[key] = msgspec.json.encode(whole)
        if self._config.mode == "component":
            fitting = {key: one for key, one in encoded.items() if len(one) <= self._largest}
            topics = {f"{components[key]['p']}/{identifier}/{key}": one for key, one in fitting.items()}
        else:
            fitting, room = {}, self._largest - len(msgspec.json.encode({**common, **available})) - len(b',"cmps":{}')
            for key, component in encoded.items():
                room -= len(key) + len(component) + len(b'"":,')
                if room < 0:
                    break
                fitting[key] = component
            payload = {**common, **available, "cmps": {key: msgspec.Raw(one) for key, one in fitting.items()}}
            topics = {f"device/{identifier}": msgspec.json.encode(payload)} if fitting else {}
        self._left_out.pop(identifier, None)
        if len(fitting) < len(components):
            self._left_out[identifier] = (len(components) - len(fitting), about["name"])
        return {f"{self._config.prefix}/{topic}/config": payload for topic, payload in topics.items()}


class _Payload(msgspec.Struct):
    cmps: dict[str, dict[str, Any]] = {}


def components_of(topic: str, payload: bytes) -> dict[str, str]:
    """What a payload of ours announces on its topic, in either mode: the keys of components with their platforms."""
    if not payload:
        return {}
    *_, platform, node, key, _config = ("", *topic.split("/"))
    if node != "device":
        return {key: platform}
    return {key: str(one["p"]) for key, one in msgspec.json.decode(payload, type=_Payload).cmps.items()}


def removal(payload: bytes, gone: Mapping[str, str]) -> bytes:
    """A device's payload that removes the components that are `gone`, by key and platform; then comes `payload`."""
    return _with(payload, {key: {"p": platform} for key, platform in gone.items()})


def revival(payload: bytes, gone: Mapping[str, str]) -> bytes:
    """A device's payload with the components that are `gone` as whole ones, as far as Home Assistant cares.

    One that left the payload while Home Assistant was down stays there for ever: it is removed only after this.
    """
    (identifier,) = msgspec.json.decode(payload)["dev"]["ids"]
    return _with(payload, {key: _whole(identifier, key, platform) for key, platform in gone.items()})


def ghost(topic: str, components: Mapping[str, str]) -> bytes:
    """A payload for a discovery topic that was cleared while Home Assistant was down; cleared again, it takes effect.

    `components` are those that it has announced, by key and platform.
    """
    *_, identifier, last, _config = topic.split("/")
    of_device = identifier == "device"
    if of_device:
        identifier = last
    about = {"dev": {"ids": [identifier]}, "o": {"name": "bace-bridge"}}
    whole = {key: _whole(identifier, key, platform) for key, platform in components.items()}
    return msgspec.json.encode(about | ({"cmps": whole} if of_device else whole[last]))


def _with(payload: bytes, more: Components) -> bytes:
    whole = msgspec.json.decode(payload)
    whole["cmps"] = {**more, **whole["cmps"]}
    return msgspec.json.encode(whole)


def _whole(identifier: str, key: str, platform: str) -> Component:
    """The least that Home Assistant takes for a whole component; its topic is one that nobody publishes on."""
    if platform == "device_automation":
        return {"p": platform, "atype": "trigger", "t": identifier, "type": key, "stype": identifier}
    topic = {"cmd_t": identifier} if platform == "button" else {"stat_t": identifier}
    types = {"evt_typ": [SESSION_STARTED]} if platform == "event" else {}
    return {"p": platform, "uniq_id": f"{identifier}_{key}", **topic, **types}
