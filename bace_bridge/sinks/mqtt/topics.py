"""The topics of the contract, and which retained topics are ours to publish or to clear."""

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

import msgspec

from bace_bridge.events.types import DeviceState
from bace_bridge.formats import UNSENDABLE, decoded, made_sendable
from bace_bridge.redaction import Quote, quoted_as_it_is

Kind = Literal["availability", "session", "latest", "discovery"]
"""What a device's retained topic says; `discovery` announces it, below a prefix of its own."""

# MQTT: + and # are wildcards, / divides levels, $ at the beginning is the broker's own; % is what the others become.
_NOT_IN_A_LEVEL = re.compile(f"^(?:bridge|\\.\\.?)\\Z|^\\$|[+#/%]|{UNSENDABLE.pattern}")
_DATATYPE = re.compile(r"-?\d+")


class DeviceTopics(NamedTuple):
    event: str
    datapoints: str
    availability: str
    session: str


class Topics:
    def __init__(self, base: str) -> None:
        self.base = base
        self.bridge_state = f"{base}/bridge/state"
        self.bridge_info = f"{base}/bridge/info"
        self.bridge_health = f"{base}/bridge/health"
        self.bridge_devices = f"{base}/bridge/devices"
        self.bridge_event = f"{base}/bridge/event"
        self.of_every_bridge = frozenset((self.bridge_state, self.bridge_health))
        # A request's topic, and that of its response, end with its name.
        self.request, self.response = f"{base}/bridge/request/", f"{base}/bridge/response/"
        self.requests = f"{self.request}+"
        # It ends with an installation: where a bridge says who it is while `bridge/info` names another one.
        self.guest = f"{base}/bridge/guest/"
        self.guests = f"{self.guest}+"
        self.states_of_devices = (f"{base}/+/availability", f"{base}/+/session", f"{base}/+/latest/+/+")
        self._of_device: dict[str, DeviceTopics] = {}
        base_in_json = re.escape(msgspec.json.encode(base).strip(b'"'))
        # What announces anything of this very base topic: all but triggers name the bridge's state.
        self.named_in_discovery = re.compile(b'"' + base_in_json + b'/(?:bridge/state|[^/"]+/event)"')

    def of(self, device: str) -> DeviceTopics:
        topics = self._of_device.get(device)
        if topics is None:  # there are a few devices and many events
            below = f"{self.base}/{level(device)}"
            topics = DeviceTopics(f"{below}/event", f"{below}/datapoints", f"{below}/availability", f"{below}/session")
            self._of_device[device] = topics
        return topics

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
    return _NOT_IN_A_LEVEL.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), name
    )


_LONGEST_NAME = 64
_NAMED = 3


class _Info(msgspec.Struct):
    installation: str | None = None


class Neighbours:
    """`bridge/info` names whose a base topic is; any other bridge leaves a `bridge/guest/<installation>` there."""

    def __init__(self, installation: str, *, quote: Quote = quoted_as_it_is) -> None:
        self._own = installation
        self._quote = quote
        self._named: dict[str, str] = {}
        self._guests: dict[str, set[str]] = {}

    def heard_info(self, base: str, payload: bytes) -> None:
        """An empty one, and one without an installation, is no bridge's."""
        try:
            named = self._named_as(decoded(payload, _Info).installation or "")
        except msgspec.DecodeError:
            named = ""
        if not named:
            self._named.pop(base, None)
        else:
            self._named[base] = named

    def heard_guest(self, base: str, installation: str, payload: bytes) -> None:
        guests = self._guests.setdefault(base, set())
        name = self._named_as(installation)
        if payload and name != self._own:
            guests.add(name)
        else:
            guests.discard(name)

    def _named_as(self, installation: str) -> str:
        """Anybody may have written it."""
        return made_sendable(self._quote(installation, _LONGEST_NAME)) if installation != self._own else self._own

    def owner(self, base: str) -> str | None:
        """The other installation that `bridge/info` names."""
        # Without any bridge/info the base topic belongs to the bridge that comes first.
        named = self._named.get(base)
        return named if named != self._own else None

    def others(self, base: str) -> list[str]:
        """The installations beside this one."""
        owner = self.owner(base)
        return sorted(self._guests.get(base, set()) | ({owner} if owner is not None else set()))

    def described(self, base: str) -> str | None:
        """Some of the others, for people; None where there are none."""
        others = self.others(base)
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return ", ".join(others[:_NAMED]) + more or None


CLEARED = b""
"""An empty retained payload removes what the broker has kept for a topic."""

Action = Literal["publish", "clear", "leave"]


class Views(msgspec.Struct, frozen=True):
    """A topic as it is meant, and as the broker may have it.

    `meant` is the payload that it shall have, None where there shall be none. `acknowledged` is the payload that the
    broker has confirmed on this connection, `noted` says that the topic is in the ledger, `shown` that the broker shows
    it. `shared`: another bridge uses the base topic, too.
    """

    meant: bytes | None
    acknowledged: bytes | None = None
    noted: bool = False
    shown: bool = False
    shared: bool = False


def decide(topic: Views) -> Action:
    """What brings the broker's view of a topic to what is meant, without touching what is not ours."""
    if topic.meant is not None:
        return "leave" if topic.acknowledged == topic.meant else "publish"
    # Cleared on this connection already, whatever the ledger says.
    if topic.acknowledged == CLEARED:
        return "leave"
    if topic.acknowledged is not None:
        return "clear"
    # Another bridge may mean what an earlier connection of ours has left, and only it would know.
    return "clear" if (topic.noted or topic.shown) and not topic.shared else "leave"


def device_topics(state: DeviceState, topics: Topics) -> dict[str, bytes]:
    of_device = topics.of(state.device_id)
    meant = {of_device.availability: b"online" if state.available else b"offline"}
    if state.session is not None:
        meant[of_device.session] = state.session
    for point in state.latest:
        meant[topics.latest(state.device_id, point.source_device, point.datatype)] = point.payload
    return meant


def base_of(topic: str, bases: Collection[str]) -> str | None:
    """The base topic that a topic is below: the longest one."""
    return max((base for base in bases if topic.startswith(f"{base}/")), key=len, default=None)
