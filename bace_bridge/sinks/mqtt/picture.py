"""The retained picture of one connection: what is meant, acknowledged and left to do; and the list of devices."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import msgspec

from bace_bridge.events.types import DeviceState, KnownDevice
from bace_bridge.formats import iso_utc
from bace_bridge.sinks.mqtt.refusals import Refusals, TopicSuspicion
from bace_bridge.sinks.mqtt.topics import CLEARED, Kind, Neighbours, Topics, Views, base_of, decide

AT_MOST_EVERY = 60.0
"""Seconds between two lists, unless a data session starts or ends."""

LARGEST = 512 * 2**10
"""Bytes of a list at any broker: some take no packet of more than 1 MiB, and do not say so. 2,000 devices have room."""

_BESIDE_THE_LIST = 2048
"""Bytes that the rest of the packet takes at most: its topic is 1 KiB at most."""


class _Row(msgspec.Struct, frozen=True):
    """The contract's device object."""

    id: str
    label: str | None
    active_session_id: str | None
    last_seen_at: str | None
    last_session_id: str | None


class DeviceList:
    """Does no I/O. `largest_packet` is what the broker takes, in bytes, None where it does not say.

    `clock` is in seconds. `payload` is the list as it was read last, None before that.
    """

    def __init__(self, *, largest_packet: int | None, clock: Callable[[], float]) -> None:
        self._largest = max(0, min(LARGEST, (largest_packet or 2 * LARGEST) - _BESIDE_THE_LIST))
        self._clock = clock
        self._rows: dict[str, KnownDevice] = {}
        self._sessions: dict[str, tuple[str | None, str | None]] = {}
        self._outdated: set[str] = set()
        self._due_at = clock()
        self.payload: bytes | None = None
        self.problem: str | None = None

    def note(self, states: Mapping[str, DeviceState], *, asked: Collection[str] | None) -> None:
        """How these devices stand now; all there are where none were `asked` for."""
        for device in asked if asked is not None else {*states, *self._sessions}:
            state = states.get(device)
            before = self._sessions.pop(device, None)
            if state is not None:
                self._sessions[device] = (state.active_session_id, state.last_session_id)
            if self._sessions.get(device) != before:
                # A session that starts or ends is news; `last_seen_at` alone moves with each fetch and waits for its
                # minute.
                self._due_at = self._clock()
            if state is not None or before is not None:
                self._outdated.add(device)

    def due_in(self) -> float | None:
        """Seconds until some devices are to be read again; None where nothing has changed."""
        return max(0.0, self._due_at - self._clock()) if self._outdated or self.payload is None else None

    def begin(self) -> set[str]:
        """The devices to be read now."""
        outdated, self._outdated = self._outdated, set()
        self._due_at = self._clock() + AT_MOST_EVERY
        return outdated

    def failed(self, devices: Collection[str]) -> None:
        """They could not be read."""
        self._outdated.update(devices)
        self._due_at = self._clock()

    def read(self, known: Collection[KnownDevice], *, asked: Collection[str]) -> None:
        for device in asked:
            self._rows.pop(device, None)
        self._rows.update((one.id, one) for one in known)
        rows, room = [], self._largest - len(b"[]")
        # Where the list is cut, the devices that matter now stay: the active ones, and those seen last.
        for one in sorted(
            self._rows.values(), key=lambda one: (one.active_session_id is None, -(one.last_seen_at or 0.0), one.id)
        ):
            seen = None if one.last_seen_at is None else iso_utc(one.last_seen_at)
            label, active, last = map(_whole, (one.label, one.active_session_id, one.last_session_id))
            row = msgspec.json.encode(_Row(_whole(one.id) or "", label, active, seen, last))
            room -= len(row) + len(b",")
            if room < 0:
                break
            rows.append(row)
        self.payload, left_out = b"[%b]" % b",".join(rows), len(self._rows) - len(rows)
        self.problem = None
        if left_out:
            self.problem = (
                f"the list of devices leaves out {left_out} of {len(self._rows)}: more than {self._largest} bytes"
            )


def _whole(text: str | None) -> str | None:
    """Without half characters, for which UTF-8 has no bytes."""
    return None if text is None else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


ONLINE, OFFLINE = b"online", b"offline"

Later = Mapping[str, Collection[str]]
"""Devices that are announced in a later group, with their topics."""


class Memory(NamedTuple):
    """What a sink remembers from connection to connection. `installation` is the name of this one.

    `groups` are the devices that it shows, all of them where it is empty. `to_forget` has to go out of the ledger.
    `announced_elsewhere` knows the discovery topics of the bridge's other sinks at this broker.
    """

    installation: str
    groups: frozenset[str]
    refusals: Refusals
    suspicion: TopicSuspicion
    neighbours: Neighbours
    to_forget: set[str]
    announced_elsewhere: Callable[[str], bool] = lambda _topic: False

    def shows(self, device: str) -> bool:
        return not self.groups or device in self.groups


