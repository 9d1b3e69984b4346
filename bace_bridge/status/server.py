"""The HTTP server: whether the loops make progress, whether everything that they need is usable, and CSV links."""

import asyncio
import hmac
import os
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import structlog

from bace_bridge.config.models import HttpConfig
from bace_bridge.config.sections import is_loopback
from bace_bridge.errors import ConfigError, Mistake
from bace_bridge.status.health import Reasons
from bace_bridge.status.listener import Answer, Listener, Long, Request

log = structlog.get_logger()

LISTENS_WITHIN = 10.0
"""Seconds until a host's name that is not resolved is given up: nothing begins before the server listens."""

_KNOWN = ["/healthz", "/readyz"]


class HealthServer:
    """Serves from `open` to `close`.

    `alive` is about the loops, `ready` of the cloud, the store and the brokers; `degraded` of what does not work while
    all of these do, which is shown beside them and makes nothing unready. Names and reasons are for who asks on this
    machine or has the token; anybody else gets the kinds of what there is, and whether all of a kind is well.
    """

    usable = True

    def __init__(
        self,
        config: HttpConfig,
        *,
        alive: Reasons,
        ready: Reasons,
        degraded: Callable[[], dict[str, str]] = dict,
        csv: Callable[[Request], Answer | Long | None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._csv = csv
        self._config = config
        self._alive = alive
        self._ready = ready
        self._degraded = degraded
        self._listener = Listener(self._answer, clock=clock)
        self.close = self._listener.close

    @property
    def address(self) -> str | None:
        """`host:port` where it listens; the port is the real one where the configuration says 0."""
        if not self._listener.addresses:
            return None
        host, port = self._listener.addresses[0]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def open(self) -> None:
        """Begins to listen. Raises ConfigError where that is not possible."""
        try:
            async with asyncio.timeout(LISTENS_WITHIN):
                await self._listener.open(self._config.host, self._config.port)
        except (OSError, UnicodeError) as error:  # UnicodeError: the host can be no name, such as 127.0.0..1
            if isinstance(error, UnicodeError):
                reason: str | None = "that is not a valid host name"
            elif isinstance(error, TimeoutError):
                reason = "the host's name is not resolved in time"
            else:
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            problem = f"cannot listen on {self._config.listen}: {reason}"
            raise ConfigError([Mistake("http.listen", problem, 'choose another address, or "" for none')]) from error
        log.info("http.listening", url=f"http://{self.address}")

    async def run(self, stop: asyncio.Event) -> None:
        """Once it is open: answers until `stop`."""
        try:
            await stop.wait()
        finally:
            await self.close()

    def _answer(self, request: Request) -> Answer | Long:
        about_csv = self._csv(request)
        if about_csv is not None:
            return about_csv
        if request.path not in _KNOWN or request.method not in {"GET", "HEAD"}:
            return Answer(HTTPStatus.NOT_FOUND, {"error": "not found", "known": _KNOWN})
        token = None if self._config.token is None else self._config.token.get_secret_value()
        listening = [host for host, _ in self._listener.addresses]
        known = may_know(request, listening, token)
        # Containers restart by /healthz: what is away outside is none of its business, as a restart would not help.
        if request.path == "/healthz":
            return _report(self._alive(), {}, well="ok", unwell="stalled", in_full=known)
        return _report(self._ready(), self._degraded(), well="ready", unwell="not ready", in_full=known)


def may_know(request: Request, listening: Sequence[str], token: str | None) -> bool:
    """Whether the client may see names and reasons; `listening` are the addresses of the listener.

    A page in a browser on this machine may ask under a name of its own (DNS rebinding): it is a stranger.
    """
    given = [one.partition(" ") for one in request.fields.get("authorization", ())]
    # In constant time: how long an answer takes must not show how much of a guess is right.
    if token is not None and any(
        scheme.lower() == "bearer" and hmac.compare_digest(said.strip().encode("latin-1"), token.strip().encode())
        for scheme, _, said in given
    ):
        return True
    # On a loopback address only this machine can ask; what asks under the name of another one is a proxy, or a page.
    local = all(ip_address(host).is_loopback for host in listening)
    return local and all(_names_this_machine(host) for host in request.fields.get("host", ()))


def _names_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _report(
    reasons: Mapping[str, str | None], degraded: Mapping[str, str], *, well: str, unwell: str, in_full: bool
) -> Answer:
    fine = all(reason is None for reason in reasons.values())
    checks: dict[str, Any] = {}
    beside: Any = dict(degraded)
    if in_full:
        checks = {name: {"ok": reason is None, "reason": reason} for name, reason in reasons.items()}
    else:
        # Kinds alone: `mqtt` of `mqtt:home`, as what follows is a name that people have chosen.
        for name, reason in reasons.items():
            one = checks.setdefault(name.partition(":")[0], {"ok": True})
            one["ok"] = one["ok"] and reason is None
        beside = sorted({name.partition(":")[0] for name in degraded})
    status = HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE
    shown = {"status": well if fine else unwell, "checks": checks}
    return Answer(status, {**shown, "degraded": beside} if degraded else shown)
