"""Attempts to connect: what is sent in CONNECT, and what the broker's refusals teach for the next attempt."""

from collections.abc import Callable

import msgspec
from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.config.models import MqttConfig
from bace_bridge.sinks.mqtt.broker import Unreachable, Will, new_client, reach
from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.endings import NO_RETAIN, QOS_TOO_HIGH, Ending, not_reached
from bace_bridge.sinks.mqtt.suspicion import Suspicion, TopicSuspicion
from bace_bridge.sinks.mqtt.versions import Version, Versions


class Dialer:
    def __init__(
        self,
        config: MqttConfig,
        *,
        client_id: str,
        version: str,
        will: Will,
        suspicion: Suspicion,
        of_topics: TopicSuspicion,
        log: FilteringBoundLogger,
    ) -> None:
        self.broker = f"{config.host}:{config.port}"
        self._config = config
        self._client_id = client_id
        self._version = version
        self._will = will
        self._suspicion = suspicion
        self._of_topics = of_topics
        self._log = log
        self._versions = Versions(config.protocol)

    @property
    def protocol(self) -> Version:
        return self._versions.next

    async def dial(self, on_message: Callable[[MQTTMessage], None]) -> Connection | Ending:
        """A connection that the broker has accepted, or why there is none."""
        client = new_client(self._config, client_id=self._client_id, protocol=self._versions.next, will=self._will)
        try:
            await reach(client, self._config, version=self._version)
        except Unreachable as error:
            return not_reached(self.broker, error.cause)
        connection = Connection(
            client,
            broker=self.broker,
            window=self._config.max_in_flight,
            suspicion=self._suspicion,
            of_topics=self._of_topics,
            on_message=on_message,
        )
        opened = False
        try:
            opened = await connection.accepted()
            if not opened:
                return connection.end.result()
        finally:
            if not opened:
                connection.release("the broker did not accept the connection")
        if self._versions.accepted():
            self._log.warning("mqtt.protocol_fallback", protocol=self._versions.next)
        return connection

    def learn(self, ending: Ending) -> bool:
        """True when the next attempt is a different one, and may be made at once."""
        gentler = self._will
        if ending.code == NO_RETAIN:
            gentler = msgspec.structs.replace(self._will, retain=False)
        elif ending.code == QOS_TOO_HIGH:
            gentler = msgspec.structs.replace(self._will, qos=0)
        changed, self._will = gentler != self._will, gentler
        return self._versions.refused(ending) or changed
