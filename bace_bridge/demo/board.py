"""What arrived over MQTT or by HTTP, as far as it is shown. Pure; raises `msgspec.MsgspecError` for junk."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from bace_bridge.events.types import TYPE_PREFIX

BASE_TOPIC = "bace"


class Arrival(msgspec.Struct, frozen=True):
    """An event that arrived; the label is None where the message does not hold it."""

    id: str
    type: str
    device_id: str | None
    device_label: str | None
    detail: str
    points: int


class SessionSeen(msgspec.Struct, frozen=True):
    """The contract's session object, as far as it is shown."""

    id: str
    label: str | None
    state: str
    duration_seconds: float | None


class PointSeen(msgspec.Struct, frozen=True):
    """The contract's datapoint, as far as it is shown."""

    name: str | None
    unit: str | None
    avg: float | None


class _Device(msgspec.Struct, frozen=True):
    id: str
    label: str | None


class _Csv(msgspec.Struct, frozen=True):
    revision: int


class _Facts(msgspec.Struct, frozen=True):
    """The data of an event of any type."""

    session: SessionSeen | None = None
    device: _Device | None = None
    datapoints: list[msgspec.Raw] | None = None
    changed: list[str] | None = None
    csv: _Csv | None = None
    reason: str = ""


class _Message(msgspec.Struct, frozen=True):
    """What an MQTT message has beside the facts; one with datapoints does not name its type."""

    id: str
    event_type: str = "session.datapoints"


class _CloudEvent(msgspec.Struct, frozen=True):
    id: str
    type: str
    data: _Facts


def from_mqtt(topic: str, payload: bytes) -> Arrival | None:
    """The event of an `event` or `datapoints` topic; None for topics that hold a state."""
    match topic.split("/"):
        case [_, device_id, "event" | "datapoints"]:
            # Twice, since msgspec's structs are flat: `id` and `event_type` stand beside the facts over MQTT.
            message = msgspec.json.decode(payload, type=_Message)
            facts = msgspec.json.decode(payload, type=_Facts)
            return _arrival(message.id, message.event_type, None if device_id == "bridge" else device_id, facts)
    return None


def topic_pattern(topic: str) -> str:
    """The topic with its ids left out: `bace/<device>/latest/<source>/<datatype>`."""
    match topic.split("/"):
        case [_, "bridge", *_]:
            return topic
        case [base, _, "latest", *_]:
            return f"{base}/<device>/latest/<source>/<datatype>"
        case [base, _, *rest]:
            return "/".join([base, "<device>", *rest])
    return topic


def _arrival(event_id: str, event_type: str, device_id: str | None, facts: _Facts) -> Arrival:
    return Arrival(
        id=event_id,
        type=event_type,
        device_id=device_id,
        device_label=None if facts.device is None else facts.device.label,
        detail=_detail(event_type, facts),
        points=len(facts.datapoints or ()),
    )


def _detail(event_type: str, facts: _Facts) -> str:
    session = facts.session
    if facts.datapoints is not None:
        return f"{len(facts.datapoints)} point{'' if len(facts.datapoints) == 1 else 's'}"
    if facts.changed is not None:
        return f"changed: {', '.join(facts.changed)}"
    if facts.csv is not None:
        return f"revision {facts.csv.revision}"
    if session is not None and event_type == "session.ended":
        return f"lasted {session.duration_seconds or 0:g} s"
    return facts.reason if session is None else session.label or session.id


_KEPT = 200
"""Events that may still be waited for on their other way."""


@dataclass
class Shown:
    """An event and the ways on which it has arrived; `at` is when it first did (epoch seconds).

    `by_webhook` is True once a delivery of it with the right signature has arrived.
    """

    at: float
    type: str
    device: str
    detail: str
    topic: str | None = None
    by_webhook: bool = False

    @property
    def complete(self) -> bool:
        return self.topic is not None and self.by_webhook


@dataclass
class Device:
    """A device as its retained topics show it; `values` holds by series its name and its newest value."""

    label: str
    available: bool = False
    state: str = ""
    session: str = ""
    values: dict[str, tuple[str, str]] = field(default_factory=dict)


class Board:
    """Takes what the subscriber heard and what the receiver got; both name the same event by the same id.

    `on_new` is called at an event's first arrival. Anybody may publish here: junk is left out.
    """

    def __init__(self, *, on_new: Callable[[Shown], None] = lambda _: None) -> None:
        self.devices: dict[str, Device] = {}
        self.topics: Counter[str] = Counter()
        self.bridge_state = ""
        self.events = 0
        self.points = 0
        self.deliveries = 0
        self.badly_signed = 0
        self._on_new = on_new
        self._events: dict[str, Shown] = {}

    def heard(self, topic: str, payload: bytes, *, now: float) -> None:
        """An MQTT message."""
        # By pattern: a count for each series of each device would fill the screen.
        self.topics[topic_pattern(topic)] += 1
        try:
            self._note_state(topic, payload)
            arrival = from_mqtt(topic, payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if arrival is not None:
            self._shown(arrival, now).topic = topic

    def delivered(self, body: bytes, signed: bool, *, now: float) -> None:
        """A webhook's delivery; one that is not signed right says nothing that could be believed."""
        if not signed:
            self.badly_signed += 1
            return
        self.deliveries += 1
        try:
            event = msgspec.json.decode(body, type=_CloudEvent)
        except msgspec.MsgspecError:
            return
        device_id = None if event.data.device is None else event.data.device.id
        arrival = _arrival(event.id, event.type.removeprefix(TYPE_PREFIX), device_id, event.data)
        self._shown(arrival, now).by_webhook = True

    def newest(self, count: int) -> Sequence[Shown]:
        """The last events, the newest last."""
        return list(self._events.values())[-count:]

    def _shown(self, arrival: Arrival, now: float) -> Shown:
        # Retained topics name a device by its id alone: its label comes with an event.
        if arrival.device_id is not None and arrival.device_label:
            self._device(arrival.device_id).label = arrival.device_label
        shown = self._events.get(arrival.id)
        if shown is None:
            device = "" if arrival.device_id is None else self._device(arrival.device_id).label
            shown = self._events[arrival.id] = Shown(now, arrival.type, device, arrival.detail)
            self.events += 1
            self.points += arrival.points
            # A dict keeps the order of insertion, so its first key is the oldest event.
            if len(self._events) > _KEPT:
                del self._events[next(iter(self._events))]
            self._on_new(shown)
        return shown

    def _note_state(self, topic: str, payload: bytes) -> None:
        match topic.split("/"):
            case [_, "bridge", "state"]:
                self.bridge_state = payload.decode()
            case [_, device_id, "availability"]:
                self._device(device_id).available = payload == b"online"
            case [_, device_id, "session"] if payload:
                session = msgspec.json.decode(payload, type=SessionSeen)
                device = self._device(device_id)
                device.state, device.session = session.state, session.label or session.id
            case [_, device_id, "latest", source, datatype] if payload:
                point = msgspec.json.decode(payload, type=PointSeen)
                value = "-" if point.avg is None else f"{point.avg:.4g} {point.unit or ''}".strip()
                name = point.name or f"Datatype {datatype}"
                self._device(device_id).values[f"{source}/{datatype}"] = (name, value)

    def _device(self, device_id: str) -> Device:
        return self.devices.setdefault(device_id, Device(label=device_id))
