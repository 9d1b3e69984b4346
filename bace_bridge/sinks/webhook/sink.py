"""The webhook sink: one POST an event, so many at once as the configuration allows."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import structlog
from multidict import CIMultiDict
from yarl import URL

from bace_bridge.config.models import WebhookConfig
from bace_bridge.config.secrecy import secrets_of
from bace_bridge.domain.events import Event
from bace_bridge.domain.lanes import Attempt
from bace_bridge.domain.pace import Pace
from bace_bridge.domain.redaction import Redaction
from bace_bridge.errors import SinkError, SinkUnavailable
from bace_bridge.sinks.webhook.answer import LONGEST_ANSWER, judge
from bace_bridge.sinks.webhook.cloudevent import CONTENT_TYPE, structured
from bace_bridge.sinks.webhook.network import what_went_wrong
from bace_bridge.sinks.webhook.signature import signed_headers, signing_key

KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: less than the 5 s after which common servers close theirs."""

Done = Callable[[SinkError | None], None]


class WebhookSink:
    """Delivers events to one endpoint.

    A worker posts, tells the result to `done` and takes the next, so no task is made for an event.
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
        steady: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        grace: float = 10.0,
    ) -> None:
        self.name = config.name
        self.window = config.max_in_flight
        self._config = config
        self._source = source
        self._clock = clock
        self._steady = steady
        self._sleep = sleep
        self._pace = Pace(config.rate_limit)
        self._grace = grace
        self._url = _address(config)
        self._keys = [signing_key(secret.get_secret_value()) for secret in config.secret]
        self._redaction = redaction or Redaction(secrets_of(config))
        self._headers = CIMultiDict({"Content-Type": CONTENT_TYPE, "User-Agent": f"bace-bridge/{version}"})
        self._headers.update({name: value.get_secret_value() for name, value in config.headers.items()})
        self._log = structlog.get_logger().bind(sink=config.name, host=config.host)
        self._queue: asyncio.Queue[tuple[Attempt, Done]] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._is_ready = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Posts until it is cancelled or closed; then every event that was sent here has had its `done`."""
        try:
            async with self._session() as session, asyncio.TaskGroup() as group:
                self._workers = [group.create_task(self._work(session)) for _ in range(self.window)]
                self._is_ready.set()
                self._log.info("webhook.opened", max_in_flight=self.window, signatures=len(self._keys))
        finally:
            self._is_ready.clear()
            self._closed = True
            self._workers = []
            self._hand_back()

    async def ready(self) -> None:
        """Returns at once while `run` runs: whether the endpoint answers only a POST can tell."""
        await self._is_ready.wait()

    @staticmethod
    def where(event: Event) -> str:
        """There is one endpoint."""
        del event
        return ""

    def send(self, attempt: Attempt, done: Done) -> None:
        """Never blocks; `done` is called exactly once, on the loop, after this has returned."""
        if self._closed:
            asyncio.get_running_loop().call_soon(done, _stopped())
        else:
            self._queue.put_nowait((attempt, done))

    async def close(self) -> None:
        """Lets the POSTs in flight end, up to the grace period, then cuts them off; `run` returns."""
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

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.window, keepalive_timeout=KEEP_ALIVE),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            skip_auto_headers=("Accept-Encoding",),
            auto_decompress=False,
            read_bufsize=LONGEST_ANSWER,
        )

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            attempt, done = await self._queue.get()
            error: SinkError | None = _stopped()
            try:
                if wait := self._pace.turn(self._steady()):
                    await self._sleep(wait)
                error = await self._post(session, attempt)
            finally:
                done(error)
                self._queue.task_done()

    async def _post(self, session: aiohttp.ClientSession, attempt: Attempt) -> SinkError | None:
        body = structured(attempt, self._source)
        headers = signed_headers(attempt.logged.event.id, body, self._keys, now=self._clock())
        try:
            response = await session.post(self._url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            return what_went_wrong(error, timeout=self._config.timeout)
        answered = b"" if response.ok and response.content.is_eof() else await _beginning(response)
        return judge(response.status, response.headers, answered, now=self._clock(), redaction=self._redaction)

    def _hand_back(self) -> None:
        while not self._queue.empty():
            _, done = self._queue.get_nowait()
            done(_stopped())
            self._queue.task_done()


def _address(config: WebhookConfig) -> URL:
    """A configured Authorization header wins over a login in the URL; aiohttp takes only one of them."""
    url = URL(config.url.get_secret_value())
    return url.with_user(None) if any(name.lower() == "authorization" for name in config.headers) else url


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of the body; a connection whose answer is longer than that is not used again."""
    body = b""
    try:
        with suppress(aiohttp.ClientError, OSError):  # the status has said what counts
            while (room := LONGEST_ANSWER - len(body)) and (more := await response.content.read(room)):
                body += more
    finally:
        response.release()
    return body


def _stopped() -> SinkUnavailable:
    return SinkUnavailable("bace-bridge stopped before the webhook answered")
