"""Keeps the broker's retained messages as the state is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from bace_bridge.errors import SinkError, SinkUnavailable, StoreError
from bace_bridge.sinks.api import Done, Ledger, StateSource
from bace_bridge.sinks.mqtt.homeassistant.announcing import Announcer, Batch, Send
from bace_bridge.sinks.mqtt.messages import Message, of_state
from bace_bridge.sinks.mqtt.picture import OFFLINE, DeviceList, Later, Memory, Picture
from bace_bridge.sinks.mqtt.topics import CLEARED, Topics, device_topics

Publish = Callable[[Message, Done], None]

_AT_MOST_EVERY = 0.25
"""Seconds between two reads of the devices that changed, so that a drained backlog costs few of them."""

_AT_LEAST_EVERY = 3600.0
"""Seconds between two rounds, the second of which finds nothing to do as a rule."""

_AFTER_FAILURE = 5.0

_DISCOVERY_AT_ONCE = 350_000
"""Bytes, of some 25 devices with 8 series; each such group that the broker takes needs `SETTLES_IN`.

Home Assistant subscribes to some twenty topics a device, and takes what comes there more slowly than it is published.
Brokers drop what waits for it, Mosquitto beyond 1,000 messages, and the bridge hears nothing of that.
"""

LONGEST_HELD = 10.0
"""Seconds that a new device's events wait at most for its discovery."""


