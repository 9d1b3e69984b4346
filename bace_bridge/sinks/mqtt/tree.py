"""What the broker keeps, and others write, below the base topic: read within bounds, and set right where it is ours."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple

from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.mirror import Mirror
from bace_bridge.sinks.mqtt.picture import Picture
from bace_bridge.sinks.mqtt.topics import Neighbours, Topics

MOST_MESSAGES = 50_000
MOST_BYTES = 32 * 1024 * 1024
LONGEST = 30.0
"""Seconds."""

_QUIET = 1.0
"""Seconds without a message after which the broker has shown everything: MQTT has no sign for it."""

_STEP = 0.1

_OTHER_BRIDGE_HINT = (
    "give each bridge its own base_topic; the other bridge's topics are not cleared. If the other no longer exists, "
    "clear its retained bridge/info, or its bridge/guest"
)

_MOST_ENDINGS = 2
_REST = 3600.0
"""Seconds without another attempt to subscribe, where so many of them ended the connection."""


class Tree:
    """What the broker shows of the bridge's own topics; one for each sink.

    Reading is of no use where nothing is kept, or nothing may be read: `problem` says so then. `watched` stay
    subscribed to: others may write there at any time. `announced` are filters for what announces devices, ours and
    others': it is read where that is allowed, and nothing is said where it is not.
    """

    def __init__(
        self,
        topics: Topics,
        neighbours: Neighbours,
        *,
        watched: Sequence[str],
        announced: Callable[[], Sequence[str]],
        sleep: Callable[[float], Awaitable[None]],
        log: FilteringBoundLogger,
        warn: Callable[..., None],
    ) -> None:
        self.watched = watched
        self._announced = announced
        self._may_not_read = (
            f"the broker does not allow reading {topics.base}/#, or sends no retained messages for wildcards"
        )
        self._own = {*topics.of_every_bridge, topics.bridge_devices, *watched}
        self._topics = topics
        self._neighbours = neighbours
        self._log = log
        self._warn = warn
        self._sleep = sleep
        self._endings = 0
        self._rests_until = 0.0
        self._reading: _Reading | None = None
        self._one_at_a_time = asyncio.Lock()
        self.problem: str | None = None
        self.is_unread = False
        """True where another attempt may show what the last one did not."""

    async def read(self, connection: Connection, mirror: Mirror) -> Collection[str]:
        """After everything that is meant was published, so that what is ours shows whether reading is allowed.

        Returns the topics that the broker has acknowledged and does not keep: with 3.1.1 it cannot say no.
        """
        picture, shown, problem = mirror.picture, _Shown(), None
        now = asyncio.get_running_loop().time()
        if self._endings >= _MOST_ENDINGS:
            self._endings, self._rests_until = 0, now + _REST
        readable = connection.limits.retain and now >= self._rests_until
        if readable:
            shown, problem = await self._read(connection, picture)
        elif connection.limits.retain:
            problem = "it ends the connection when the bridge subscribes"
        if connection.end.done():
            return ()
        picture.read_tree(shown.unknown)
        await mirror.settle()  # what has waited for this
        lost = set(shown.lost)
        if readable:
            of_bridge = await self.check(connection, picture, self._own)
            if connection.end.done():
                return ()
            lost |= of_bridge or set()
            if of_bridge is None and not shown.shows_devices:
                problem = problem or self._may_not_read
            self._endings = 0
        self.is_unread = readable and problem is not None
        self._say(problem, sorted(lost))
        return lost

    async def check(self, connection: Connection, picture: Picture, topics: Collection[str]) -> set[str] | None:
        """Which of these topics of the bridge, `watched` among them, the broker does not keep as it has acknowledged.

        None where it shows none of them. A message that comes live does not say whether it is kept, hence this.
        """
        async with self._one_at_a_time:
            reading = self._reading = _Reading(self._topics, picture, self._own)
            try:
                # On every SUBSCRIBE the broker sends what it keeps, also where the topic is subscribed to already:
                # 3.1.1 always, 5 with the retain handling 0 that paho asks for.
                shown = await self._subscribed(connection, sorted(topics), qos=1)
                if not shown:
                    return None
                await reading.completed(self._sleep)
            finally:
                self._reading = None
            if not_watched := set(topics).difference(self.watched):
                connection.unsubscribe(sorted(not_watched))
        if not reading.of_bridge:
            return None
        base, info = self._topics.base, self._topics.bridge_info
        if not reading.of_bridge.get(info):
            self._neighbours.heard_info(base, b"")
        ours = set(topics) - ({info} if self._neighbours.owner(base) is not None else set())
        return reading.lost_of(ours, shared=bool(self._neighbours.others(base)))

    def heard(self, topic: str, message: MQTTMessage, mirror: Mirror) -> None:
        if self._reading is not None:
            self._reading.take(topic, message)
        # A broker sets retain on what it had kept when the subscription came, not on what is published later.
        if not message.retain:  # it may not be kept
            return
        for base in (self._topics.base, *mirror.picture.bases):
            if topic == f"{base}/bridge/info":
                self._neighbours.heard_info(base, bytes(message.payload))
                mirror.refresh()
            elif topic.startswith(guest := f"{base}/bridge/guest/"):
                self._neighbours.heard_guest(base, topic.removeprefix(guest), bytes(message.payload))
                mirror.refresh()

    def warn_of_others(self) -> None:
        """Where it may have become known that another bridge is there."""
        if others := self._neighbours.described(self._topics.base):
            self._warn(
                "mqtt.base_topic_shared", base_topic=self._topics.base, installations=others, hint=_OTHER_BRIDGE_HINT
            )

    async def _subscribed(self, connection: Connection, filters: Sequence[str], *, qos: int) -> bool | None:
        self._endings += 1
        taken = await connection.subscribe(filters, qos=qos)
        if not connection.end.done():
            self._endings -= 1
        return taken

    async def _read(self, connection: Connection, picture: Picture) -> tuple["_Shown", str | None]:
        """What was shown of the devices and of other bridges, and why that is not everything."""
        once = [*self._topics.states_of_devices, self._topics.guests]
        for base in picture.bases:
            once += [f"{base}/bridge/info", f"{base}/bridge/guest/+"]
        announced = self._announced()
        # A message does not say to which subscription it belongs.
        async with self._one_at_a_time:
            reading = self._reading = _Reading(self._topics, picture, self._own)
            try:
                watched = await self._subscribed(connection, self.watched, qos=1)
                # QoS 0: thousands of messages that are read once need no PUBACK each.
                shown = await self._subscribed(connection, once, qos=0)
                if watched is None or shown is None:
                    return _Shown(), "it does not answer when the bridge subscribes"
                if announced:
                    await self._subscribed(connection, announced, qos=0)
                is_complete = await reading.completed(self._sleep)
            finally:
                self._reading = None
            # Else all that this bridge publishes there would come back to it.
            connection.unsubscribe([*once, *announced])
        # Only where they may be read.
        not_shown = reading.of_devices - reading.came if is_complete and reading.shows_devices else ()
        lost = {topic for topic in not_shown if picture.acknowledged.get(topic)}
        found = _Shown(reading.unknown, lost, reading.shows_devices)
        if not (watched and shown) or (reading.of_devices and not reading.shows_devices):
            return found, self._may_not_read
        return found, None if is_complete else "there is more than the bridge reads at a time"

    def _say(self, problem: str | None, lost: Sequence[str]) -> None:
        said = None
        if problem is not None:
            said = f"retained topics that this store does not know are not found at the broker: {problem}"
            if said != self.problem:
                self._log.warning("mqtt.tree_not_read", problem=said, hint="allow the bridge to read there")
        elif lost:
            said = f"the broker acknowledges {len(lost)} retained topics and does not keep them: {', '.join(lost[:3])}"
            if self.problem is None:
                self._log.warning("mqtt.state_not_kept", problem=said, then="tried again later")
        self.problem = said


class _Shown(NamedTuple):
    """What is `unknown` here, and which topics of our devices are not there."""

    unknown: Collection[str] = ()
    lost: Collection[str] = ()
    shows_devices: bool = False


class _Reading:
    """Of a device's topics that are acknowledged or noted only whether they came counts, of others their names."""

    def __init__(self, topics: Topics, picture: Picture, of_bridge: Collection[str]) -> None:
        self._topics = topics
        self._picture = picture
        self._own = of_bridge
        self.of_devices = {topic for topic in picture.acknowledged if topics.kind(topic) is not None}
        self._loop = asyncio.get_running_loop()
        self._messages = self._bytes = 0
        self._is_full = False
        self._last = 0.0
        self.came: set[str] = set()
        self.of_bridge: dict[str, bytes] = {}
        self.shows_devices = False
        self.unknown: set[str] = set()

    def take(self, topic: str, message: MQTTMessage) -> None:
        if message.retain:  # it was kept; what is published meanwhile may never end
            self._last = self._loop.time()
        if self._is_full:
            return
        self._messages += 1
        self._bytes += len(topic) + len(message.payload)
        self._is_full = self._messages >= MOST_MESSAGES or self._bytes >= MOST_BYTES
        if topic in self._own:
            self.of_bridge[topic] = bytes(message.payload)
        elif topic in self.of_devices:
            # Some, such as RabbitMQ, keep messages and show none of them to a filter with wildcards.
            self.shows_devices = self.shows_devices or message.retain
            # What comes while it is read was accepted just now.
            if not message.retain or message.payload == self._picture.acknowledged.get(topic):
                self.came.add(topic)
        elif message.retain and topic not in self._picture.noted:
            # Ours by its shape; what announces a device has the same for every base topic, and names it within.
            named = self._topics.named_in_discovery
            if self._topics.kind(topic) is not None or (
                self._picture.is_discovery(topic) and named.search(bytes(message.payload))
            ):
                self.unknown.add(topic)

    def lost_of(self, topics: Collection[str], *, shared: bool) -> set[str]:
        """Of the bridge's own topics. Where the base topic is `shared` another bridge writes to some of them, too."""
        lost = set()
        for topic in topics:
            kept, acknowledged = self.of_bridge.get(topic), self._picture.acknowledged.get(topic)
            either_writes = shared and topic in self._topics.of_every_bridge
            is_kept = bool(kept) if either_writes else kept in {acknowledged, self._picture.meant.get(topic)}
            if acknowledged and not is_kept:
                lost.add(topic)
        return lost

    async def completed(self, sleep: Callable[[float], Awaitable[None]]) -> bool:
        """Returns when nothing comes any more; False where a bound ended it."""
        self._last = begun = self._loop.time()
        while not self._is_full and self._loop.time() < begun + LONGEST:
            if self._loop.time() >= self._last + _QUIET:
                return True
            await sleep(_STEP)
        return False


