"""One connection to a broker: paho driven from the asyncio loop, with its subscriptions and its end."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from bace_bridge.sinks.mqtt.client import BadPacket, bound_what_is_read
from bace_bridge.sinks.mqtt.endings import UNSPECIFIED, During, Ending, ended, may_be_about_a_message, mute, refused
from bace_bridge.sinks.mqtt.in_flight import InFlight
from bace_bridge.sinks.mqtt.manners import Limits, Manner, announced
from bace_bridge.sinks.mqtt.messages import Message
from bace_bridge.sinks.mqtt.refusals import Suspicion, TopicSuspicion
from bace_bridge.sinks.mqtt.sockets import CONNECT_WITHIN, reason

_TICK = 1.0


class Driver:
    """`failed` gets what paho could not read or write; `tick` is called about once a second."""

    def __init__(self, client: Client, *, failed: Callable[[Exception], None], tick: Callable[[float], None]) -> None:
        sock: Any = client.socket()
        if sock is None:
            raise RuntimeError("the client has no socket")
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._failed = failed
        self._tick = tick
        self._fd = sock.fileno()
        # paho's own threads are not used: callbacks would run in them, beside the event loop.
        self._buffered: Callable[[], int] = sock.pending
        self._driving = True
        # paho calls it before it closes the socket, while the file descriptor is still this socket's.
        client.on_socket_close = lambda *_: self._let_go()
        client.on_socket_register_write = self._on_wants_to_write
        client.on_socket_unregister_write = self._on_has_written
        self._loop.add_reader(self._fd, self._read)
        # CONNECT was queued before these callbacks were there.
        if client.want_write():
            self._loop.add_writer(self._fd, self._write)
        self._timer = self._loop.call_later(_TICK, self._look_after)

    def stop(self) -> None:
        """Closes the socket; harmless when it is closed already."""
        self._let_go()
        if (sock := self._client.socket()) is not None:
            sock.close()

    def _read(self) -> None:
        if not self._driving:
            return
        try:
            self._client.loop_read()
            # What was read or decrypted already does not make the socket readable again. Others have a turn before it:
            # requests would come faster than they are answered.
            if self._buffered():
                self._loop.call_soon(self._read)
        except Exception as error:  # noqa: BLE001  # our callbacks keep theirs: this is what the broker sent
            self._failed(error)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)

    def _look_after(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._look_after)
        try:
            # Sends PINGREQ, and ends the connection where PINGRESP does not come. Nothing else in paho keeps time.
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)
        self._tick(self._loop.time())

    def _on_wants_to_write(self, *_: Any) -> None:
        if self._driving:
            self._loop.add_writer(self._fd, self._write)

    def _on_has_written(self, *_: Any) -> None:
        if self._driving:
            self._loop.remove_writer(self._fd)

    def _let_go(self) -> None:
        """The loop must forget the file descriptor before it is closed and given to somebody else."""
        if self._driving:
            self._driving = False
            self._timer.cancel()
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)


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
        loop = asyncio.get_running_loop()
        self._client = client
        self._speaks_5 = client.protocol == MQTTProtocolVersion.MQTTv5
        self._broker = broker
        self._manner = manner
        self._shows_certificate = shows_certificate
        self._during: During = "connect"
        self._socket_error = ""
        self._gave_up = False
        self._in_flight = InFlight(client, size=window, suspicion=suspicion, of_topics=of_topics)
        self.publish, self.emptied = self._in_flight.publish, self._in_flight.emptied
        self._accepted: asyncio.Future[Limits] = loop.create_future()
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self.end: asyncio.Future[Ending] = loop.create_future()
        self.limits = Limits()
        client.on_connect = self._guarded(self._connack)
        client.on_disconnect = self._guarded(self._disconnected)
        client.on_subscribe = self._guarded(self._suback)
        client.on_unsubscribe = self._guarded(self._suback)
        client.on_message = self._guarded(on_message)
        client.on_publish = self._guarded(lambda mid, reason, _: self._in_flight.acknowledged(mid, reason))
        bound_what_is_read(client, failed=self._socket_failed)
        self._driver = Driver(client, failed=self._unreadable, tick=self._check_acknowledgements)

    async def accepted(self) -> bool:
        """False when the broker did not accept the connection; `end` says why."""
        if not await self._first_of(self._accepted, within=CONNECT_WITHIN):
            self._finish(mute(self._broker))
            return False
        self.limits = self._accepted.result().within(self._manner)
        self._in_flight.obey(self.limits)
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
        qos = min(qos, self._manner.qos)
        if self._speaks_5:
            # Without retain-as-published a broker clears the retain flag of what it forwards as it is published.
            options = SubscribeOptions(qos=qos, retainAsPublished=keeps_retain)
            asked = self._client.subscribe([(one, options) for one in filters])
        else:
            asked = self._client.subscribe([(one, qos) for one in filters])
        return await self._answered(asked, during)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        if not self.end.done():
            self._client.unsubscribe(list(filters))

    async def while_it_lasts(self, last_work: Coroutine[Any, Any, None], *, within: float) -> None:
        """Does the work unless the connection ends first or the time, in seconds, is over."""
        work = asyncio.create_task(last_work)
        await asyncio.wait((work, self.end), timeout=within, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        else:
            work.cancel()

    async def disconnect(self, *, within: float, with_will: bool = False) -> None:
        """Says goodbye, so that the broker does not publish the last will; or so that it does."""
        if self.end.done():
            return
        if with_will and not self._speaks_5:
            # MQTT 5 has a DISCONNECT that asks for the last will; 3.1.1 has not.
            return  # the broker publishes it when the connection ends without a DISCONNECT
        # A DISCONNECT of 3.1.1, or one with code 0, has the broker forget the will.
        code = ReasonCode(PacketTypes.DISCONNECT, identifier=_WITH_WILL) if with_will else None
        self._client.disconnect(reasoncode=code)
        await asyncio.wait((self.end,), timeout=within)

    def release(self, problem: str) -> None:
        """Closes the socket and gives back what the broker has not acknowledged."""
        self._driver.stop()
        end, fault = self.end, None
        end.cancel()
        if not end.cancelled() and end.exception() is None and may_be_about_a_message(end.result()):
            fault = "never acknowledges" if self._gave_up else "closes the connection on"
        self._in_flight.break_off(problem, fault=fault)

    async def _answered(self, asked: tuple[MQTTErrorCode, int | None], during: During) -> bool | None:
        """What SUBACK or UNSUBACK says; None where it does not come, or the connection ends."""
        # paho gives no packet id where the socket is closed already.
        if asked[1] is None:
            return None
        answer = self._answers[asked[1]] = asyncio.get_running_loop().create_future()
        self._during = during
        try:
            came = await self._first_of(answer, within=CONNECT_WITHIN)
        finally:
            self._answers.pop(asked[1], None)
        if not self.end.done():
            self._during = "use"
        return answer.result() if came else None

    async def _first_of(self, awaited: asyncio.Future[Any], *, within: float) -> bool:
        await asyncio.wait((awaited, self.end), timeout=within, return_when=asyncio.FIRST_COMPLETED)
        return awaited.done() and not self.end.done()

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
            self._finish(refused(self._broker, reason.value, str(reason)))
        elif not self._accepted.done():
            self._accepted.set_result(announced(properties))

    def _disconnected(self, flags: DisconnectFlags, reason: ReasonCode, _properties: Properties) -> None:
        self._finish(
            ended(
                self._broker,
                reason.value,
                str(reason),
                said_by_broker=flags.is_disconnect_packet_from_server,
                during=self._during,
                socket_error=self._socket_error,
            )
        )

    def _suback(self, mid: int, reasons: list[ReasonCode], _properties: Properties) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            # UNSUBACK of 3.1.1 holds no codes: an empty list is a yes.
            answer.set_result(not any(reason.is_failure for reason in reasons))

    def _socket_failed(self, error: Exception) -> None:
        """Only TLS says why; that a connection was cut or reset says no more than its end does."""
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            self._socket_error = reason(error, certificate=self._shows_certificate)

    def _unreadable(self, error: Exception) -> None:
        what = str(error) if isinstance(error, BadPacket) else f"what cannot be read ({type(error).__name__})"
        self._finish(Ending("lost", f"the broker at {self._broker} sent {what}", during=self._during))

    def _check_acknowledgements(self, now: float) -> None:
        # MQTT allows to send a message again only on another connection: one PUBACK that never comes would hold up its
        # place in the window for as long as this one lasts.
        if self._in_flight.oldest_waits_for(now) > _ACKNOWLEDGED_WITHIN:
            problem = f"the broker at {self._broker} does not acknowledge what it is sent"
            # Where it does acknowledge others it may be about what it leaves out.
            code = UNSPECIFIED if self._in_flight.acknowledges else 0
            self._gave_up = True
            self._finish(Ending("lost", problem, code, during="use"))
