"""Discovery, killed at each step of a change: Home Assistant ends with the entities that are meant, and no others."""

import itertools
import json
from collections.abc import Mapping, Sequence

import pytest

from bace_bridge.events.types import DeviceState
from bace_bridge.sinks.mqtt.config import HomeAssistantConfig
from bace_bridge.sinks.mqtt.homeassistant.announcing import Announcer
from bace_bridge.sinks.mqtt.homeassistant.discovery import Discovery, components_of
from bace_bridge.sinks.mqtt.topics import Topics
from tests.integration.test_mqtt_discovery import device
from tests.integration.test_mqtt_sink import MemoryLedger

BEFORE = [device("g1", "a", "b"), device("g2", "a")]
CHANGES = {
    "a series goes": [device("g1", "a"), device("g2", "a")],
    "a device goes": [device("g1", "a", "b")],
    "both": [device("g1", "a")],
    "a series and a device come": [device("g1", "a", "b", "c"), device("g3", "x")],
}


class Killed(Exception):
    pass


class HomeAssistant:
    """With a broker that keeps what is retained. What is registered goes only where it is removed as one that lives."""

    def __init__(self) -> None:
        self.is_up = True
        self.registered: set[str] = set()
        self._retained: dict[str, bytes] = {}
        self._live: dict[str, set[str]] = {}

    @property
    def live(self) -> set[str]:
        return set().union(*self._live.values())

    def start(self) -> None:
        self.is_up, self._live = True, {}
        for topic, payload in self._retained.items():
            self._hear(topic, payload)

    def publish(self, topic: str, payload: bytes) -> None:
        self._retained[topic] = payload
        if self.is_up:
            self._hear(topic, payload)

    def _hear(self, topic: str, payload: bytes) -> None:
        live = self._live.setdefault(topic, set())
        document = json.loads(payload or b"{}")
        if not document:
            self.registered -= live
        if not document or "migrate_discovery" in document:
            live.clear()
            return
        *_, node, key, _config = topic.split("/")
        parts = document.get("cmps", {key: document})
        for name, part in parts.items():
            unique = f"{key if node == 'device' else node}_{name}"
            if len(part) > 1:
                live.add(unique)
                self.registered.add(unique)
            elif unique in live:
                live.remove(unique)
                self.registered.remove(unique)


class Line:
    """A ledger and a broker, and how many writes and messages there may be before the bridge is killed."""

    def __init__(self) -> None:
        self.home = HomeAssistant()
        self.ledger = MemoryLedger()
        self.left: int | None = None

    async def connect(self, states: Sequence[DeviceState], mode: str, *, birth: bool = False) -> None:
        discovery = discovery_of(mode)
        cleared: set[str] = set()

        async def send(batch: Mapping[str, bytes]) -> bool:
            for topic, payload in batch.items():
                self.step()
                self.home.publish(topic, payload)
                (cleared.discard if payload else cleared.add)(topic)
            return True

        announcer = Announcer(
            discovery,
            Steps(self),
            enabled=True,
            datatypes=dict,
            sinks=tuple,
            send=send,
            sleep=at_once,
            warn=lambda *_args, **_fields: None,
        )

        async def announce(*groups: Mapping[str, bytes]) -> None:
            for group in groups:
                await Steps(self).note(group.keys() - cleared)
                await announcer.announce(group, is_last=group is groups[-1])
                await Steps(self).forget(cleared)
                cleared.clear()

        noted = await self.ledger.topics()
        await announcer.read_ledger()
        groups = [announcer.device(one) for one in states]
        meant = {topic: payload for group in groups for topic, payload in group.items()}
        await announcer.migrate(noted, meant)
        left = [topic for topic in sorted(noted - meant.keys() - cleared) if discovery.is_discovery(topic)]
        await announce(*groups, dict.fromkeys(left, b""))
        if birth:
            announcer.began_anew()
            await announce(*groups)

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed


class Steps(MemoryLedger):
    """The ledger of a line, each write of which is a step."""

    def __init__(self, line: Line) -> None:
        self.__dict__ = line.ledger.__dict__
        self._step = line.step

    def _write(self) -> None:
        self._step()


async def at_once(_seconds: float) -> None:
    pass


def discovery_of(mode: str) -> Discovery:
    config = HomeAssistantConfig.model_validate({"mode": mode})
    return Discovery(config, Topics("bace"), installation="i", version="1", requests=True, largest=None)


def entities(states: Sequence[DeviceState], mode: str) -> set[str]:
    found = {name: one for state in states for name, one in discovery_of(mode).device(state, {}).items()}
    return {f"{topic.split('/')[2]}_{key}" for topic, payload in found.items() for key in components_of(topic, payload)}


@pytest.mark.parametrize("home_is_down", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("before", "after"), list(itertools.product(["device", "component"], repeat=2)))
async def test_a_kill_at_any_step_leaves_nothing_behind(
    before: str, after: str, change: str, *, home_is_down: bool
) -> None:
    states = CHANGES[change]
    for kill_after in itertools.count():
        line = Line()
        await line.connect(BEFORE, before)
        line.home.is_up = not home_is_down
        line.left = kill_after
        try:
            await line.connect(states, after)
        except Killed:
            pass
        else:
            break
        finally:
            line.left = None
        await line.connect(states, after)
        if home_is_down:
            line.home.start()
        await line.connect(states, after, birth=home_is_down)
        assert line.home.live == line.home.registered == entities(states, "component"), kill_after
        if home_is_down:
            assert not [topic for topic, one in line.ledger.of_discovery.items() if one.is_cleared]
    assert kill_after > 3