_RESTORED_EVERY = 10.0
"""Seconds between two corrections of a topic: two bridges that correct each other would go on for ever."""


class Watch:
    """Sets right what others write where this bridge says who and how it is; one for each connection."""

    def __init__(
        self,
        topics: Topics,
        tree: Tree,
        connection: Connection,
        mirror: Mirror,
        *,
        sleep: Callable[[float], Awaitable[None]],
        warn: Callable[..., None],
    ) -> None:
        self._topics = topics
        self._tree = tree
        self._connection = connection
        self._mirror = mirror
        self._sleep = sleep
        self._warn = warn
        self._written = {topic: asyncio.Event() for topic in tree.watched}

    def heard(self, topic: str, message: MQTTMessage) -> None:
        """What comes as retained was there when the bridge subscribed: `bridge/info` is judged by who reads it."""
        meant, payload = self._mirror.picture.meant.get(topic), bytes(message.payload)
        if topic not in self._written or payload == meant:
            return
        if topic == self._topics.bridge_state or (
            not message.retain and (meant is not None or topic == self._topics.bridge_info)
        ):
            self._written[topic].set()

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as tasks:
            for topic, written in self._written.items():
                tasks.create_task(self._correct(topic, written))

    async def _correct(self, topic: str, written: asyncio.Event) -> None:
        while True:
            await written.wait()
            written.clear()
            # Subscribers have heard a wrong state, also where it is not kept; all else counts only as it is kept.
            wrong = topic == self._topics.bridge_state
            if not wrong:
                lost = await self._tree.check(self._connection, self._mirror.picture, self._tree.watched)
                wrong = lost is None or topic in lost
            if wrong:
                self._warn("mqtt.foreign_message", topic=topic, then="published again")
            await self._mirror.settle(again=[topic] if wrong else [])
            self._tree.warn_of_others()
            await self._sleep(_RESTORED_EVERY)
            if topic == self._topics.bridge_state:  # another bridge that leaves says the same of its devices, then
                await self._mirror.settle(again=self._mirror.picture.online_devices)
