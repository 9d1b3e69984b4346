"""What people ask of the bridge over MQTT, and its answers."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.errors import BridgeError, SinkError
from bace_bridge.formats import decoded, topic_problem
from bace_bridge.sinks.api import Done
from bace_bridge.sinks.kind import SinkContext
from bace_bridge.sinks.mqtt.client import Beginning
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.mqtt.messages import Message, of_response
from bace_bridge.sinks.mqtt.topics import Topics, base_of

Publish = Callable[[Message, Done], None]

MOST_A_MINUTE = 60
LARGEST = 64 * 2**10
"""Bytes of a request's payload."""

LARGEST_TRANSACTION = 1024
"""Bytes of JSON that are echoed."""

_LARGEST_CORRELATION = 1024
_MOST_WAITING = 16
_LOGGED_EVERY = 60.0
_LONGEST_NAME = 64


class Request(msgspec.Struct, frozen=True):
    name: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None


class Requests:
    """Answers one request after the other; few are made, and some start work. `clock` is in seconds."""

    def __init__(
        self,
        context: SinkContext,
        topics: Topics,
        log: FilteringBoundLogger,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._answers = context.requests
        self._running = context.running
        self._shown = partial(context.redaction.quoted, longest=_LONGEST_NAME)
        self._topics = topics
        self._warn = _LimitedWarnings(log, clock)
        self._allowance = Allowance(MOST_A_MINUTE, clock)
        self._asked: asyncio.Queue[Request] = asyncio.Queue(_MOST_WAITING)

    def take(self, message: MQTTMessage) -> None:
        """Anybody who may publish calls this, as often as they like."""
        try:
            # paho decodes a topic whenever it is read, and raises for bytes that are not UTF-8.
            name = message.topic.removeprefix(self._topics.request)
        except UnicodeDecodeError:
            self._warn("mqtt.unreadable_topic_ignored", hint="a topic must be UTF-8")
            return
        shown = self._shown(name)
        if topic_problem(self._topics.response + name) is not None:
            self._warn("mqtt.unreadable_topic_ignored", request=shown, hint="there is no topic to send the response to")
        elif message.retain:
            # The broker would hand it out at every connect, and a replay would be made each time.
            self._warn("mqtt.retained_request_ignored", request=shown)
        elif self._asked.full() or not self._allowance.one_more():
            self._warn("mqtt.request_dropped", request=shown, waiting=_MOST_WAITING, a_minute=MOST_A_MINUTE)
        else:
            # One byte more than is taken shows that it is too large; the rest of it need not wait in memory.
            payload = message.payload
            payload = payload if isinstance(payload, Beginning) else bytes(payload[: LARGEST + 1])
            response_topic = getattr(message.properties, "ResponseTopic", None)
            correlated = getattr(message.properties, "CorrelationData", None)
            self._asked.put_nowait(Request(name, payload, response_topic, correlated))

    async def serve(self, publish: Publish) -> None:
        while True:
            request = await self._asked.get()
            payload = await self._answer(request)
            usual, asked_for = self._topics.response + request.name, request.response_topic
            known = request.correlation is not None and len(request.correlation) <= _LARGEST_CORRELATION
            properties = of_response(request.correlation if known else None)
            also = asked_for is not None and asked_for != usual and self._unusable(asked_for) is None
            for topic in [usual, asked_for] if also and asked_for is not None else [usual]:
                publish(Message(topic, payload, qos=1, properties=properties), partial(self._responded, topic))

    def _responded(self, topic: str, error: SinkError | None) -> None:
        if error is not None:
            self._warn("mqtt.response_not_delivered", topic=topic, problem=str(error))

    def _unusable(self, topic: str) -> str | None:
        """Why no answer goes there: the bridge writes with its own rights, and could be made to forge its own state."""
        if problem := topic_problem(topic):
            return problem
        bases = {one.base_topic for one in self._running() if isinstance(one, MqttConfig)}
        base = base_of(f"{topic}/", {self._topics.base, *bases})
        if base is None or (base == self._topics.base and topic.startswith(self._topics.response)):
            return None
        return f"belongs to the bridge; choose one outside of it, or one below {self._topics.response}"

    async def _answer(self, request: Request) -> bytes:
        if isinstance(request.payload, Beginning) or len(request.payload) > LARGEST:
            return _encoded(status="error", error=f"the request is larger than {LARGEST} bytes")
        try:
            payload = request.payload if request.payload.strip() else b"{}"
            asked, echoed = decoded(payload, dict[str, Any]), decoded(payload, _Echo).transaction
        except msgspec.DecodeError:
            return _encoded(status="error", error="the request is not a JSON object")
        refusal, transaction = None, None if echoed is msgspec.UNSET else echoed
        if len(bytes(transaction or b"")) > LARGEST_TRANSACTION:
            refusal, transaction = f"transaction is larger than {LARGEST_TRANSACTION} bytes", None
        elif request.name not in self._answers:
            refusal = f"unknown request {self._shown(request.name)!r}; known: {', '.join(sorted(self._answers))}"
        elif request.correlation is not None and len(request.correlation) > _LARGEST_CORRELATION:
            refusal = f"the correlation data are larger than {_LARGEST_CORRELATION} bytes"
        elif request.response_topic is not None and (problem := self._unusable(request.response_topic)):
            refusal = f"the response topic {self._shown(request.response_topic)!a} {problem}"
        if refusal is not None:
            return _encoded(transaction, status="error", error=refusal)
        try:
            return _encoded(transaction, status="ok", data=await self._answers[request.name](asked))
        except BridgeError as error:
            return _encoded(transaction, status="error", error=str(error))
        except Exception as error:  # noqa: BLE001  # a message from outside must not end the service
            self._warn("mqtt.request_failed", request=self._shown(request.name), exc_info=error)
            return _encoded(transaction, status="error", error="an internal error; the log has its details")


class Allowance:
    """So many at once, and then evenly so many a minute. Above it every request would still cost an answer."""

    def __init__(self, a_minute: int, clock: Callable[[], float]) -> None:
        self._a_minute = a_minute
        self._clock = clock
        self._left = float(a_minute)
        self._at = clock()

    def one_more(self) -> bool:
        now = self._clock()
        self._left = min(self._a_minute, self._left + (now - self._at) * self._a_minute / 60)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _LimitedWarnings:
    """Warnings that anybody can cause, each at most once a minute, with how many more there were before it."""

    def __init__(self, log: FilteringBoundLogger, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._silent_until: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def __call__(self, event: str, **fields: object) -> None:
        now = self._clock()
        if now < self._silent_until.get(event, now):
            self._held_back[event] = self._held_back.get(event, 0) + 1
            return
        self._silent_until[event] = now + _LOGGED_EVERY
        more = self._held_back.pop(event, 0)
        self._log.warning(event, **fields, **({"more_before": more} if more else {}))


class _Echo(msgspec.Struct):
    """What goes back as it came: not decoded, so that it need not be encoded."""

    transaction: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _encoded(transaction: msgspec.Raw | None = None, **answer: object) -> bytes:
    return msgspec.json.encode(answer if transaction is None else {**answer, "transaction": transaction})
