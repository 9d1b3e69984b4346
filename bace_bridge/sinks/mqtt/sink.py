"""The MQTT sink: events, retained state and requests on one broker."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial

import msgspec
import structlog
from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.errors import DeliveryRejected, SinkUnavailable
from bace_bridge.events.types import Attempt
from bace_bridge.retry import backoff
from bace_bridge.sinks.api import Done
from bace_bridge.sinks.kind import SinkContext
from bace_bridge.sinks.mqtt.client import UNSENDABLE
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.connection import Connection
from bace_bridge.sinks.mqtt.dialing import Dialer
from bace_bridge.sinks.mqtt.homeassistant.announcing import Announcer, Births
from bace_bridge.sinks.mqtt.homeassistant.discovery import Discovery
from bace_bridge.sinks.mqtt.manners import Ending
from bace_bridge.sinks.mqtt.messages import EventMessages
from bace_bridge.sinks.mqtt.mirror import Mirror
from bace_bridge.sinks.mqtt.picture import OFFLINE, DeviceList, Memory
from bace_bridge.sinks.mqtt.refusals import Refusals
from bace_bridge.sinks.mqtt.requests import Requests
from bace_bridge.sinks.mqtt.topics import Neighbours, Topics
from bace_bridge.sinks.mqtt.tree import Tree, Watch

_IN_FLIGHT_WITHIN = 3.0
_DEVICES_OFFLINE_WITHIN = 3.0
_GOODBYE_WITHIN = 1.0

_FIRST_RETRY, _LAST_RETRY = 15.0, 3600.0
"""Seconds until what the broker does not keep is published again, and what it does not allow is tried again."""


class MqttSink:
    """`run` keeps the connection; `send` hands events over while there is one that is `ready`."""

    pipelined = True

    problem: str | None
    """Why events cannot be sent now, in a sentence without secrets."""

    # Of one connection. The last two say what is wrong until there is another one.
    _connection: Connection | None = None
    _mirror: Mirror | None = None
    _watch: Watch | None = None
    _discovery: Discovery | None = None
    _device_list: DeviceList | None = None

    _warned: set[str]
    _keeping: asyncio.Task[None] | None = None
    _closing = False

    def __init__(
        self,
        config: MqttConfig,
        context: SinkContext,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.window = config.name, config.max_in_flight
        self._config, self._context, self._ledger = config, context, context.ledger(config.broker)
        self._sleep, self._jitter, self._clock = sleep, jitter, clock
        self._log: FilteringBoundLogger = structlog.get_logger().bind(sink=config.name)
        self._topics = topics = Topics(config.base_topic)
        self._events = EventMessages(context.source, topics, qos=config.qos)
        self._requests = Requests(context, topics, self._log, clock=clock)
        self._dialer = Dialer(config, context, topics, clock=clock, log=self._log)
        self._memory = Memory(
            context.installation,
            frozenset(config.groups),
            Refusals(self._log, clock=clock, jitter=jitter),
            self._dialer.of_topics,
            Neighbours(context.installation, quote=context.redaction.quoted),
            set(),
            lambda topic: config.announced_elsewhere(context.running(), topic),
        )
        home = config.home_assistant
        self._births = Births(home.prefix, sleep=sleep, clock=clock) if home.enabled else None
        self._tree = Tree(
            topics,
            self._memory.neighbours,
            watched=(topics.bridge_state, topics.bridge_info, topics.guest + context.installation),
            announced=self._announced,
            sleep=sleep,
            log=self._log,
            warn=self._warn_once,
        )
        self._warned, self._ready = set(), asyncio.Event()
        self.ready, self.where = self._ready.wait, self._events.topic
        self.problem = f"not connected to the broker at {config.broker} yet"

    @property
    def state_problem(self) -> str | None:
        """What is wrong with the retained picture, while events can be sent."""
        others = self._memory.neighbours.described(self._topics.base)
        shared = f"another bridge uses the base topic {self._topics.base}, too: {others}" if others else None
        found = (
            self._memory.refusals.problem,
            shared,
            self._tree.problem,
            None if self._device_list is None else self._device_list.problem,
            None if self._births is None else self._births.problem,
            None if self._discovery is None else self._discovery.problem,
        )
        return "; ".join(one for one in found if one is not None) or None

    def _announced(self) -> list[str]:
        """Filters for what announces devices; none where the broker does not even let a birth be heard."""
        home = self._config.home_assistant
        if self._births is None or self._births.problem is not None:
            return []
        return [f"{home.prefix}/{'device/+' if home.mode == 'device' else '+/+/+'}/config"]

    def send(self, attempt: Attempt, done: Done) -> None:
        """Hands an event over. `done` is called exactly once, later, on the loop."""
        connection, mirror = self._connection, self._mirror
        if connection is None or mirror is None:
            asyncio.get_running_loop().call_soon(done, SinkUnavailable(self.problem or "not connected"))
            return
        event = attempt.logged.event
        try:
            message = self._events.message(attempt, speaks_5=connection.speaks_5)
        except (msgspec.MsgspecError, *UNSENDABLE) as error:
            rejected = DeliveryRejected(f"the event {event.id} cannot be sent: {error}")
            asyncio.get_running_loop().call_soon(done, rejected)
        else:
            mirror.publish_event(message, event.device_id, done)

    def refresh(self, ids: Collection[str] | None = ()) -> None:
        """How the bridge and these devices stand may have changed; None: all of them."""
        if self._mirror is not None:
            self._mirror.refresh(ids)

    async def run(self) -> None:
        """Keeps the connection until it is cancelled or closed, and then says goodbye to the broker."""
        self._keeping = asyncio.create_task(self._keep_connected(), name=f"mqtt {self.name}")
        try:
            await self._keeping
        except asyncio.CancelledError:
            # close() cancels the task inside, which is a good end. A cancellation of run itself has to go on.
            task = asyncio.current_task()
            if not self._closing or (task is not None and task.cancelling()):
                raise

    async def close(self) -> None:
        """Waits shortly for what is in flight, publishes that the bridge goes offline, and disconnects."""
        self._closing = True
        if self._keeping is not None and not self._keeping.done():
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))

    async def _keep_connected(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._closing:
            connection = await self._dialer.dial(self._heard)
            since = clock()
            ending = connection if isinstance(connection, Ending) else await self._use(connection)
            self.problem = ending.problem
            if ending.kind == "given_up" or self._dialer.learn(ending):
                continue
            lasted = 0.0 if isinstance(connection, Ending) else clock() - since
            await self._sleep(self._dialer.outage.failed(ending, lasted=lasted, jitter=self._jitter()))

    async def _use(self, connection: Connection) -> Ending:
        """Uses the connection until its end."""
        mirror = self._mirror = self._mirror_on(connection)
        watch = self._watch = Watch(
            self._topics, self._tree, connection, mirror, sleep=self._sleep, warn=self._warn_once
        )
        try:
            if await self._work(connection, mirror, watch):
                ending = connection.end.result()
            else:
                ending = Ending("given_up", "trying other connection settings")
                self._leave(ending.problem)
                # What is acknowledged now need not come twice.
                await connection.while_it_lasts(connection.emptied, within=_IN_FLIGHT_WITHIN)
                await connection.disconnect(within=_GOODBYE_WITHIN)
            self.problem = ending.problem
            return ending
        finally:
            problem = self.problem or "the connection has ended"
            self._leave(problem)
            mirror.give_back(problem)
            connection.release(problem)

    def _mirror_on(self, connection: Connection) -> Mirror:
        config, context, largest = self._config, self._context, connection.limits.packet_size
        devices = self._device_list = DeviceList(largest_packet=largest, clock=self._clock)
        discovery = self._discovery = Discovery(
            config.home_assistant,
            self._topics,
            installation=context.installation,
            version=context.version,
            requests=config.requests,
            largest=largest,
        )
        return Mirror(
            context.state,
            self._ledger,
            self._topics,
            connection.publish,
            self._memory,
            devices,
            announcer=lambda send: Announcer(
                discovery,
                self._ledger,
                enabled=config.home_assistant.enabled,
                datatypes=context.datatypes,
                sinks=lambda: [one.name for one in context.running()],
                send=send,
                sleep=self._sleep,
                warn=self._warn_once,
            ),
            speaks_5=connection.speaks_5,
            window=self.window,
            sleep=self._sleep,
            warn=self._warn_once,
        )

    async def _work(self, connection: Connection, mirror: Mirror, watch: Watch) -> bool:
        """False where it lacks something, and the time has come to try again whether the broker takes it now."""
        if not connection.limits.retain:
            self._warn_once("mqtt.no_retained_messages", hint="the broker keeps no retained messages")
        # Before anything is published: where the broker closes the connection on it, no event can be to blame.
        listens = await self._dialer.listen(connection)
        if not listens:
            self._warn_once("mqtt.requests_refused", topic=self._topics.requests, then="tried again later")
        hears = self._births is None or await self._births.listen(connection)
        if self._births is not None and self._births.problem is not None:
            self._warn_once("mqtt.home_assistant_unheard", problem=self._births.problem, then="tried again later")
        if not connection.end.done():
            self._dialer.outage.connected(broker=self._config.broker, protocol=connection.manner.protocol)
        jobs = [
            mirror.run(),
            self._requests.serve(connection.publish),
            self._follow(connection, mirror),
            watch.run(),
            self._listen_later(partial(self._dialer.listen, connection), listens=listens),
        ]
        if self._births is not None:
            jobs.append(self._births.run(mirror.announce_again))
            jobs.append(self._listen_later(partial(self._births.listen, connection), listens=hears))
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(job) for job in jobs]
            try:
                stayed = await self._dialer.stays_on(connection)
            except asyncio.CancelledError:
                self._leave("the bridge leaves this broker")
                await self._say_goodbye(connection, mirror, working[0])
                raise
            finally:
                for task in working:
                    task.cancel()
        return stayed

    async def _listen_later(self, listen: Callable[[], Awaitable[bool]], *, listens: bool) -> None:
        attempts = 0
        while not listens:
            attempts += 1
            await self._sleep(self._again_in(attempts))
            listens = await listen()

    def _again_in(self, attempts: int) -> float:
        return backoff(attempts, jitter=self._jitter(), first=_FIRST_RETRY, longest=_LAST_RETRY)

    async def _follow(self, connection: Connection, mirror: Mirror) -> None:
        """What comes once the retained state was published: events, and what the broker shows of it."""
        # Retained state before events: an automation that an event starts reads the state beside it, and finds its
        # device described.
        await mirror.complete.wait()
        if not connection.end.done():
            self._connection, self.problem = connection, None
            self._ready.set()
        # What was just published is the proof whether reading is allowed, and whether the broker keeps what it takes.
        await mirror.settled.wait()
        lost = await self._tree.read(connection, mirror)
        self._tree.warn_of_others()
        attempts = 0
        while lost or self._tree.is_unread:
            attempts += 1
            await self._sleep(self._again_in(attempts))
            await mirror.settle(again=lost)
            lost = await self._tree.read(connection, mirror)

    def _heard(self, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = None
        if topic is None or topic.startswith(self._topics.request):
            self._requests.take(message)
        elif self._births is not None and topic == self._births.topic:
            self._births.heard(message)
        elif self._mirror is not None and self._watch is not None:
            self._tree.heard(topic, message, self._mirror)
            self._watch.heard(topic, message)

    def _warn_once(self, event: str, **fields: object) -> None:
        """What the broker does not allow is the same on every connection."""
        say = self._log.debug if event in self._warned else self._log.warning
        say(event, **fields)
        self._warned.add(event)

    def _leave(self, problem: str) -> None:
        self._connection = self._mirror = self._watch = None
        self.problem = problem
        self._ready.clear()

    async def _say_goodbye(self, connection: Connection, mirror: Mirror, keeping: asyncio.Task[None]) -> None:
        # The mirror has stopped before, or it would publish `online` again.
        keeping.cancel()
        await asyncio.wait((keeping,))
        # The bridge's own state goes first: the rest may be cut off. Without its PUBACK the last will has to say it.
        await connection.while_it_lasts(mirror.say_offline, connection.emptied, within=_IN_FLIGHT_WITHIN)
        await connection.while_it_lasts(mirror.say_devices_offline, within=_DEVICES_OFFLINE_WITHIN)
        is_offline = mirror.picture.acknowledged.get(self._topics.bridge_state) == OFFLINE
        await connection.disconnect(within=_GOODBYE_WITHIN, with_will=not is_offline)
