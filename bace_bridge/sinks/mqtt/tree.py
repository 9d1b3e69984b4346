"""Reads once what the broker keeps below the base topic, bounded."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.neighbours import Neighbours
from bace_bridge.sinks.mqtt.picture import OFFLINE, Picture
from bace_bridge.sinks.mqtt.topics import Topics

MOST_MESSAGES = 50_000
MOST_BYTES = 32 * 1024 * 1024
LONGEST = 30.0
"""Seconds."""

_QUIET = 1.0
"""Seconds without a message after which the broker has shown everything: MQTT has no sign for it."""

_STEP = 0.1

_MOST_ENDINGS = 2
_REST = 3600.0
"""Seconds without another attempt to subscribe, where so many of them ended the connection."""


class _Mirror(Protocol):
    picture: Picture

    def heard_offline(self) -> None: ...
    def look_at_bridge(self) -> None: ...


class Tree:
    """What the broker shows of the bridge's own topics; one for each sink.

    Reading is of no use where nothing is kept, or nothing may be read: `problem` says so then.
    """

    def __init__(
        self,
        topics: Topics,
        neighbours: Neighbours,
        log: FilteringBoundLogger,
        *,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._topics = topics
        self._neighbours = neighbours
        self._log = log
        self._sleep = sleep
        self._endings = 0
        self._rests_until = 0.0
        self._reading: _Reading | None = None
        self.problem: str | None = None

    async def read(self, connection: Connection, mirror: _Mirror) -> Collection[str]:
        """After everything that is meant was published, so that what is ours shows whether reading is allowed.

        Returns the topics that the broker has acknowledged and does not keep: with 3.1.1 it cannot say no.
        """
        shown, problem = _Shown(), None
        if connection.limits.retain and self._may_subscribe():
            shown, problem = await self._read(connection, mirror.picture)
            if connection.end.done():
                return ()
        elif connection.limits.retain:
            problem = "it ends the connection when the bridge subscribes"
        self._say(problem, sorted(shown.lost))
        mirror.picture.read_tree(shown.unknown)
        mirror.look_at_bridge()
        return shown.lost

    def heard(self, topic: str, message: MQTTMessage, mirror: _Mirror) -> None:
        if self._reading is not None:
            self._reading.take(topic, message)
        payload = bytes(message.payload)
        if topic == self._topics.bridge_state:
            if payload == OFFLINE:
                mirror.heard_offline()
            return
        for base in (self._topics.base, *mirror.picture.bases):
            if topic == f"{base}/bridge/info":
                self._neighbours.heard_info(base, payload)
                mirror.look_at_bridge()
            elif topic.startswith(guest := f"{base}/bridge/guest/"):
                self._neighbours.heard_guest(base, topic.removeprefix(guest), payload)
                mirror.look_at_bridge()

    def _may_subscribe(self) -> bool:
        """False for a while after some connections have ended before the broker answered."""
        now = asyncio.get_running_loop().time()
        if self._endings >= _MOST_ENDINGS:
            self._endings, self._rests_until = 0, now + _REST
        return now >= self._rests_until

    async def _read(self, connection: Connection, picture: Picture) -> tuple["_Shown", str | None]:
        """What was shown, and why that is not everything."""
        once = [*self._topics.states_of_devices, self._topics.guests, self._topics.bridge_health]
        for base in picture.bases:
            once += [f"{base}/bridge/info", f"{base}/bridge/guest/+"]
        reading = self._reading = _Reading(self._topics, picture)
        try:
            self._endings += 1
            # These two stay subscribed to: others may write there at any time.
            watched = await connection.subscribe((self._topics.bridge_state, self._topics.bridge_info), qos=1)
            shown = await connection.subscribe(once, qos=0)
            if not connection.end.done():
                self._endings = 0
            if watched is None or shown is None:
                return _Shown(), "it does not answer when the bridge subscribes"
            is_complete = await reading.completed(self._sleep)
        finally:
            self._reading = None
        connection.unsubscribe(once)
        if not (watched and shown and reading.shows_own):
            return _Shown(reading.unknown), f"it does not let the bridge read {self._topics.base}/#"
        if not is_complete:
            return _Shown(reading.unknown), "there is more than is read at a time"
        return _Shown(reading.unknown, reading.lost), None

    def _say(self, problem: str | None, lost: Sequence[str]) -> None:
        told = None
        if problem is not None:
            told = f"retained topics that this store does not know are not found at the broker: {problem}"
            if told != self.problem:
                self._log.warning("mqtt.tree_not_read", problem=told, hint="give it the right to read there")
        elif lost:
            told = f"the broker acknowledges {len(lost)} retained topics and does not keep them: {', '.join(lost[:3])}"
            if self.problem is None:
                self._log.warning("mqtt.state_not_kept", problem=told, then="tried again later")
        self.problem = told


class _Shown(NamedTuple):
    """What is `unknown` here, and what of ours is not there."""

    unknown: Collection[str] = ()
    lost: Collection[str] = ()


class _Reading:
    """Of topics that are acknowledged or noted only whether they came counts, of others their names."""

    def __init__(self, topics: Topics, picture: Picture) -> None:
        self._topics = topics
        self._picture = picture
        self._of_devices = {topic for topic in picture.acknowledged if topics.kind(topic) is not None}
        self._of_bridge = {topics.bridge_state, topics.bridge_health} & picture.acknowledged.keys()
        self._loop = asyncio.get_running_loop()
        self._messages = self._bytes = 0
        self._last = 0.0
        self._kept: set[str] = set()
        self._shows_devices = False
        self.unknown: set[str] = set()

    @property
    def _is_full(self) -> bool:
        return self._messages >= MOST_MESSAGES or self._bytes >= MOST_BYTES

    def take(self, topic: str, message: MQTTMessage) -> None:
        if message.retain:  # it was kept; what is published meanwhile may never end
            self._last = self._loop.time()
        if self._is_full:
            return
        self._messages += 1
        self._bytes += len(topic) + len(message.payload)
        if topic in self._of_bridge:  # another bridge on this base topic writes there, too
            self._kept.add(topic)
        elif topic in self._of_devices:
            self._shows_devices = True
            # What comes while it is read was accepted just now.
            if not message.retain or message.payload == self._picture.acknowledged.get(topic):
                self._kept.add(topic)
        elif message.payload and topic not in self._picture.noted and self._topics.kind(topic) is not None:
            self.unknown.add(topic)

    @property
    def shows_own(self) -> bool:
        return self._shows_devices if self._of_devices else self._shows_bridge

    @property
    def lost(self) -> set[str]:
        """Only of what may be read: of the devices, of the bridge, or both."""
        readable = (self._of_devices if self._shows_devices else set()) | (
            self._of_bridge if self._shows_bridge else set()
        )
        return {topic for topic in readable - self._kept if self._picture.acknowledged.get(topic)}

    @property
    def _shows_bridge(self) -> bool:
        return not self._of_bridge.isdisjoint(self._kept)

    async def completed(self, sleep: Callable[[float], Awaitable[None]]) -> bool:
        """Returns when nothing comes any more; False where a bound ended it."""
        self._last = begun = self._loop.time()
        while not self._is_full and self._loop.time() < begun + LONGEST:
            if self._loop.time() >= self._last + _QUIET:
                return True
            await sleep(_STEP)
        return False