class Picture:
    """Does no I/O. `noted` is what the ledger holds once it was read.

    `is_discovery` knows the topics on which devices are announced.
    """

    def __init__(self, topics: Topics, memory: Memory, is_discovery: Callable[[str], bool]) -> None:
        self._topics = topics
        self._memory = memory
        self.is_discovery = is_discovery
        self._of_device: dict[str, Collection[str]] = {}
        self._of_bridge: set[str] = set()
        # A dict for its order: what changed first goes out first.
        self._undecided: dict[str, None] = {}
        # What is acknowledged from here on may still be the message before.
        self._again: set[str] = set()
        # In the ledger, but not acknowledged by any broker: there may be nothing to clear.
        self._untaken: set[str] = set()
        self._shown: Collection[str] = ()
        self._ledger_is_compared = self._tree_is_compared = False
        self.is_whole = False
        """False while something waits for the broker to have shown what it keeps."""
        self.meant: dict[str, bytes] = {}
        self.acknowledged: dict[str, bytes] = {}
        self.noted: set[str] = set()
        self.bases: list[str] = []
        """The base topics that were in use before: each has left its `bridge/state`."""

    def next_in(self) -> float | None:
        """Seconds until something that is left may be tried; None where nothing is left."""
        due_in = self._memory.refusals.due_in
        return min((due_in(topic, self._kind(topic)) for topic in self._undecided), default=None)

    @property
    def announced_devices(self) -> set[str]:
        return {device for device, topics in self._of_device.items() if any(map(self.is_discovery, topics))}

    @property
    def online_devices(self) -> list[str]:
        """The availability topics that may say so, also from before: not all are published again at once."""
        taken, sent_alone = self.noted - self._untaken, self._memory.suspicion.sent_alone
        found = (self._topics.of(device).availability for device in self._of_device)
        return [
            topic
            for topic in found
            if topic in taken and self.acknowledged.get(topic, ONLINE) == ONLINE and not sent_alone(topic)
        ]

    # --- what is meant, and what the others know

    def read_ledger(self, topics: Collection[str]) -> None:
        self.noted.update(topics)
        end = self._topics.bridge_state.removeprefix(self._topics.base)
        self.bases = sorted({one.removesuffix(end) for one in topics if one.endswith(end)} - {self._topics.base})

    def read_tree(self, unknown: Collection[str]) -> None:
        """The broker has shown what it keeps, as far as it may be read: the topics among it that are unknown here."""
        self._shown, self.is_whole = unknown, True
        self._tree_is_compared = False

    def mean_bridges_device(self, announced: Mapping[str, bytes]) -> None:
        """The topics that announce the bridge itself."""
        for topic in self._of_bridge - announced.keys():
            self._mean(topic, None)
        for topic, payload in announced.items():
            self._mean(topic, payload)
        self._of_bridge = set(announced)

    def mean_bridge(self, info: bytes, health: bytes, devices: bytes | None) -> None:
        """`devices` is the list of them, None before it was read."""
        topics = self._topics
        self._mean(topics.bridge_state, ONLINE)
        self._mean(topics.bridge_health, health)
        if not self.is_whole:  # whose the base topic is, is not known yet
            return
        # Two bridges that both wrote bridge/info would overwrite each other's for ever: the second one is a guest.
        guest = topics.guest + self._memory.installation
        if self._memory.neighbours.owner(topics.base) is None:
            self._mean(topics.bridge_info, info)
            self._mean(guest, None)
            if devices is not None:
                self._mean(topics.bridge_devices, devices)
        else:
            self._mean(guest, info)
            for topic in (topics.bridge_info, topics.bridge_devices):  # they belong to the other bridge now
                self.meant.pop(topic, None)
                self.acknowledged.pop(topic, None)
                self._undecided.pop(topic, None)
                if topic in self.noted:
                    self._memory.to_forget.add(topic)

    def mean_devices(self, meant: Mapping[str, Mapping[str, bytes]], *, asked: Collection[str] | None) -> None:
        """The topics of each device; of all there are, where none were `asked` for."""
        for device in asked if asked is not None else dict.fromkeys((*meant, *self._of_device)):
            of_device = meant.get(device, {})
            if self._memory.shows(device):
                for topic in self._of_device.get(device, ()):
                    if topic not in of_device:
                        self._mean(topic, None)
                for topic, payload in of_device.items():
                    self._mean(topic, payload)
                if asked is None:
                    self._of_device.pop(device, None)  # the order is that of `meant`
                self._of_device[device] = of_device.keys()

    def compare(self, *, is_current: bool) -> None:
        """Once for a connection, when all devices were read: what the ledger and the tree hold beside what is meant.

        What the tree alone holds waits until the view of the cloud `is_current`: with a new store nothing is known.
        """
        if not self.is_whole:
            return
        if not self._ledger_is_compared:
            self._ledger_is_compared = True
            self._undecided.update(dict.fromkeys(sorted(self.noted - self.meant.keys() - self._memory.to_forget)))
        if not self._tree_is_compared and is_current:
            self._tree_is_compared = True
            self._undecided.update(dict.fromkeys(sorted(self._shown)))

    # --- what follows

    def later(self, most: int, first: Collection[str]) -> Later:
        """What does not fit into a group: so many bytes of discovery, at least one device, and these devices first."""
        later, size = {}, 0
        for device in sorted(self._of_device, key=lambda one: one not in first):
            topics = self._of_device[device]
            due = (topic for topic in topics if topic in self._undecided and self._is_announced_now(topic))
            if size < most:
                size += sum(len(self.meant[topic]) for topic in due)
            elif any(due):
                later[device] = topics
        return later

    def _is_announced_now(self, topic: str) -> bool:
        if not self.is_discovery(topic) or self._memory.suspicion.sent_alone(topic):
            return False
        return self._memory.refusals.due_in(topic, "discovery") == 0

    def changes(
        self, *, alone: bool = False, discovery: bool | None = None, later: Later | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """What is to be published now: what is sent `alone` because it is suspected, or everything else.

        `discovery` chooses between what announces devices, and the rest.
        """
        memory = self._memory
        left = {topic for topics in (later or {}).values() for topic in topics}
        for topic in list(self._undecided):
            if topic in left:
                continue
            if memory.suspicion.sent_alone(topic) != alone or discovery not in {None, self.is_discovery(topic)}:
                continue
            views = Views(self.meant.get(topic), None if topic in self._again else self.acknowledged.get(topic))
            if views.meant is None:
                noted = topic in self.noted and topic not in self._untaken
                views = Views(None, views.acknowledged, noted, topic in self._shown, shared=self._is_shared(topic))
            action = decide(views)
            if action == "leave":
                del self._undecided[topic]
                memory.refusals.drop(topic)
                if topic not in self.meant and topic in self._untaken:
                    memory.to_forget.add(topic)
            elif memory.refusals.may_try(topic, self._kind(topic)):
                del self._undecided[topic]
                self._again.discard(topic)
                yield topic, CLEARED if action == "clear" else self.meant[topic]

    def note(self, topics: Collection[str]) -> None:
        """They go into the ledger before they are published."""
        self._untaken.update(set(topics) - self.noted)
        self.noted.update(topics)
        self._memory.to_forget.difference_update(topics)

    def forget(self) -> set[str]:
        """What goes out of the ledger now."""
        topics = set(self._memory.to_forget)
        self._memory.to_forget.clear()
        self.noted -= topics
        self._untaken -= topics
        return topics

    def taken(self, topic: str, payload: bytes) -> bool:
        """The broker has acknowledged it; True where more may be tried now."""
        self.acknowledged[topic] = payload
        self._untaken.discard(topic)
        if payload == CLEARED:
            self._memory.to_forget.add(topic)
        return self._memory.refusals.taken(topic, self._kind(topic))

    def refused(self, topic: str, problem: str) -> None:
        self._undecided[topic] = None
        closes = topic in self._memory.suspicion.blamed
        self._memory.refusals.refused(topic, self._kind(topic), problem, closes=closes)
        if closes and topic in self._untaken:
            self._memory.to_forget.add(topic)

    def again(self, topic: str) -> None:
        """It has to be published again, whatever was acknowledged."""
        self._again.add(topic)
        self._undecided[topic] = None

    def _mean(self, topic: str, payload: bytes | None) -> None:
        acknowledged = self.acknowledged.get(topic)
        if payload is None:
            self.meant.pop(topic, None)
            differs = bool(acknowledged) or topic in self.noted
        else:
            self.meant[topic] = payload
            differs = acknowledged != payload
        if differs:
            self._undecided[topic] = None

    def _kind(self, topic: str) -> Kind | None:
        return "discovery" if self.is_discovery(topic) else self._topics.kind(topic)

    def _is_shared(self, topic: str) -> bool:
        base = base_of(topic, (self._topics.base, *self.bases))
        if base is None:
            # What announces a device: all bridges say the same there, but of themselves.
            others = f"/bace_bridge_{self._memory.installation}/" not in topic and bool(
                self._memory.neighbours.others(self._topics.base)
            )
            return others or self._memory.announced_elsewhere(topic)
        if topic == f"{base}/bridge/guest/{self._memory.installation}":
            return False
        if topic == f"{base}/bridge/info":
            return self._memory.neighbours.owner(base) is not None
        return bool(self._memory.neighbours.others(base))
