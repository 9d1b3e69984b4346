"""Attempts to connect, each in the manner that what happened before has taught."""

from collections.abc import Callable

from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.sinks.kind import SinkContext
from bace_bridge.sinks.mqtt import manners
from bace_bridge.sinks.mqtt.client import Will, new_client
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.endings import Ending, Outage, not_reached
from bace_bridge.sinks.mqtt.manners import Manner
from bace_bridge.sinks.mqtt.messages import Message
from bace_bridge.sinks.mqtt.picture import OFFLINE
from bace_bridge.sinks.mqtt.refusals import Suspicion, TopicSuspicion
from bace_bridge.sinks.mqtt.sockets import Unreachable, open_socket
from bace_bridge.sinks.mqtt.topics import Topics

_GOODBYE_WITHIN = 1.0


class Dialer:
    """The will says on the topic of the bridge's state that it is offline."""

    def __init__(
        self,
        config: MqttConfig,
        context: SinkContext,
        topics: Topics,
        *,
        clock: Callable[[], float],
        log: FilteringBoundLogger,
    ) -> None:
        self._config = config
        self._topics = topics
        # The same on every connection: so a broker that has not noticed the end of the last one ends it now.
        self._client_id = config.client_id or f"bace-bridge-{context.installation}-{config.name}"
        self._version = context.version
        self._will = Will(topics.bridge_state, OFFLINE)
        self.outage = Outage(log)
        self._suspicion = Suspicion(log, explained=self.outage.explained)
        self.of_topics = TopicSuspicion(log, explained=self.outage.explained)
        self._clock = clock
        self._log = log
        self._course = manners.begin(config.protocol, qos=config.qos, requests=config.requests)
        self._reported = (self.manner.protocol, self.manner.qos)

    @property
    def manner(self) -> Manner:
        return self._course.manner

    def again_in(self) -> float | None:
        """Seconds until a connection that lacks something is given up for another try; None where nothing lacks."""
        again_at = self._course.again_at
        return None if again_at is None else max(0.0, again_at - self._clock())

    def begin_again(self) -> None:
        self._course = manners.from_the_top(self._course)

    async def dial(self, on_message: Callable[[MQTTMessage], None]) -> Connection | Ending:
        """A connection that the broker has accepted, and on which it answers requests; or why there is none."""
        while True:
            connection = await self._open(on_message)
            if isinstance(connection, Ending):
                return connection
            self._course, stays = manners.accepted(self._course, now=self._clock())
            if stays:
                (protocol, qos), manner = self._reported, self.manner
                self._reported = (manner.protocol, manner.qos)
                if manner.protocol < protocol:
                    self._log.warning("mqtt.protocol_fallback", protocol=manner.protocol)
                if manner.qos < qos:
                    self._log.warning("mqtt.qos_lowered", qos=manner.qos, hint="the broker accepts no higher QoS")
                return connection
            await connection.disconnect(within=_GOODBYE_WITHIN)
            connection.release("trying other connection settings")

    async def listen(self, connection: Connection) -> bool:
        """Subscribes to requests; False where the broker refuses that in words."""
        if not self.manner.requests:
            return True
        # A request that was published as retained is none: it would come again at every connect.
        taken = await connection.subscribe([self._topics.requests], qos=1, keeps_retain=True, during="subscribe")
        if connection.end.done():
            return True
        self._course = manners.subscribed(self._course)
        return bool(taken)

    def learn(self, ending: Ending) -> bool:
        """True when the next attempt is a different one, and may be made at once."""
        listened = self.manner.requests
        self._course, at_once = manners.ended(self._course, ending, now=self._clock())
        if listened and not self.manner.requests:
            self._log.warning(
                "mqtt.requests_refused",
                topic=self._topics.requests,
                hint="the broker closes the connection on this subscription; continuing without requests for a while",
            )
        return at_once

    async def _open(self, on_message: Callable[[MQTTMessage], None]) -> Connection | Ending:
        config, manner = self._config, self.manner
        try:
            sock = await open_socket(config)
            client = new_client(
                sock, config, client_id=self._client_id, manner=manner, will=self._will, version=self._version
            )
        except Unreachable as error:
            return not_reached(config.broker, str(error))
        connection = Connection(
            client,
            broker=config.broker,
            manner=manner,
            shows_certificate=config.tls.cert_file is not None,
            window=config.max_in_flight,
            suspicion=self._suspicion,
            of_topics=self.of_topics,
            on_message=on_message,
        )
        opened = False
        try:
            opened = await connection.accepted()
            if opened and self._course.probes:
                # 3.1.1 does not announce what it allows: the will, published as the first message, shows it while
                # nothing else can be lost with the connection. It is replaced as soon as the state is published.
                probe = Message(self._topics.bridge_state, self._will.payload, manner.qos, retain=manner.retain)
                opened = await connection.takes(probe, self._topics.requests)
            return connection if opened else connection.end.result()
        finally:
            if not opened:
                connection.release("the broker did not accept the connection")
