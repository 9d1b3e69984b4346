"""The health server: whether the loops make progress, and whether everything that they need is usable."""

import asyncio
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Self

from aiohttp import web

from bace_bridge.config.models import HttpConfig
from bace_bridge.errors import ConfigError, Mistake

Reasons = Callable[[], dict[str, str | None]]
"""Name -> why it is not well; None where it is."""

LISTENS_WITHIN = 10.0
"""Seconds until a host's name that is not resolved is given up: nothing begins before the server listens."""


class HealthServer:
    """Serves from `open` to `close`, or as long as its context is open.

    `alive` is about the loops, `ready` of the cloud, the store and the brokers; `degraded` of what does not work while
    all of these do, which is shown beside them and makes nothing unready.
    """

    def __init__(
        self,
        config: HttpConfig,
        *,
        alive: Reasons,
        ready: Reasons,
        degraded: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self._config = config
        self._alive = alive
        self._ready = ready
        self._degraded = degraded
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_route("*", "/{path:.*}", _unknown)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    usable = True

    @property
    def address(self) -> str | None:
        """`host:port` where it listens; the port is the real one where the configuration says 0."""
        if not self._runner.addresses:
            return None
        host, port, *_ = self._runner.addresses[0]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def open(self) -> None:
        """Begins to listen. Raises ConfigError where that is not possible."""
        await self._runner.setup()
        try:
            async with asyncio.timeout(LISTENS_WITHIN):
                await web.TCPSite(self._runner, self._config.host, self._config.port).start()
        except (OSError, UnicodeError) as error:  # UnicodeError: the host can be no name, such as 127.0.0..1
            await self.close()
            raise _cannot_listen(self._config.listen, error) from error

    async def close(self) -> None:
        await self._runner.cleanup()

    async def run(self, stop: asyncio.Event) -> None:
        """Once it is open: answers until `stop`."""
        try:
            await stop.wait()
        finally:
            await self.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _report(self._alive(), well="ok", unwell="stalled")

    async def _readyz(self, _: web.Request) -> web.Response:
        return _report(self._ready(), well="ready", unwell="not ready", degraded=self._degraded())


def _report(
    reasons: dict[str, str | None], *, well: str, unwell: str, degraded: dict[str, str] | None = None
) -> web.Response:
    checks = {name: {"ok": reason is None, "reason": reason} for name, reason in reasons.items()}
    fine = all(reason is None for reason in reasons.values())
    status = HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE
    beside = {"degraded": degraded} if degraded else {}
    return _json({"status": well if fine else unwell, "checks": checks, **beside}, status)


async def _unknown(_: web.Request) -> web.Response:
    return _json({"error": "not found", "known": ["/healthz", "/readyz"]}, HTTPStatus.NOT_FOUND)


def _json(content: dict[str, object], status: HTTPStatus) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})


def _cannot_listen(listen: str, error: OSError | UnicodeError) -> ConfigError:
    if isinstance(error, UnicodeError):
        reason: str | None = "that is no host name"
    elif isinstance(error, TimeoutError):
        reason = "the host's name is not resolved in time"
    else:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    problem = f"cannot listen on {listen}: {reason}"
    return ConfigError([Mistake("http.listen", problem, 'choose another address, or "" for none')])
