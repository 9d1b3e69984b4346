"""Keeps the broker's retained messages as the state is."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Protocol

from bace_bridge.domain.state import DeviceState
from bace_bridge.errors import SinkError, SinkUnavailable, StoreError
from bace_bridge.sinks.mqtt.retained import changes, device_topics
from bace_bridge.sinks.mqtt.topics import Topics
from bace_bridge.sinks.mqtt.window import Done, Message

Publish = Callable[[Message, Done], None]

ONLINE, OFFLINE = b"online", b"offline"

_AT_MOST_EVERY = 0.25
"""Seconds between two looks at the devices that changed, so that a drained backlog costs few reads."""

_AFTER_TROUBLE = 5.0


class StateSource(Protocol):
    async def devices(self, ids: Collection[str] | None) -> list[DeviceState]:
        """How these devices stand now; all of them for None."""

    def info(self) -> bytes: ...

    def health(self) -> bytes: ...


class Mirror:
    """One for each connection: on every connect everything is published again, and then what changed."""

    def __init__(
        self,
        state: StateSource,
        topics: Topics,
        publish: Publish,
        *,
        groups: Collection[str],
        window: int,
        sleep: Callable[[float], Awaitable[None]],
        warn: Callable[..., None],
    ) -> None:
        self._state = state
        self._topics = topics
        self._publish = publish
        self._groups = frozenset(groups)
        self._window = window
        self._unacknowledged = 0
        self._progress = asyncio.Event()
        self._sleep = sleep
        self._warn = warn
        self._bridge: dict[str, bytes] = {}
        self._devices: dict[str, dict[str, bytes]] = {}
        self._dirty: set[str] = set()
        self._all_dirty = True
        self._news = asyncio.Event()
        self.complete = asyncio.Event()

    def touch(self, device: str) -> None:
        self._dirty.add(device)
        self._news.set()

    def touch_all(self, devices: Iterable[str] | None = None) -> None:
        if devices is None:
            self._all_dirty = True
        else:
            self._dirty.update(devices)
        self._news.set()

    def look_at_bridge(self) -> None:
        self._news.set()

    async def keep(self) -> None:
        """Never returns. `complete` is set when the broker has all of it for the first time."""
        while True:
            self._news.clear()
            await self._publish_bridge()
            readable = await self._publish_devices()
            await self._at_most(0)
            self.complete.set()
            await self._sleep(_AT_MOST_EVERY if readable else _AFTER_TROUBLE)
            await self._news.wait()

    async def farewell(self) -> None:
        """Says that nothing is current any more; `keep` must have been cancelled."""
        for device, published in self._devices.items():
            topic = self._topics.availability(device)
            if published.get(topic) == ONLINE:
                await self._tell(topic, OFFLINE)
        await self._tell(self._topics.bridge_state, OFFLINE)
        await self._at_most(0)

    async def _publish_bridge(self) -> None:
        wanted = {
            self._topics.bridge_state: ONLINE,
            self._topics.bridge_info: self._state.info(),
            self._topics.bridge_health: self._state.health(),
        }
        await self._publish_changes(self._bridge, wanted)
        self._bridge = wanted

    async def _publish_devices(self) -> bool:
        """False when the state could not be read; it is then read again later."""
        asked = None if self._all_dirty else self._of_interest(self._dirty)
        self._all_dirty, self._dirty = False, set()
        if asked is not None and not asked:
            return True
        try:
            states = await self._state.devices(asked)
        except StoreError as error:
            self._warn("mqtt.state_unreadable", problem=str(error))
            self.touch_all(asked)
            return False
        found = {state.device_id: state for state in states}
        for device in asked if asked is not None else self._of_interest({*found, *self._devices}):
            state = found.get(device)
            wanted = device_topics(state, self._topics) if state is not None else {}
            await self._publish_changes(self._devices.get(device, {}), wanted)
            self._devices[device] = wanted
        return True

    def _of_interest(self, devices: set[str]) -> set[str]:
        return devices & self._groups if self._groups else devices

    async def _publish_changes(self, published: dict[str, bytes], wanted: dict[str, bytes]) -> None:
        for topic, payload in changes(published, wanted):
            await self._tell(topic, payload)

    async def _tell(self, topic: str, payload: bytes) -> None:
        await self._at_most(self._window - 1)
        self._unacknowledged += 1
        self._publish(Message(topic, payload, qos=1, retain=True), partial(self._told, topic))

    def _told(self, topic: str, error: SinkError | None) -> None:
        self._unacknowledged -= 1
        self._progress.set()
        if error is not None and not isinstance(error, SinkUnavailable):
            self._warn("mqtt.state_refused", topic=topic, problem=str(error))

    async def _at_most(self, unacknowledged: int) -> None:
        while self._unacknowledged > unacknowledged:
            self._progress.clear()
            await self._progress.wait()
