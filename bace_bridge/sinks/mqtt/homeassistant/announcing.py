"""Announces devices to Home Assistant: in its order, with what was announced before, and again when it starts anew."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping

from paho.mqtt.client import MQTTMessage

from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.errors import StoreError
from bace_bridge.events.types import Announced, DeviceState
from bace_bridge.sinks.api import Ledger
from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.homeassistant.discovery import MIGRATE, Discovery, components_of, ghost, removal, revival
from bace_bridge.sinks.mqtt.topics import CLEARED

Batch = Mapping[str, bytes]
"""Payloads by topic."""

Send = Callable[[Batch], Awaitable[bool]]
"""Returns when the broker has answered each of them: whether it has taken any."""

SETTLES_IN = 1.0
"""Seconds: Home Assistant subscribes to a component's topics about 0.1 s after its discovery."""


class Announcer:
    """One for each connection. `datatypes` and `sinks` (names) are those of the time of the call.

    Devices and bridge are retained topics like any others; this knows in which steps they go out.
    """

    def __init__(
        self,
        discovery: Discovery,
        ledger: Ledger,
        *,
        enabled: bool,
        datatypes: Callable[[], Mapping[int, DatatypeConfig]],
        sinks: Callable[[], Collection[str]],
        send: Send,
        sleep: Callable[[float], Awaitable[None]],
        warn: Callable[..., None],
    ) -> None:
        self.enabled = enabled
        self.is_discovery = discovery.is_discovery
        self._discovery = discovery
        self._ledger = ledger
        self._datatypes = datatypes
        self._sinks = sinks
        self._send = send
        self._sleep = sleep
        self._warn = warn
        self._announced: dict[str, Announced] = {}
        self._unnoted: dict[str, Announced] = {}
        self._made: dict[str, tuple[object, dict[str, bytes]]] = {}
        self._began_anew = False

    def device(self, state: DeviceState) -> dict[str, bytes]:
        """Its discovery topics with their payloads; none where it has no data session that can be seen."""
        if state.session is None:
            return {}
        # Made anew only where they may differ: a state is read with each event.
        made_of = (state.label, state.series, self._datatypes())
        made = self._made.get(state.device_id)
        if made is None or made[0] != made_of:
            made = self._made[state.device_id] = (made_of, self._discovery.device(state, self._datatypes()))
        return made[1]

    def bridge(self) -> dict[str, bytes]:
        return self._discovery.bridge(self._sinks())

    async def read_ledger(self) -> None:
        """Raises StoreError."""
        self._announced = await self._ledger.announced()

    def began_anew(self) -> None:
        """Home Assistant has started: what was removed while it was away has to be removed once more."""
        self._began_anew = True

    async def migrate(self, noted: Iterable[str], meant: Batch) -> None:
        """Before anything is announced: entities of the other mode are handed over, with their ids and names."""
        left = [topic for topic in sorted(noted) if self.is_discovery(topic) and topic not in meant]
        if not left:
            return
        components = {
            _node(topic): components_of(topic, one) for topic, one in meant.items() if self.is_discovery(topic)
        }
        if topics := [topic for topic in left if _is_handed_over(topic, components)]:
            await self._send(dict.fromkeys(topics, MIGRATE))
            await self._sleep(SETTLES_IN)
            await self._send(dict.fromkeys(topics, CLEARED))
            await self._sleep(SETTLES_IN)
            lost = {one: parts for topic in topics for one, parts in self._lost(topic, meant)}
            await self._clear_again(lost)
            await self._note({topic: Announced({}, parts) for topic, parts in lost.items()})  # it may be down now

    def _lost(self, topic: str, meant: Batch) -> Iterator[tuple[str, dict[str, str]]]:
        """What a device's topic has announced and no topic of a component announces from here on."""
        platform, node, _ = _levels(topic)
        if platform is None:
            for key, one in self._announced.get(topic, Announced()).components.items():
                of_component = f"{topic.removesuffix(f'device/{node}/config')}{one}/{node}/{key}/config"
                if of_component not in meant:
                    yield of_component, {key: one}

    async def announce(self, batch: Batch, *, is_last: bool) -> None:
        """Publishes them, and returns when Home Assistant has subscribed to what they name.

        After its start all batches up to the last one are for a Home Assistant that began anew. A component that is
        only left out would stay: it is announced whole, for a Home Assistant that has missed it before, then taken
        away, then left out.
        """
        before, began_anew = self._announced, self._began_anew
        self._began_anew = began_anew and not is_last
        after: dict[str, Announced] = {}
        gone: dict[str, dict[str, str]] = {}
        for topic, payload in batch.items():
            was, components = before.get(topic, Announced()), components_of(topic, payload)
            left = {key: one for key, one in {**was.removed, **was.components}.items() if key not in components}
            missing = {key: one for key, one in left.items() if began_anew or key in was.components}
            if components and missing:
                gone[topic] = missing
            after[topic] = Announced(components, {} if components and began_anew else left)
        # First what Home Assistant may know from here on: after a kill too much of it is removed in vain.
        await self._note({topic: _both(before.get(topic), one) for topic, one in after.items()})
        revived = {topic: revival(batch[topic], missing) for topic, missing in gone.items()}
        taken = await self._send({**batch, **revived})
        if gone:
            await self._sleep(SETTLES_IN)
            await self._send({topic: removal(batch[topic], missing) for topic, missing in gone.items()})
            await self._sleep(SETTLES_IN)
            await self._send({topic: batch[topic] for topic in gone})
        await self._note(after)
        if taken and any(one.components for one in after.values()):
            await self._sleep(SETTLES_IN)
        if began_anew and is_last:
            await self._clear_again({topic: one.removed for topic, one in self._announced.items() if one.is_cleared})

    async def _clear_again(self, gone: Mapping[str, Mapping[str, str]]) -> None:
        """What was cleared while Home Assistant was down stays there, unless it is announced and cleared once more."""
        if gone:
            await self._note({topic: Announced(dict(parts)) for topic, parts in gone.items()})
            await self._send({topic: ghost(topic, parts) for topic, parts in gone.items()})
            await self._sleep(SETTLES_IN)
            await self._send(dict.fromkeys(gone, CLEARED))
            await self._note(dict.fromkeys(gone, Announced()))

    async def _note(self, announced: Mapping[str, Announced]) -> None:
        news = {topic: one for topic, one in announced.items() if one != self._announced.get(topic, Announced())}
        self._announced = {**self._announced, **news}
        self._unnoted |= news
        if self._unnoted:
            try:
                await self._ledger.note_announced(self._unnoted)
            except StoreError as error:
                self._warn("mqtt.ledger_not_written", problem=str(error))
            else:
                self._unnoted = {}


