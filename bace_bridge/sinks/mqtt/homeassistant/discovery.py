"""Discovery for Home Assistant: topics and payloads, in either mode, and those that move or remove entities. Pure."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.events.types import DeviceState
from bace_bridge.sinks.mqtt.config import HomeAssistantConfig
from bace_bridge.sinks.mqtt.homeassistant.entities import (
    Components,
    device_availability,
    escaped,
    of_bridge,
    of_device,
    whole,
)
from bace_bridge.sinks.mqtt.topics import Topics

MIGRATE: Final = b'{"migrate_discovery":true}'
"""On each topic of the other mode, before these are cleared: so entities keep their ids, names and disabled states."""

LARGEST = 2**20
"""Bytes of a payload at any broker: some take no packet of more, and do not say so."""

_BESIDE = 2048
"""Bytes that the rest of the packet takes at most: its topic is 1 KiB at most."""

_URL = "https://dashboard.bace-iot.com"
_PLATFORMS = ("binary_sensor", "button", "device_automation", "event", "sensor")
_SERIAL = re.compile(r"BaceGo-(\d[\d-]*)")


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
        self._left_out: dict[str, int] = {}
        self._ours = re.compile(
            re.escape(config.prefix) + rf"/(?:device/bace_[\w-]+|(?:{'|'.join(_PLATFORMS)})/bace_[\w-]+/[\w-]+)/config",
            re.ASCII,
        )

    @property
    def problem(self) -> str | None:
        """What is left out because no packet holds it."""
        if not self._left_out:
            return None
        name, most = max(self._left_out.items(), key=lambda one: one[1])
        more = f" (and more of {len(self._left_out) - 1} other devices)" if len(self._left_out) > 1 else ""
        return f"discovery leaves out {most} entities of {name}{more}: more than {self._largest} bytes"

    def is_discovery(self, topic: str) -> bool:
        """Whether it has the shape of a topic of ours under this prefix, in either mode."""
        return self._ours.fullmatch(topic) is not None

    def device(self, state: DeviceState, datatypes: Mapping[int, DatatypeConfig]) -> dict[str, bytes]:
        """The topics of a device with their payloads; none where discovery is not enabled."""
        if not self._config.enabled:
            return {}
        label = whole(state.label or "").strip()
        about: dict[str, Any] = {
            "ids": [f"bace_{escaped(state.device_id)}"],
            "name": label or f"BACE Go {whole(state.device_id)}",
            "mf": "BACE",
            "mdl": "BACE Go",
            "via_device": self._bridge,
        }
        if serial := _SERIAL.fullmatch(label):
            about["sn"] = serial[1]
        components = of_device(state, self._topics, datatypes, keep=self._config.after_session == "keep")
        return self._topics_of(about, device_availability(state.device_id, self._topics), components)

    def bridge(self, sinks: Collection[str]) -> dict[str, bytes]:
        """The topics of the bridge's own device, as above; `sinks` are the names of all sinks."""
        if not self._config.enabled:
            return {}
        about = {
            "ids": [self._bridge], "name": "BACE bridge", "mf": "bace-bridge", "mdl": "Bridge", "sw": self._version,
        }  # fmt: skip
        components = of_bridge(self._topics, sinks, requests=self._requests)
        return self._topics_of(about, [{"t": self._topics.bridge_state}], components)

    def _topics_of(
        self, about: dict[str, Any], availability: list[dict[str, str]], components: Components
    ) -> dict[str, bytes]:
        (identifier,) = about["ids"]
        common = {"dev": about, "o": {"name": "bace-bridge", "sw": self._version, "url": _URL}}
        shown = {"avty": availability, "avty_mode": "all"}
        for key, component in components.items():
            component["qos"] = 1
            if component["p"] != "device_automation":
                component["uniq_id"] = f"{identifier}_{key}"
        prefix = self._config.prefix
        if self._config.mode == "component":
            return {
                f"{prefix}/{one['p']}/{identifier}/{key}/config": msgspec.json.encode(
                    {**common, **(shown if one["p"] != "device_automation" else {}), **one}
                )
                for key, one in components.items()
            }
        return {f"{prefix}/device/{identifier}/config": msgspec.json.encode({**common, **shown, "cmps": components})}


class _Payload(msgspec.Struct):
    cmps: dict[str, dict[str, Any]] = {}


def components_of(payload: bytes) -> dict[str, str]:
    """The components of a device's payload: each key with its platform."""
    return {key: one["p"] for key, one in msgspec.json.decode(payload, type=_Payload).cmps.items()}


def removal(payload: bytes, gone: Mapping[str, str]) -> bytes:
    """The payload that removes the components that are `gone`, by key and platform; after it comes `payload` alone."""
    return _with(payload, {key: {"p": platform} for key, platform in gone.items()})


def revival(payload: bytes, gone: Mapping[str, str]) -> bytes:
    """The payload with the components that are `gone`, whole: one that Home Assistant has missed is removed only so."""
    return _with(payload, {key: {"p": platform} for key, platform in gone.items()})


def _with(payload: bytes, more: Mapping[str, Any]) -> bytes:
    whole_payload = msgspec.json.decode(payload)
    whole_payload["cmps"] = {**more, **whole_payload["cmps"]}
    return msgspec.json.encode(whole_payload)
