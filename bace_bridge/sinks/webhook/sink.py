"""Delivers events to one HTTP endpoint, signed as Standard Webhooks."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from bace_bridge.config.values import secrets_of
from bace_bridge.errors import DeliveryFailed, SinkError, SinkUnavailable
from bace_bridge.events.types import Attempt, Event
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.api import Done
from bace_bridge.sinks.webhook.config import WebhookConfig
from bace_bridge.sinks.webhook.exchange import Exchange
from bace_bridge.sinks.webhook.message import (
    judge,
    origin,
    request_bytes,
    request_head,
    signed_headers,
    signing_key,
    structured,
)


class Pace:
    """Turns at most so many times a second, evenly: after a long silence there is no burst. 0 sets no limit."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second if per_second > 0 else 0.0
        self._next = 0.0

    def turn(self, now: float) -> float:
        """Takes the next turn; returns the seconds until then. `now` is of a clock that is never set back."""
        at = max(now, self._next)
        self._next = at + self._gap
        return at - now


_STOPPED = "bace-bridge stopped before the webhook answered"


class WebhookSink:
    """Delivers events to one endpoint.

    A worker posts, passes the result to `done` and takes the next, so no task is made for an event.
    Anything but the named errors ends `run`.
    """

    pipelined = False

    def __init__(
        self,
        config: WebhookConfig,
        *,
        source: str,
        version: str,
        redaction: Redaction | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        grace: float = 10.0,
    ) -> None:
        self.name = config.name
        self.window = config.max_in_flight
        self._config = config
        self._source = source
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._pace = Pace(config.rate_limit)
        self._grace = grace
        self._keys = [signing_key(secret.get_secret_value()) for secret in config.secret or ()]
        self._redaction = redaction or Redaction(secrets_of(config))
        url = config.url.get_secret_value()
        self._exchange = Exchange(origin(url), timeout=config.timeout, monotonic=monotonic)
        # Once for all attempts: only the id, the time, the signatures and the length differ between them.
        self._head = request_head(
            url,
            version,
            {name: value.get_secret_value() for name, value in config.headers.items()},
        )
        self._log = structlog.get_logger().bind(sink=config.name, host=config.host)
        self._queue: asyncio.Queue[tuple[Attempt, Done]] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._is_ready = asyncio.Event()
        self.ready = self._is_ready.wait  # while `run` runs: only a POST shows whether the endpoint answers
        self._closed = False

    async def run(self) -> None:
        """Posts until it is cancelled or closed; then every event that was sent here has had its `done`."""
        try:
            async with asyncio.TaskGroup() as group:
                self._workers = [group.create_task(self._work()) for _ in range(self.window)]
                self._is_ready.set()
                self._log.info("webhook.opened", max_in_flight=self.window, signatures=len(self._keys))
        finally:
            self._is_ready.clear()
            self._closed = True
            self._workers = []
            self._exchange.close()
            self._hand_back()

    @staticmethod
    def where(event: Event) -> str:
        """There is one endpoint."""
        del event
        return ""

    def send(self, attempt: Attempt, done: Done) -> None:
        """Never blocks; `done` is called exactly once, on the loop, after this has returned."""
        if self._closed:
            asyncio.get_running_loop().call_soon(done, SinkUnavailable(_STOPPED))
        else:
            self._queue.put_nowait((attempt, done))

    async def close(self) -> None:
        """Lets the POSTs in flight end, up to the grace period, then cuts them off; `run` returns."""
        # What is sent from now on is handed back at once; what was sent before is posted within the grace. A POST that
        # is cut off is repeated after the next start, with the same id.
        self._closed = True
        workers = self._workers
        if workers:
            try:
                async with asyncio.timeout(self._grace):
                    await self._queue.join()
            except TimeoutError:
                self._log.warning("webhook.cut_off", after=self._grace)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._hand_back()

    async def _work(self) -> None:
        while True:
            attempt, done = await self._queue.get()
            # What `done` gets where the worker is cancelled: the endpoint may have the event, so it is sent again.
            error: SinkError | None = SinkUnavailable(_STOPPED)
            try:
                # Here and not in `send`: the limit spreads what has piled up, and `send` must not block.
                if wait := self._pace.turn(self._monotonic()):
                    await self._sleep(wait)
                body = structured(attempt, self._source)
                # Signed after the wait: receivers refuse a timestamp that is minutes old.
                signed = signed_headers(attempt.logged.event.id, body, self._keys, now=self._clock())
                reply = await self._exchange.post(request_bytes(self._head, signed, body))
                now = self._clock()
                error = judge(reply.status, reply.headers, reply.body, now=now, redaction=self._redaction)
            except DeliveryFailed as failure:
                error = failure
            finally:
                done(error)
                self._queue.task_done()

    def _hand_back(self) -> None:
        while not self._queue.empty():
            _, done = self._queue.get_nowait()
            done(SinkUnavailable(_STOPPED))
            self._queue.task_done()
