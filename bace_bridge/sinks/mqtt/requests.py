"""What people ask of the bridge over MQTT, and its answers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from paho.mqtt.client import MQTTMessage
from structlog.typing import FilteringBoundLogger

from bace_bridge.domain.foreign_json import decoded
from bace_bridge.errors import BridgeError
from bace_bridge.sinks.mqtt.properties import correlation
from bace_bridge.sinks.mqtt.topics import Topics
from bace_bridge.sinks.mqtt.window import Message

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Publish = Callable[[Message], None]

_MOST_WAITING = 16


class Request(msgspec.Struct, frozen=True):
    name: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None


class Requests:
    """Answers one request after the other; few are made, and some start work."""

    def __init__(self, answers: Mapping[str, Answer], topics: Topics, log: FilteringBoundLogger) -> None:
        self._answers = answers
        self._topics = topics
        self._log = log
        self._asked: asyncio.Queue[Request] = asyncio.Queue(_MOST_WAITING)

    def take(self, message: MQTTMessage) -> None:
        try:
            name = self._topics.request_name(message.topic)
        except UnicodeDecodeError:
            self._log.warning("mqtt.unreadable_topic_ignored", hint="a topic must be UTF-8")
            return
        if message.retain:
            self._log.warning("mqtt.retained_request_ignored", request=name)
            return
        try:
            self._asked.put_nowait(_request(name, message))
        except asyncio.QueueFull:
            self._log.warning("mqtt.request_dropped", request=name, waiting=_MOST_WAITING)

    async def serve(self, publish: Publish) -> None:
        while True:
            request = await self._asked.get()
            for message in self._responses(request, await self._answer(request)):
                publish(message)

    async def _answer(self, request: Request) -> dict[str, Any]:
        answer = self._answers.get(request.name)
        if answer is None:
            known = ", ".join(sorted(self._answers))
            return _error(f"there is no request {request.name!r}; known: {known}")
        try:
            asked, echo = _asked(request.payload)
        except msgspec.DecodeError:
            return _error("the request is no JSON object")
        try:
            return {"status": "ok", "data": await answer(asked), **echo}
        except BridgeError as error:
            return _error(str(error)) | echo
        except Exception:  # noqa: BLE001  # a message from outside must not end the service
            self._log.exception("mqtt.request_failed", request=request.name)
            return _error("an internal error; the log has its details") | echo

    def _responses(self, request: Request, response: dict[str, Any]) -> list[Message]:
        payload = msgspec.json.encode(response)
        usual = self._topics.response(request.name)
        wished = request.response_topic
        topics = [usual] if wished is None or wished == usual else [usual, wished]
        properties = correlation(request.correlation) if request.correlation is not None else None
        return [Message(topic, payload, qos=1, properties=properties) for topic in topics]


class _Echo(msgspec.Struct):
    """What goes back as it came: not decoded, so that it need not be encoded."""

    transaction: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def _asked(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked, and what of it the answer repeats. Raises `msgspec.DecodeError`."""
    if not payload.strip():
        return {}, {}
    transaction = decoded(payload, _Echo).transaction
    return decoded(payload, dict[str, Any]), {} if transaction is msgspec.UNSET else {"transaction": transaction}


def _request(name: str, message: MQTTMessage) -> Request:
    return Request(
        name,
        bytes(message.payload),
        getattr(message.properties, "ResponseTopic", None),
        getattr(message.properties, "CorrelationData", None),
    )


def _error(problem: str) -> dict[str, Any]:
    return {"status": "error", "error": problem}
