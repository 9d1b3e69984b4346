"""Attempts to connect, each in the manner that what happened before has taught, and the pauses between them."""

import asyncio
from collections.abc import Callable

from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.retry import backoff
from bace_bridge.sinks.kind import SinkContext
from bace_bridge.sinks.mqtt import manners
from bace_bridge.sinks.mqtt.client import Will, new_client
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.manners import Ending, Kind, not_reached
from bace_bridge.sinks.mqtt.messages import Message
from bace_bridge.sinks.mqtt.picture import OFFLINE
from bace_bridge.sinks.mqtt.refusals import Suspicion, TopicSuspicion
from bace_bridge.sinks.mqtt.sockets import Unreachable, open_socket
from bace_bridge.sinks.mqtt.topics import Topics

_GOODBYE_WITHIN = 1.0
_RETRY_CHECKED_EVERY = 1.0

_LONGEST = 60.0
_LONGEST_FOR_LOGIN = 300.0
_FIRST_FOR_LOGIN = 30.0
_STABLE_AFTER = 30.0
_TAKEOVER_IS_NEWS_AFTER = 600.0
"""Seconds that a connection must have held for the next loss of the client id to be news again."""
_SHORT_CONNECTIONS_BEFORE_WARNING = 3

_ANNOUNCEMENTS: dict[Kind, str] = {
    "login_refused": "mqtt.login_refused",
    "taken_over": "mqtt.taken_over",
}
_HINTS: dict[Kind, str] = {
    "login_refused": "check username, password and client id; the broker is asked again every few minutes",
    "taken_over": "give every bridge a client_id of its own, or stop the other one",
}
_HINT_FOR_SHORT_CONNECTIONS = (
    "another client may be using the same client id, or the broker closes the connection on an event"
)


class Outage:
    """When to connect again, and what of it is news: each kind of ending once, until there is a connection."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._failures = 0
        self._short_connections = 0
        self._announced = ""
        self._takeover_warned = False

    def connected(self, **facts: object) -> None:
        self._log.info("mqtt.connected", **facts)
        self._announced = ""

    def explained(self) -> None:
        """The connections were lost for a reason that waiting does not fix, and that will not end the next one."""
        self._failures = 0

    def failed(self, ending: Ending, *, lasted: float, jitter: float) -> float:
        """Seconds to wait; `lasted` is how long the connection was of use, 0 if it never was."""
        if lasted >= _STABLE_AFTER:
            self._failures = self._short_connections = 0
        self._failures += 1
        announcement = _ANNOUNCEMENTS.get(ending.kind, "mqtt.unreachable")
        if lasted >= _TAKEOVER_IS_NEWS_AFTER:
            self._takeover_warned = False
        if announcement != self._announced and not (ending.kind == "taken_over" and self._takeover_warned):
            level = self._log.error if ending.kind == "login_refused" else self._log.warning
            hint = {"hint": _HINTS[ending.kind]} if ending.kind in _HINTS else {}
            level(announcement, problem=ending.problem, **hint)
            self._announced = announcement
            self._takeover_warned = self._takeover_warned or ending.kind == "taken_over"
        if ending.kind == "lost" and 0 < lasted < _STABLE_AFTER:
            self._short_connections += 1
            if self._short_connections == _SHORT_CONNECTIONS_BEFORE_WARNING:
                self._log.warning("mqtt.connection_keeps_breaking", hint=_HINT_FOR_SHORT_CONNECTIONS)
        if ending.kind == "login_refused":
            # Some brokers and firewalls ban an address after a few failed logins.
            return backoff(self._failures, jitter=jitter, first=_FIRST_FOR_LOGIN, longest=_LONGEST_FOR_LOGIN)
        if ending.kind == "taken_over":
            # Two clients with one id end each other's connections, as fast as they connect.
            return backoff(1, jitter=jitter, first=_LONGEST)
        return backoff(self._failures, jitter=jitter, first=1.0, longest=_LONGEST)


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
        self._reported = (self._course.manner.protocol, self._course.manner.qos)

    async def stays_on(self, connection: Connection) -> bool:
        """True at its end. False where it lacks something, and it is time to try whether the broker takes it now."""
        while not connection.end.done():
            again_at = self._course.again_at
            again_in = None if again_at is None else max(0.0, again_at - self._clock())
            if again_in == 0:
                self._course = manners.from_the_top(self._course)
                return False
            await asyncio.wait((connection.end,), timeout=again_in and min(again_in, _RETRY_CHECKED_EVERY))
        return True

    async def dial(self, on_message: Callable[[MQTTMessage], None]) -> Connection | Ending:
        """A connection that the broker has accepted, and on which it answers requests; or why there is none."""
        while True:
            connection = await self._open(on_message)
            if isinstance(connection, Ending):
                return connection
            self._course, stays = manners.accepted(self._course, now=self._clock())
            if stays:
                (protocol, qos), manner = self._reported, self._course.manner
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
        if not self._course.manner.requests:
            return True
        # A request that was published as retained is none: it would come again at every connect.
        taken = await connection.subscribe([self._topics.requests], qos=1, keeps_retain=True, during="subscribe")
        if connection.end.done():
            return True
        self._course = manners.subscribed(self._course)
        return bool(taken)

    def learn(self, ending: Ending) -> bool:
        """True when the next attempt is a different one, and may be made at once."""
        listened = self._course.manner.requests
        self._course, at_once = manners.ended(self._course, ending, now=self._clock())
        if listened and not self._course.manner.requests:
            self._log.warning(
                "mqtt.requests_refused",
                topic=self._topics.requests,
                hint="the broker closes the connection on this subscription; continuing without requests for a while",
            )
        return at_once

    async def _open(self, on_message: Callable[[MQTTMessage], None]) -> Connection | Ending:
        config, manner = self._config, self._course.manner
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