def _both(before: Announced | None, after: Announced) -> Announced:
    """Before the removal: what is to be removed is a component yet."""
    if before is None:
        return after
    return Announced({**before.components, **after.components}, before.removed)


def _levels(topic: str) -> tuple[str | None, str, str]:
    """Of a discovery topic the platform, None for a whole device; the node; the component's key."""
    *_, platform, node, last, _config = ("", *topic.split("/"))
    return (None, last, "") if node == "device" else (platform, node, last)


def _node(topic: str) -> str:
    return _levels(topic)[1]


def _is_handed_over(topic: str, components: Mapping[str, Mapping[str, str]]) -> bool:
    """Not what is there no more: it is cleared, and its entities go."""
    platform, node, key = _levels(topic)
    of_node = components.get(node)
    return of_node is not None and (platform is None or key in of_node)


ONLINE = b"online"
_WAITS = 2.0
"""Seconds from Home Assistant's message to the announcement: one that meets its beginning would be dropped in parts."""

_MOST_ENDINGS = 2
_REST = 3600.0
"""Seconds without another attempt to subscribe, where so many of them ended the connection."""


class Births:
    """Hears when Home Assistant starts; one for each sink. `clock` is in seconds.

    `problem` says why that is not heard.
    """

    def __init__(self, prefix: str, *, sleep: Callable[[float], Awaitable[None]], clock: Callable[[], float]) -> None:
        self.topic = f"{prefix}/status"
        self._sleep = sleep
        self._clock = clock
        self._born = asyncio.Event()
        self._endings = 0
        self._rests_until = 0.0
        self.problem: str | None = None

    async def listen(self, connection: Connection) -> bool:
        """True where there is nothing to try again on this connection."""
        if self._endings >= _MOST_ENDINGS:
            self._endings, self._rests_until = 0, self._clock() + _REST
        if self._clock() < self._rests_until or connection.end.done():
            return True
        self._endings += 1
        taken = await connection.subscribe([self.topic], qos=0, during="subscribe")
        if connection.end.done():
            self.problem = f"{self._unheard}: the broker ends the connection when the bridge subscribes to {self.topic}"
            return True
        self._endings = 0
        self.problem = None if taken else f"{self._unheard}: the broker does not allow reading {self.topic}"
        return bool(taken)

    @property
    def _unheard(self) -> str:
        return "a restart of Home Assistant is not noticed"

    def heard(self, message: MQTTMessage) -> None:
        """A retained one is from before: everything was just announced."""
        if message.payload == ONLINE and not message.retain:
            self._born.set()

    async def run(self, announce_again: Callable[[], Awaitable[None]]) -> None:
        """Never returns."""
        while True:
            await self._born.wait()
            await self._sleep(_WAITS)  # several at once are one
            self._born.clear()
            try:
                await announce_again()
            except asyncio.CancelledError:
                self._born.set()  # the next connection answers it
                raise