class Mirror:
    """One for each connection: on every connect everything is published again, and then what changed."""

    def __init__(
        self,
        state: StateSource,
        ledger: Ledger,
        topics: Topics,
        publish: Publish,
        memory: Memory,
        device_list: DeviceList,
        *,
        announcer: Callable[[Send], Announcer],
        speaks_5: bool,
        window: int,
        sleep: Callable[[float], Awaitable[None]],
        warn: Callable[..., None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun = self._done_with = 0
        self._state = state
        self._ledger = ledger
        self._topics = topics
        self._publish = publish
        self._memory = memory
        self._device_list = device_list
        self._in_flight = window
        self._sleep = sleep
        self._warn = warn
        self._unacknowledged = 0
        self._progress = asyncio.Event()
        self._dirty: set[str] = set()
        self._all_dirty = True
        self._news = asyncio.Event()
        self._unnoted: set[str] = set()
        self._ledger_is_read = self._devices_are_read = self._is_migrated = self._is_shared = False
        self._speaks_5 = speaks_5
        self._announcer = announcer(self._send_all)
        self._announced: set[str] = set()
        self._held: dict[str, list[tuple[Message, Done]]] = {}
        self.picture = Picture(topics, memory, self._announcer.is_discovery)
        self.complete = asyncio.Event()
        self.settled = asyncio.Event()

    def refresh(self, devices: Iterable[str] | None = ()) -> None:
        """The state of these devices, all of them for None, or that of the bridge may have changed."""
        self._all_dirty = self._all_dirty or devices is None
        self._dirty.update(devices or ())
        self._news.set()

    async def settle(self, *, again: Iterable[str] = ()) -> None:
        """Returns when everything that is meant now was published, these topics `again`."""
        for topic in again:
            self.picture.again(topic)
        self._news.set()
        next_round = self._begun + 1  # the one that is under way may have missed it
        while self._done_with < next_round:
            self.settled.clear()
            await self.settled.wait()

    async def run(self) -> None:
        """Never returns. `complete` is set when the broker has all but what is suspected; `settled` after that."""
        # Everything is published on each connection: a broker that keeps its messages in memory has lost them with a
        # restart, and does not say so.
        self._memory.refusals.begin()
        while True:
            self._news.clear()
            self._begun += 1
            readable = await self._read_ledger()
            # The bridge's own first: the other devices are announced as connected by it.
            self._mean_bridges_device()
            news = set(self._dirty)
            readable = await self._read_devices() and await self._read_device_list() and readable
            self.picture.mean_bridge(self._state.info(), self._state.health(), self._device_list.payload)
            if self._ledger_is_read and self._devices_are_read:
                self.picture.compare(is_current=self._state.is_current())
                if not self._is_migrated:
                    self._is_migrated = True
                    await self._announcer.migrate(self.picture.noted, self.picture.meant)
            later = self.picture.later(_DISCOVERY_AT_ONCE, first=news | self._held.keys())
            announced = self.picture.announced_devices
            self._announced &= announced  # where a device is announced no more, its next events wait again
            await self._announce(later)
            await self._publish_changes(alone=False, later=later)
            self._let_go((announced | news - self._dirty) - later.keys())  # a dirty one may be back
            self._announced &= announced
            self.complete.set()
            if later:
                continue
            if self.picture.is_whole:
                self._memory.suspicion.completed()
            # After `complete`, from which events flow: a topic that costs the connection does not hold them up.
            await self._publish_changes(alone=True)
            self._done_with = self._begun
            self.settled.set()
            await self._sleep(_AT_MOST_EVERY if readable else _AFTER_FAILURE)
            due = [one for one in (self.picture.next_in(), self._device_list.due_in()) if one is not None]
            timer = self._loop.call_later(min(due, default=_AT_LEAST_EVERY), self._news.set)
            await self._news.wait()
            timer.cancel()

    def _mean_bridges_device(self) -> None:
        announced = self._announcer.bridge()
        self.picture.mean_bridges_device(announced)
        was_shared, self._is_shared = self._is_shared, any(map(self._memory.announced_elsewhere, announced))
        if was_shared and not self._is_shared:  # the last word may be that of the other sink
            for topic in filter(self._announcer.is_discovery, self.picture.meant):
                self.picture.again(topic)

    async def announce_again(self) -> None:
        """Home Assistant has started: it is to get everything once more."""
        self._announcer.began_anew()
        self._all_dirty = True  # for their order: those with an active data session first
        await self.settle(again=list(self.picture.meant))

    async def _read_ledger(self) -> bool:
        if self._ledger_is_read:
            return True
        try:
            await self._announcer.read_ledger()
            self.picture.read_ledger(await self._ledger.topics())
        except StoreError as error:
            self._warn("mqtt.state_unreadable", problem=str(error))
            self._news.set()
            return False
        self._ledger_is_read = True
        return True

    async def _read_devices(self) -> bool:
        """False when the state could not be read; it is then read again later."""
        asked = None if self._all_dirty else {one for one in self._dirty if self._memory.shows(one)}
        self._all_dirty, self._dirty = False, set()
        if asked is not None and not asked:
            return True
        try:
            states = await self._state.devices(asked)
        except StoreError as error:
            self._warn("mqtt.state_unreadable", problem=str(error))
            self.refresh(asked)
            return False
        meant = {}
        for one in sorted(states, key=lambda one: one.active_session_id is None):
            if self._memory.shows(one.device_id):
                meant[one.device_id] = self._announcer.device(one) | device_topics(one, self._topics)
                await asyncio.sleep(0)  # all of them take a second where there are thousands
        self.picture.mean_devices(meant, asked=asked)
        shown = {state.device_id: state for state in states if self._memory.shows(state.device_id)}
        self._device_list.note(shown, asked=asked)
        self._devices_are_read = True
        return True

    async def _read_device_list(self) -> bool:
        """As above; not more often than the list is due."""
        if self._device_list.due_in() != 0:
            return True
        asked = self._device_list.begin()
        try:
            known = await self._state.known_devices(asked)
        except StoreError as error:
            self._warn("mqtt.state_unreadable", problem=str(error))
            self._device_list.failed(asked)
            return False
        self._device_list.read(known, asked=asked)
        return True

    async def _announce(self, later: Later) -> None:
        if self._memory.suspicion.spreads:
            await self._publish_changes(alone=True)
        batch = dict(self.picture.changes(discovery=True, later=later))
        if batch:
            await self._note({topic for topic, payload in batch.items() if payload != CLEARED})
            await self._announcer.announce(batch, is_last=not later)
            await self._forget()

    async def _publish_changes(self, *, alone: bool, later: Later | None = None) -> None:
        changes = list(self.picture.changes(alone=alone, discovery=None if alone else False, later=later))
        # The ledger before the broker: after a kill a topic too many in it is cleared in vain, one too few may
        # stay for ever.
        await self._note({topic for topic, payload in changes if payload != CLEARED})
        for topic, payload in changes:
            await self._send(topic, payload)
            if alone:  # events go between
                await self._at_most(0)
        await self._at_most(0)
        await self._forget()

    async def _note(self, topics: set[str]) -> None:
        """Before they are published, so that the ledger knows them whenever the process is killed."""
        new = (topics - self.picture.noted) | self._unnoted
        self.picture.note(topics)
        if not new:
            return
        try:
            await self._ledger.note(new)
        except StoreError as error:
            self._warn("mqtt.ledger_not_written", problem=str(error))
            self._unnoted = new
        else:
            self._unnoted = set()

    async def _forget(self) -> None:
        topics = self.picture.forget()
        if not topics:
            return
        try:
            await self._ledger.forget(topics)
        except StoreError as error:
            self._warn("mqtt.ledger_not_written", problem=str(error))
            self._memory.to_forget.update(topics)

    async def _send_all(self, batch: Batch) -> bool:
        for topic, payload in batch.items():
            await self._send(topic, payload)
        await self._at_most(0)
        return any(self.picture.acknowledged.get(topic) == payload for topic, payload in batch.items())

    async def _send(self, topic: str, payload: bytes) -> None:
        # More would wait in the connection's queue, and every event behind it.
        await self._at_most(self._in_flight - 1)
        self._unacknowledged += 1
        # QoS 1 whatever the events' QoS is: without PUBACK a refused state would count as published.
        properties = of_state(payload) if self._speaks_5 else None
        message = Message(topic, payload, qos=1, retain=True, properties=properties)
        self._publish(message, partial(self._done, topic, payload))

    def _done(self, topic: str, payload: bytes, error: SinkError | None) -> None:
        self._unacknowledged -= 1
        self._progress.set()
        if error is None:
            if self.picture.taken(topic, payload):
                self._news.set()
        elif not isinstance(error, SinkUnavailable):
            self.picture.refused(topic, str(error))

    async def _at_most(self, unacknowledged: int) -> None:
        while self._unacknowledged > unacknowledged:
            self._progress.clear()
            await self._progress.wait()

    # --- events

    def publish_event(self, message: Message, device: str | None, done: Done) -> None:
        """The first ones of a new device wait until it was announced: Home Assistant would miss them."""
        if device is None or device in self._announced or not self._announcer.enabled:
            self._publish(message, done)
        else:
            if device not in self._held:
                self._held[device] = []
                self._loop.call_later(LONGEST_HELD, self._let_go, {device})
            self._held[device].append((message, done))
        if device is not None:
            self.refresh((device,))

    def _let_go(self, devices: Iterable[str]) -> None:
        self._announced.update(devices)
        for device in self._held.keys() & self._announced:
            for message, done in self._held.pop(device):
                self._publish(message, done)

    # --- the end

    def give_back(self, problem: str) -> None:
        """The events that still wait."""
        held, self._held = self._held, {}
        for _, done in (one for waiting in held.values() for one in waiting):
            done(SinkUnavailable(problem))

    async def say_offline(self) -> None:
        """That of the bridge; `run` must have been cancelled."""
        await self._send(self._topics.bridge_state, OFFLINE)

    async def say_devices_offline(self) -> None:
        """Says that no device's view is current any more; `run` must have been cancelled."""
        for topic in self.picture.online_devices:
            await self._send(topic, OFFLINE)
        await self._at_most(0)
