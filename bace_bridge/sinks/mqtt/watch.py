"""Sets right what others write where this bridge says who and how it is."""

import asyncio
from collections.abc import Awaitable, Callable

from paho.mqtt.client import MQTTMessage

from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.mirror import Mirror
from bace_bridge.sinks.mqtt.topics import Topics
from bace_bridge.sinks.mqtt.tree import Tree

_ANSWER_EVERY = 10.0
"""Seconds between two answers on a topic: two that answer each other would go on for ever."""


class Watch:
    """One for each connection; `changed` is called when it may have become known that another bridge is there."""

    def __init__(
        self,
        topics: Topics,
        tree: Tree,
        connection: Connection,
        mirror: Mirror,
        *,
        sleep: Callable[[float], Awaitable[None]],
        warn: Callable[..., None],
        changed: Callable[[], None],
    ) -> None:
        self._topics = topics
        self._tree = tree
        self._connection = connection
        self._mirror = mirror
        self._sleep = sleep
        self._warn = warn
        self._changed = changed
        self._written = {topic: asyncio.Event() for topic in tree.watched}

    def heard(self, topic: str, message: MQTTMessage) -> None:
        """What comes as retained was there when the bridge subscribed: `bridge/info` is judged by who reads it."""
        meant, payload = self._mirror.picture.meant(topic), bytes(message.payload)
        if topic not in self._written or payload == meant:
            return
        if topic == self._topics.bridge_state or (
            not message.retain and (meant is not None or topic == self._topics.bridge_info)
        ):
            self._written[topic].set()

    async def keep(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as tasks:
            for topic, written in self._written.items():
                tasks.create_task(self._keep(topic, written))

    async def _keep(self, topic: str, written: asyncio.Event) -> None:
        while True:
            await written.wait()
            written.clear()
            wrong = await self._is_wrong(topic)
            if wrong:
                self._warn("mqtt.foreign_message", topic=topic, then="published again")
            await self._mirror.settle(again=[topic] if wrong else [])
            self._changed()
            await self._sleep(_ANSWER_EVERY)
            if topic == self._topics.bridge_state:  # another bridge that leaves says the same of its devices, then
                await self._mirror.settle(again=self._mirror.picture.online_devices)

    async def _is_wrong(self, topic: str) -> bool:
        """Subscribers have heard a wrong state, also where it is not kept; all else counts only as it is kept."""
        if topic == self._topics.bridge_state:
            return True
        lost = await self._tree.look(self._connection, self._mirror.picture, self._tree.watched)
        return lost is None or topic in lost
