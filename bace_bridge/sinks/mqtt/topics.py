"""The topics of the contract, all below the base topic."""

import re
from typing import Literal

from bace_bridge.domain.mqtt_text import UNSENDABLE

Kind = Literal["availability", "session", "latest"]
"""What a device's retained topic says."""

_NOT_IN_A_LEVEL = re.compile(f"^\\$|[+#/%]|{UNSENDABLE.pattern}")
_WITH_A_MEANING = {"bridge", ".", ".."}
_DATATYPE = re.compile(r"-?\d+")


class Topics:
    def __init__(self, base: str) -> None:
        self.base = base
        self.bridge_state = f"{base}/bridge/state"
        self.bridge_info = f"{base}/bridge/info"
        self.bridge_health = f"{base}/bridge/health"
        self.bridge_devices = f"{base}/bridge/devices"
        self.bridge_event = f"{base}/bridge/event"
        self.of_every_bridge = frozenset((self.bridge_state, self.bridge_health))
        self.requests = f"{base}/bridge/request/+"
        self.guests = f"{base}/bridge/guest/+"
        self.states_of_devices = (f"{base}/+/availability", f"{base}/+/session", f"{base}/+/latest/+/+")
        self._event_topics: dict[str, str] = {}

    def request_name(self, topic: str) -> str:
        return topic.removeprefix(self.requests[:-1])

    def is_request(self, topic: str) -> bool:
        return topic.startswith(self.requests[:-1])

    def response(self, name: str) -> str:
        return f"{self.base}/bridge/response/{name}"

    def guest(self, installation: str) -> str:
        """Where a bridge says who it is while `bridge/info` names another one."""
        return self.guests[:-1] + installation

    def event(self, device: str) -> str:
        """There are a few devices and many events."""
        topic = self._event_topics.get(device)
        if topic is None:
            topic = self._event_topics[device] = f"{self.base}/{level(device)}/event"
        return topic

    def datapoints(self, device: str) -> str:
        return f"{self.base}/{level(device)}/datapoints"

    def availability(self, device: str) -> str:
        return f"{self.base}/{level(device)}/availability"

    def session(self, device: str) -> str:
        return f"{self.base}/{level(device)}/session"

    def latest(self, device: str, source_device: str, datatype: int) -> str:
        return f"{self.base}/{level(device)}/latest/{level(source_device)}/{datatype}"

    def kind(self, topic: str) -> Kind | None:
        """What a topic with the shape of a device's retained topic says; None for any other topic."""
        if not topic.startswith(f"{self.base}/"):
            return None
        match topic[len(self.base) + 1 :].split("/"):
            case ["bridge", *_]:
                return None
            case [_, "availability"]:
                return "availability"
            case [_, "session"]:
                return "session"
            case [_, "latest", _, datatype] if _DATATYPE.fullmatch(datatype):
                return "latest"
        return None


def level(name: str) -> str:
    """A name as one level of a topic: percent-encoded where MQTT, a broker or the contract gives a meaning to it.

    Different names are different levels. `bridge`, `.` and `..` are encoded as a whole.
    """
    if name in _WITH_A_MEANING:
        return "".join(f"%{ord(one):02X}" for one in name)
    return _NOT_IN_A_LEVEL.sub(_percent_encoded, name)


def _percent_encoded(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))
