"""The retained picture of one connection: what is meant, what the broker has acknowledged, and what is left to do."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from bace_bridge.sinks.mqtt.refusals import Refusals, TopicSuspicion
from bace_bridge.sinks.mqtt.topics import CLEARED, Neighbours, Topics, Views, base_of, base_topics, decide

ONLINE, OFFLINE = b"online", b"offline"


class Memory(NamedTuple):
    """What a sink remembers from connection to connection. `installation` is the name of this one.

    `groups` are the devices that it shows, all of them where it is empty. `to_forget` has to go out of the ledger.
    """

    installation: str
    groups: frozenset[str]
    refusals: Refusals
    suspicion: TopicSuspicion
    neighbours: Neighbours
    to_forget: set[str]

    def shows(self, device: str) -> bool:
        return not self.groups or device in self.groups


class Picture:
    """Does no I/O. `noted` is what the ledger holds once it was read."""

    def __init__(self, topics: Topics, memory: Memory) -> None:
        self._topics = topics
        self._memory = memory
        self._of_device: dict[str, Collection[str]] = {}
        # A dict for its order: what changed first goes out first.
        self._undecided: dict[str, None] = {}
        # In the ledger, but not acknowledged by any broker: there may be nothing to clear.
        self._untaken: set[str] = set()
        self._shown: Collection[str] | None = None
        self._ledger_is_compared = self._tree_is_compared = False
        self.meant: dict[str, bytes] = {}
        self.acknowledged: dict[str, bytes] = {}
        self.noted: set[str] = set()
        self.bases: list[str] = []

    @property
    def is_whole(self) -> bool:
        """False while something waits for the broker to have shown what it keeps."""
        return self._shown is not None

    def next_in(self) -> float | None:
        """Seconds until something that is left may be tried; None where nothing is left."""
        due_in = self._memory.refusals.due_in
        return min((due_in(topic, self._topics.kind(topic)) for topic in self._undecided), default=None)

    @property
    def online_devices(self) -> list[str]:
        """The availability topics that say so."""
        found = (self._topics.availability(device) for device in self._of_device)
        return [topic for topic in found if self.acknowledged.get(topic) == ONLINE]

    # --- what is meant, and what the others know

    def read_ledger(self, topics: Collection[str]) -> None:
        self.noted.update(topics)
        self.bases = base_topics(topics, self._topics)

    def read_tree(self, unknown: Collection[str]) -> None:
        """The broker has shown what it keeps, as far as it may be read: the topics among it that are unknown here."""
        self._shown = unknown
        self._tree_is_compared = False

    def mean_bridge(self, info: bytes, health: bytes, devices: bytes | None) -> None:
        """`devices` is the list of them, None before it was read."""
        topics = self._topics
        self._mean(topics.bridge_state, ONLINE)
        self._mean(topics.bridge_health, health)
        if self._shown is None:  # whose the base topic is, is not known yet
            return
        # Two bridges that both wrote bridge/info would overwrite each other's for ever: the second one is a guest.
        guest = topics.guest(self._memory.installation)
        if self._memory.neighbours.owner(topics.base) is None:
            self._mean(topics.bridge_info, info)
            self._mean(guest, None)
            if devices is not None:
                self._mean(topics.bridge_devices, devices)
        else:
            self._mean(guest, info)
            self._leave(topics.bridge_info)
            self._leave(topics.bridge_devices)

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
                self._of_device[device] = of_device.keys()

    def compare(self, *, is_current: bool) -> None:
        """Once for a connection, when all devices were read: what the ledger and the tree hold beside what is meant.

        What the tree alone holds waits until the view of the cloud `is_current`: with a new store nothing is known.
        """
        if self._shown is None:
            return
        if not self._ledger_is_compared:
            self._ledger_is_compared = True
            self._undecided.update(dict.fromkeys(sorted(self.noted - self.meant.keys() - self._memory.to_forget)))
        if not self._tree_is_compared and is_current:
            self._tree_is_compared = True
            self._undecided.update(dict.fromkeys(sorted(self._shown)))

    # --- what follows

    def changes(self, *, alone: bool) -> Iterator[tuple[str, bytes]]:
        """What is to be published now: what is sent `alone` because it is suspected, or everything else."""
        memory = self._memory
        for topic in list(self._undecided):
            if memory.suspicion.sent_alone(topic) != alone:
                continue
            action = decide(self._views(topic))
            if action == "leave":
                del self._undecided[topic]
                memory.refusals.drop(topic)
                if topic not in self.meant and topic in self._untaken:
                    memory.to_forget.add(topic)
            elif memory.refusals.may_try(topic, self._topics.kind(topic)):
                del self._undecided[topic]
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
        return self._memory.refusals.taken(topic, self._topics.kind(topic))

    def refused(self, topic: str, problem: str) -> None:
        self._undecided[topic] = None
        closes = self._memory.suspicion.is_blamed(topic)
        self._memory.refusals.refused(topic, self._topics.kind(topic), problem, closes=closes)
        if closes and topic in self._untaken:
            self._memory.to_forget.add(topic)

    def again(self, topic: str) -> None:
        """It has to be published again, whatever was acknowledged."""
        self.acknowledged.pop(topic, None)
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

    def _leave(self, topic: str) -> None:
        """It belongs to another bridge now."""
        self.meant.pop(topic, None)
        self.acknowledged.pop(topic, None)
        self._undecided.pop(topic, None)
        if topic in self.noted:
            self._memory.to_forget.add(topic)

    def _views(self, topic: str) -> Views:
        meant, acknowledged = self.meant.get(topic), self.acknowledged.get(topic)
        if meant is not None:
            return Views(meant, acknowledged)
        return Views(
            None,
            acknowledged,
            noted=topic in self.noted and topic not in self._untaken,
            shown=self._shown is not None and topic in self._shown,
            shared=self._is_shared(topic),
        )

    def _is_shared(self, topic: str) -> bool:
        base = base_of(topic, (self._topics.base, *self.bases))
        if base is None or topic == f"{base}/bridge/guest/{self._memory.installation}":
            return False
        if topic == f"{base}/bridge/info":
            return self._memory.neighbours.owner(base) is not None
        return bool(self._memory.neighbours.others(base))
