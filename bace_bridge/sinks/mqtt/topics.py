"""The topics of the contract, all below the base topic."""

import re

_NOT_IN_A_LEVEL = re.compile(r"[+#/\x00-\x1f\x7f-\x9f]")


class Topics:
    def __init__(self, base: str) -> None:
        self._base = base
        self.bridge_state = f"{base}/bridge/state"
        self.bridge_info = f"{base}/bridge/info"
        self.bridge_health = f"{base}/bridge/health"
        self.bridge_event = f"{base}/bridge/event"
        self.requests = f"{base}/bridge/request/+"
        self._event_topics: dict[str, str] = {}

    def request_name(self, topic: str) -> str:
        return topic.removeprefix(self.requests[:-1])

    def is_own(self, topic: str) -> bool:
        """True below the base topic, where the bridge alone publishes."""
        return topic == self._base or topic.startswith(f"{self._base}/")

    def response(self, name: str) -> str:
        return f"{self._base}/bridge/response/{name}"

    def event(self, device: str) -> str:
        """There are a few devices and many events."""
        topic = self._event_topics.get(device)
        if topic is None:
            topic = self._event_topics[device] = f"{self._base}/{level(device)}/event"
        return topic

    def datapoints(self, device: str) -> str:
        return f"{self._base}/{level(device)}/datapoints"

    def availability(self, device: str) -> str:
        return f"{self._base}/{level(device)}/availability"

    def session(self, device: str) -> str:
        return f"{self._base}/{level(device)}/session"

    def latest(self, device: str, source_device: str, datatype: int) -> str:
        return f"{self._base}/{level(device)}/latest/{level(source_device)}/{datatype}"


def level(name: str) -> str:
    """A name as one level of a topic: what MQTT gives a meaning of its own becomes `_`."""
    return _NOT_IN_A_LEVEL.sub("_", name) or "_"
