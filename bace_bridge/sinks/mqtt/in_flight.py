"""The messages that are not acknowledged yet, at most a window of them in paho's hands."""

import asyncio
from collections import deque
from collections.abc import Callable

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from bace_bridge.errors import DeliveryFailed, DeliveryRejected, SinkError, SinkUnavailable
from bace_bridge.formats import made_sendable
from bace_bridge.sinks.mqtt.client import UNSENDABLE
from bace_bridge.sinks.mqtt.endings import FIRST_FAILURE, publish_refused
from bace_bridge.sinks.mqtt.manners import Limits
from bace_bridge.sinks.mqtt.messages import Message
from bace_bridge.sinks.mqtt.refusals import Suspicion, TopicSuspicion

Done = Callable[[SinkError | None], None]

_HEADERS = 5 + 4
"""Bytes: the type and at most four of length; two for the length of the topic, two for the packet id."""

_HIGHEST_QOS = 2
_TAKEN_IF_OPEN_AFTER = 1.0
"""Seconds that the connection must have outlived a retained message of QoS 0, which has no acknowledgement."""

_LONGEST_SHOWN = 256
"""Characters of a topic in a message for people."""


class InFlight:
    """Calls every message's `done` exactly once, on the loop and never from within `publish`.

    At QoS 0 a message is done when it was written to the socket, and a retained one a second later. An event or a
    retained topic that is suspected has the window for itself.
    """

    def __init__(self, client: Client, *, size: int, suspicion: Suspicion, of_topics: TopicSuspicion) -> None:
        self._loop = asyncio.get_running_loop()
        self._publish: Callable[..., MQTTMessageInfo] = client.publish
        self._size = self._room = size
        self._suspicion = suspicion
        self._of_topics = of_topics
        self._closed_for_others = False
        self._limits = Limits()
        self._without_limits = True
        self._in_flight: dict[int, tuple[Message, Done]] = {}
        self._waiting: deque[tuple[Message, Done]] = deque()
        self._emptied: asyncio.Future[None] | None = None
        self._oldest: Done | None = None
        self._oldest_since = 0.0
        self.acknowledges = False
        """Whether the broker has acknowledged any message on this connection."""

    def obey(self, limits: Limits) -> None:
        self._limits = limits
        # More in flight than the Receive Maximum is an error on which a broker disconnects (0x93).
        self._room = min(self._size, limits.in_flight)
        self._without_limits = limits.qos == _HIGHEST_QOS and limits.retain

    def publish(self, message: Message, done: Done) -> None:
        if self._waiting or not self._takes(message):
            self._waiting.append((message, done))
        else:
            self._hand_over(message, done)

    def acknowledged(self, mid: int, reason: ReasonCode) -> None:
        message, _ = self._in_flight.get(mid, (None, None))
        # At QoS 0 paho calls on_publish when the bytes have left; the broker may close the connection on them yet.
        if message is not None and message.retain and not message.qos:
            self._loop.call_later(_TAKEN_IF_OPEN_AFTER, self._settled, mid, reason)
        else:
            self._settled(mid, reason)

    def _settled(self, mid: int, reason: ReasonCode) -> None:
        if mid not in self._in_flight:
            return
        self.acknowledges = True
        message, done = self._in_flight.pop(mid)
        self._closed_for_others = False
        if message.event is not None:
            self._suspicion.acknowledged(message.event)
        elif message.retain:
            self._of_topics.acknowledged(message.topic)
        # Before `done`, which may publish more: what waits has been waiting for longer.
        while self._waiting and self._takes(self._waiting[0][0]):
            self._hand_over(*self._waiting.popleft())
        if self._emptied is not None and not self._in_flight and not self._emptied.done():
            self._emptied.set_result(None)
        done(None if reason.value < FIRST_FAILURE else publish_refused(message.topic, reason.value, str(reason)))

    async def emptied(self) -> None:
        """Returns when every message is acknowledged."""
        while self._in_flight or self._waiting:
            self._emptied = self._loop.create_future()
            await self._emptied

    def oldest_waits_for(self, now: float) -> float:
        """Seconds for which the oldest message has been waiting, as far as earlier calls have seen it."""
        oldest = next(iter(self._in_flight.values()), (None, None))[1]
        if oldest is None or oldest is not self._oldest:
            self._oldest, self._oldest_since = oldest, now
        return now - self._oldest_since

    def break_off(self, problem: str, *, fault: str | None) -> None:
        """Reports `SinkUnavailable` for all that the broker has not acknowledged.

        Where the broker may have a `fault` to find with a message, and it is known with which, that one has failed.
        """
        in_flight, waiting = list(self._in_flight.values()), list(self._waiting)
        self._in_flight.clear()
        self._waiting.clear()
        events = [message.event for message, _ in in_flight if message.event is not None]
        topics = [message.topic for message, _ in in_flight if message.retain]
        failed = fault is not None and (
            self._of_topics.blames(topics, alone=len(in_flight) == 1) or self._suspicion.blames(events)
        )
        for _, done in waiting if failed else in_flight + waiting:
            done(SinkUnavailable(problem))
        for message, done in in_flight if failed else ():  # last, or more would be sent in vain
            done(DeliveryFailed(f"the broker {fault} a message of {len(message.payload)} bytes on {message.topic}"))

    def _goes_alone(self, message: Message) -> bool:
        if message.event is not None:
            return self._suspicion.sent_alone(message.event)
        return message.retain and self._of_topics.sent_alone(message.topic)

    def _takes(self, message: Message) -> bool:
        if (self._suspicion.counts or self._of_topics.counts) and self._goes_alone(message):
            return not self._in_flight
        return not self._closed_for_others and len(self._in_flight) < self._room

    def _hand_over(self, message: Message, done: Done) -> None:
        if not self._without_limits:
            allowed = self._limits
            message = message._replace(qos=min(message.qos, allowed.qos), retain=message.retain and allowed.retain)
        try:
            if (largest := self._limits.packet_size) is not None:
                properties = len(message.properties.pack()) if message.properties is not None else 1
                size = _HEADERS + len(message.topic.encode()) + properties + len(message.payload)
                # The broker would close the connection on it, with all that is in flight.
                if size > largest:
                    self._reject(message, done, "is larger than the broker accepts")
                    return
            info = self._publish(message.topic, message.payload, message.qos, message.retain, message.properties)
        except UNSENDABLE as error:
            self._reject(message, done, f"cannot be sent: {error}")
            return
        if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._in_flight[info.mid] = (message, done)
            counts = self._suspicion.counts or self._of_topics.counts
            self._closed_for_others = counts and self._goes_alone(message)
        else:
            # paho has queued it for a connection that this client never makes; the outbox sends it on the next one.
            self._loop.call_soon(done, SinkUnavailable("the connection to the broker is lost"))

    def _reject(self, message: Message, done: Done, why: str) -> None:
        topic = made_sendable(message.topic[:_LONGEST_SHOWN])
        self._loop.call_soon(done, DeliveryRejected(f"a message on {topic} {why}"))
