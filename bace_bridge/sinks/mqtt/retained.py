"""What the retained topics say about a device, and what must be published to get there: pure functions."""

from collections.abc import Iterator, Mapping

from bace_bridge.domain.state import DeviceState
from bace_bridge.sinks.mqtt.topics import Topics

CLEARED = b""
"""An empty retained payload removes what the broker has kept for a topic."""


def device_topics(state: DeviceState, topics: Topics) -> dict[str, bytes]:
    device = state.device_id
    wanted = {
        topics.availability(device): b"online" if state.available else b"offline",
        topics.session(device): state.session or CLEARED,
    }
    for point in state.latest:
        wanted[topics.latest(device, point.source_device, point.datatype)] = point.payload
    return wanted


def changes(published: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for topic, payload in wanted.items():
        if published.get(topic) != payload:
            yield topic, payload
    for topic, payload in published.items():
        if topic not in wanted and payload != CLEARED:
            yield topic, CLEARED
