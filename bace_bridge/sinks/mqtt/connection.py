"""One connection to a broker: its subscriptions, the messages that are not acknowledged yet, and its end."""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from bace_bridge.errors import DeliveryFailed, DeliveryRejected, SinkUnavailable
from bace_bridge.formats import made_sendable
from bace_bridge.sinks.api import Done
from bace_bridge.sinks.mqtt import manners
from bace_bridge.sinks.mqtt.client import UNSENDABLE, BadPacket, Driver, bound_what_is_read
from bace_bridge.sinks.mqtt.manners import During, Ending, Limits, Manner
from bace_bridge.sinks.mqtt.messages import Message
from bace_bridge.sinks.mqtt.refusals import Suspicion, TopicSuspicion
from bace_bridge.sinks.mqtt.sockets import CONNECT_WITHIN, reason

_HEADERS = 5 + 4
"""Bytes: the type and at most four of length; two for the length of the topic, two for the packet id."""

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
        self._size = size
        self._suspicion = suspicion
        self._of_topics = of_topics
        self._closed_for_others = False
        self.limits = Limits()
        self._in_flight: dict[int, tuple[Message, Done]] = {}
        self._waiting: deque[tuple[Message, Done]] = deque()
        self._emptied: asyncio.Future[None] | None = None
        self._oldest: Done | None = None
        self._oldest_since = 0.0
        self.acknowledges = False
        """Whether the broker has acknowledged any message on this connection."""

    def publish(self, message: Message, done: Done) -> None:
        if self._waiting or not self._takes(message):
            self._waiting.append((message, done))
        else:
            self._hand_over(message, done)

    def acknowledged(self, mid: int, reason: ReasonCode, *, for_good: bool = False) -> None:
        if mid not in self._in_flight:
            return
        message, done = self._in_flight[mid]
        # At QoS 0 paho calls on_publish when the bytes have left; the broker may close the connection on them yet.
        if message.retain and not message.qos and not for_good:
            again = partial(self.acknowledged, mid, reason, for_good=True)
            self._loop.call_later(_TAKEN_IF_OPEN_AFTER, again)
            return
        del self._in_flight[mid]
        self.acknowledges = True
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
        failed = reason.value >= manners.FIRST_FAILURE
        done(manners.publish_refused(message.topic, reason.value, str(reason)) if failed else None)

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
            return self._suspicion.counts and self._suspicion.sent_alone(message.event)
        return message.retain and self._of_topics.counts and self._of_topics.sent_alone(message.topic)

    def _takes(self, message: Message) -> bool:
        if self._goes_alone(message):
            return not self._in_flight
        # More in flight than the Receive Maximum is an error on which a broker disconnects (0x93).
        return not self._closed_for_others and len(self._in_flight) < min(self._size, self.limits.in_flight)

    def _hand_over(self, message: Message, done: Done) -> None:
        allowed = self.limits
        if message.qos > allowed.qos or (message.retain and not allowed.retain):
            message = message._replace(qos=min(message.qos, allowed.qos), retain=message.retain and allowed.retain)
        size, info = 0, None
        try:
            if allowed.packet_size is not None:
                properties = len(message.properties.pack()) if message.properties is not None else 1
                size = _HEADERS + len(message.topic.encode()) + properties + len(message.payload)
            # The broker would close the connection on it, with all that is in flight.
            if size > (allowed.packet_size or 0):
                problem = "is larger than the broker accepts"
            else:
                info = self._publish(message.topic, message.payload, message.qos, message.retain, message.properties)
        except UNSENDABLE as error:
            problem = f"cannot be sent: {error}"
        if info is None:
            topic = made_sendable(message.topic[:_LONGEST_SHOWN])
            self._loop.call_soon(done, DeliveryRejected(f"a message on {topic} {problem}"))
        elif info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._in_flight[info.mid] = (message, done)
            self._closed_for_others = self._goes_alone(message)
        else:
            # paho has queued it for a connection that this client never makes; the outbox sends it on the next one.
            self._loop.call_soon(done, SinkUnavailable("the connection to the broker is lost"))


