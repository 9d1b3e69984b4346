"""What has arrived so far: the state behind the picture and the lines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bace_bridge.demo.arrivals import Arrival, from_mqtt, from_webhook, topic_pattern

_KEPT = 200
"""Events that may still be waited for on their other way."""


@dataclass
class Shown:
    """An event and the ways on which it has arrived; `at` is when it first did (epoch seconds)."""

    at: float
    type: str
    device: str
    detail: str
    topic: str | None = None
    signed: bool | None = None

    @property
    def complete(self) -> bool:
        return self.topic is not None and self.signed is not None


@dataclass
class Device:
    """A device as its retained topics show it; `values` by series: name, value and unit."""

    label: str
    available: bool = False
    state: str = ""
    session: str = ""
    values: dict[str, tuple[str, str, str]] = field(default_factory=dict)


class Board:
    """Takes what the subscriber heard and what the receiver got; both name the same event by the same id."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.topics: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.bridge_state = ""
        self.points = 0
        self.messages = 0
        self.deliveries = 0
        self.unsigned = 0
        self._events: dict[str, Shown] = {}

    def heard(self, topic: str, payload: bytes, *, now: float) -> Shown | None:
        """The event in an MQTT message, if it is one."""
        self.messages += 1
        self.topics[topic_pattern(topic)] += 1
        self._note_state(topic, payload)
        arrival = from_mqtt(topic, payload)
        if arrival is None:
            return None
        shown = self._shown(arrival, now)
        shown.topic = topic
        return shown

    def delivered(self, body: bytes, signed: bool, *, now: float) -> Shown:
        """The event in a webhook's delivery."""
        self.deliveries += 1
        self.unsigned += not signed
        shown = self._shown(from_webhook(body), now)
        shown.signed = signed
        return shown

    def newest(self, count: int) -> Sequence[Shown]:
        """The last events, the newest last."""
        return list(self._events.values())[-count:]

    def _shown(self, arrival: Arrival, now: float) -> Shown:
        if arrival.device_id is not None and arrival.device_label:
            self._device(arrival.device_id).label = arrival.device_label
        shown = self._events.get(arrival.id)
        if shown is None:
            device = "" if arrival.device_id is None else self._device(arrival.device_id).label
            shown = Shown(now, arrival.type, device, arrival.detail)
            self._events[arrival.id] = shown
            self.types[arrival.type] += 1
            self.points += arrival.points
            if len(self._events) > _KEPT:
                del self._events[next(iter(self._events))]
        return shown

    def _note_state(self, topic: str, payload: bytes) -> None:
        match topic.split("/"):
            case [_, "bridge", "state"]:
                self.bridge_state = payload.decode()
            case [_, device_id, "availability"]:
                self._device(device_id).available = payload == b"online"
            case [_, device_id, "session"] if payload:
                session = msgspec.json.decode(payload, type=dict[str, Any])
                device = self._device(device_id)
                device.state, device.session = session["state"], session["label"] or session["id"]
            case [_, device_id, "latest", source, datatype] if payload:
                point = msgspec.json.decode(payload, type=dict[str, Any])
                name = point["name"] or f"Datatype {datatype}"
                value = "-" if point["avg"] is None else f"{point['avg']:.4g}"
                self._device(device_id).values[f"{source}/{datatype}"] = (name, value, point["unit"] or "")

    def _device(self, device_id: str) -> Device:
        return self.devices.setdefault(device_id, Device(label=device_id))
