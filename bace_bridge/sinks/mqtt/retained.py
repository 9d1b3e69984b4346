"""What the retained topics say, and what follows from what each view of them holds: pure functions."""

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from bace_bridge.domain.state import DeviceState
from bace_bridge.sinks.mqtt.topics import Topics

CLEARED = b""
"""An empty retained payload removes what the broker has kept for a topic."""

Action = Literal["publish", "clear", "leave"]


class Views(msgspec.Struct, frozen=True):
    """A topic as it is meant, and as the broker may have it.

    `meant` is the payload that it shall have, None where there shall be none. `acknowledged` is the payload that the
    broker has confirmed on this connection, `noted` says that the topic is in the ledger, `shown` that the broker shows
    it. `elsewhere`: another sink of this bridge means it. `shared`: another bridge uses the base topic, too.
    """

    meant: bytes | None
    acknowledged: bytes | None = None
    noted: bool = False
    shown: bool = False
    elsewhere: bool = False
    shared: bool = False


def decide(topic: Views) -> Action:
    """What brings the broker's view of a topic to what is meant, without touching what is not ours."""
    if topic.meant is not None:
        return "leave" if topic.acknowledged == topic.meant else "publish"
    if topic.acknowledged == CLEARED or topic.elsewhere:
        return "leave"
    if topic.acknowledged is not None:
        return "clear"
    # Another bridge may mean what an earlier connection of ours has left, and nobody else can tell.
    return "clear" if (topic.noted or topic.shown) and not topic.shared else "leave"


def device_topics(state: DeviceState, topics: Topics) -> dict[str, bytes]:
    device = state.device_id
    meant = {topics.availability(device): b"online" if state.available else b"offline"}
    if state.session is not None:
        meant[topics.session(device)] = state.session
    for point in state.latest:
        meant[topics.latest(device, point.source_device, point.datatype)] = point.payload
    return meant


def base_topics(ledger: Iterable[str], topics: Topics) -> list[str]:
    """The base topics that were in use before: each has left its `bridge/state`."""
    end = topics.bridge_state.removeprefix(topics.base)
    bases = {topic.removesuffix(end) for topic in ledger if topic.endswith(end)}
    return sorted(bases - {topics.base})


def base_of(topic: str, bases: Collection[str]) -> str | None:
    """The base topic that a topic is below: the longest one."""
    return max((base for base in bases if topic.startswith(f"{base}/")), key=len, default=None)