_ACKNOWLEDGED_WITHIN = 60.0
_WITH_WILL = 0x04
"""The reason code of a DISCONNECT that has the broker publish the last will."""


class Connection:
    """`end` is set when the connection has ended; it holds an exception where a callback of ours failed."""

    def __init__(
        self,
        client: Client,
        *,
        broker: str,
        manner: Manner,
        shows_certificate: bool,
        window: int,
        suspicion: Suspicion,
        of_topics: TopicSuspicion,
        on_message: Callable[[MQTTMessage], None],
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._client = client
        self.speaks_5 = client.protocol == MQTTProtocolVersion.MQTTv5
        self._broker = broker
        self.manner = manner
        self._shows_certificate = shows_certificate
        self._during: During = "connect"
        self._socket_errors: list[Exception] = []
        self._gave_up = False
        self._in_flight = InFlight(client, size=window, suspicion=suspicion, of_topics=of_topics)
        self.publish, self.emptied = self._in_flight.publish, self._in_flight.emptied
        self._accepted: asyncio.Future[Properties] = loop.create_future()
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self.end: asyncio.Future[Ending] = loop.create_future()
        self.limits = Limits()
        client.on_connect = self._guarded(self._connack)
        client.on_disconnect = self._guarded(self._disconnected)
        client.on_subscribe = self._guarded(self._suback)
        client.on_unsubscribe = self._guarded(self._suback)
        client.on_message = self._guarded(on_message)
        client.on_publish = self._guarded(lambda mid, reason, _: self._in_flight.acknowledged(mid, reason))
        bound_what_is_read(client, failed=self._socket_errors.append)
        self._driver = Driver(client, failed=self._unreadable, tick=self._check_acknowledgements)

    async def accepted(self) -> bool:
        """False when the broker did not accept the connection; `end` says why."""
        await asyncio.wait((self._accepted, self.end), timeout=CONNECT_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        if not self._accepted.done() or self.end.done():
            self._finish(manners.mute(self._broker))
            return False
        self.limits = self._in_flight.limits = manners.limits(self._accepted.result(), self.manner)
        self._during = "use"
        return True

    async def takes(self, message: Message, topic: str) -> bool:
        """Whether the broker keeps the connection when it is sent this message; its answer comes after it.

        UNSUBSCRIBE, of a topic that is not subscribed to, has an answer also where the message has none.
        """
        self._client.publish(message.topic, message.payload, message.qos, message.retain)
        await self._answered(self._client.unsubscribe(topic), "probe")
        return not self.end.done()

    async def subscribe(
        self, filters: Sequence[str], *, qos: int, keeps_retain: bool = False, during: During = "use"
    ) -> bool | None:
        """True when the broker takes all of the filters, None where it does not answer.

        With `keeps_retain` a message says whether it was published as retained, and not whether it was kept; MQTT 5
        only. `during` is what an ending counts for that comes in the place of the answer.
        """
        qos = min(qos, self.manner.qos)
        if self.speaks_5:
            # Without retain-as-published a broker clears the retain flag of what it forwards as it is published.
            options = SubscribeOptions(qos=qos, retainAsPublished=keeps_retain)
            asked = self._client.subscribe([(one, options) for one in filters])
        else:
            asked = self._client.subscribe([(one, qos) for one in filters])
        return await self._answered(asked, during)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        if not self.end.done():
            self._client.unsubscribe(list(filters))

    async def while_it_lasts(self, *steps: Callable[[], Coroutine[Any, Any, None]], within: float) -> None:
        """Takes one step after the other until the connection ends, or the time for all (in seconds) is over."""
        ends_at = self._loop.time() + within
        for step in steps:
            work = asyncio.create_task(step())
            left = max(0.0, ends_at - self._loop.time())
            await asyncio.wait((work, self.end), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                return
            work.result()

    async def disconnect(self, *, within: float, with_will: bool = False) -> None:
        """Says goodbye, so that the broker does not publish the last will; or so that it does."""
        if self.end.done():
            return
        if with_will and not self.speaks_5:
            # MQTT 5 has a DISCONNECT that asks for the last will; 3.1.1 has not.
            return  # the broker publishes it when the connection ends without a DISCONNECT
        # A DISCONNECT of 3.1.1, or one with code 0, has the broker forget the will.
        code = ReasonCode(PacketTypes.DISCONNECT, identifier=_WITH_WILL) if with_will else None
        self._client.disconnect(reasoncode=code)
        await asyncio.wait((self.end,), timeout=within)

    def release(self, problem: str) -> None:
        """Closes the socket and gives back what the broker has not acknowledged."""
        # Harmless where it is closed already.
        self._driver.let_go()
        if (sock := self._client.socket()) is not None:
            sock.close()
        end, fault = self.end, None
        end.cancel()
        if not end.cancelled() and end.exception() is None and manners.may_be_about_a_message(end.result()):
            fault = "never acknowledges" if self._gave_up else "closes the connection on"
        self._in_flight.break_off(problem, fault=fault)

    async def _answered(self, asked: tuple[MQTTErrorCode, int | None], during: During) -> bool | None:
        """What SUBACK or UNSUBACK says; None where it does not come, or the connection ends."""
        # paho gives no packet id where the socket is closed already.
        if asked[1] is None:
            return None
        answer = self._answers[asked[1]] = self._loop.create_future()
        self._during = during
        try:
            await asyncio.wait((answer, self.end), timeout=CONNECT_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answers.pop(asked[1], None)
        if self.end.done():
            return None
        self._during = "use"
        return answer.result() if answer.done() else None

    def _finish(self, ending: Ending) -> None:
        if not self.end.done():
            self.end.set_result(ending)

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Whatever a callback raises comes out of `end`; paho would lose it or stumble over it."""

        def guarded(_client: Client, _userdata: object, *facts: Any) -> None:
            try:
                callback(*facts)
            except Exception as error:  # noqa: BLE001  # it is raised again by whoever awaits `end`
                if not self.end.done():
                    self.end.set_exception(error)

        return guarded

    def _connack(self, _flags: ConnectFlags, reason: ReasonCode, properties: Properties) -> None:
        # paho turns the return codes of 3.1.1 into reason codes of 5, so one table of codes is enough.
        if reason.is_failure:
            self._finish(manners.refused(self._broker, reason.value, str(reason)))
        elif not self._accepted.done():
            self._accepted.set_result(properties)

    def _disconnected(self, flags: DisconnectFlags, code: ReasonCode, _properties: Properties) -> None:
        socket_error = ""
        for error in self._socket_errors:
            # Only TLS says why; that a connection was cut or reset says no more than its end does.
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                socket_error = reason(error, certificate=self._shows_certificate)
        self._finish(
            manners.ending_of(
                self._broker,
                code.value,
                str(code),
                said_by_broker=flags.is_disconnect_packet_from_server,
                during=self._during,
                socket_error=socket_error,
            )
        )

    def _suback(self, mid: int, reasons: list[ReasonCode], _properties: Properties) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            # UNSUBACK of 3.1.1 holds no codes: an empty list is a yes.
            answer.set_result(not any(reason.is_failure for reason in reasons))

    def _unreadable(self, error: Exception) -> None:
        what = str(error) if isinstance(error, BadPacket) else f"what cannot be read ({type(error).__name__})"
        self._finish(Ending("lost", f"the broker at {self._broker} sent {what}", during=self._during))

    def _check_acknowledgements(self, now: float) -> None:
        # MQTT allows to send a message again only on another connection: one PUBACK that never comes would hold up its
        # place in the window for as long as this one lasts.
        if self._in_flight.oldest_waits_for(now) > _ACKNOWLEDGED_WITHIN:
            problem = f"the broker at {self._broker} does not acknowledge what it is sent"
            # Where it does acknowledge others it may be about what it leaves out.
            code = manners.UNSPECIFIED if self._in_flight.acknowledges else 0
            self._gave_up = True
            self._finish(Ending("lost", problem, code, during="use"))
