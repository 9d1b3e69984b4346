"""A webhook receiver, as somebody would write one: it checks the signature and says thanks."""

import base64
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from aiohttp import web

from bace_bridge.demo.ports import HOST, DemoFailed, ports_to_try

PATH = "/hook"
_PREFERRED_PORT = 8181
_FRESH = 300.0
"""Seconds that a delivery's timestamp may be off: older ones may be somebody else's recording."""

Delivered = Callable[[bytes, bool], None]
"""Called with the body of each delivery, and whether its signature is right."""


def is_signed(headers: Mapping[str, str], body: bytes, secret: str, *, now: float) -> bool:
    """True where one of the delivery's signatures is by this secret (Standard Webhooks)."""
    identifier, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp)) > _FRESH:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{identifier}.{timestamp}.".encode() + body, "sha256")
    wanted = b"v1," + base64.b64encode(digest)
    given = headers.get("webhook-signature", "").encode().split(b" ")
    return any(hmac.compare_digest(wanted, one) for one in given)


@asynccontextmanager
async def webhook_receiver(secret: str, delivered: Delivered) -> AsyncIterator[str]:
    """Runs the receiver; gives its URL. Raises DemoFailed."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        signed = is_signed(request.headers, body, secret, now=time.time())
        delivered(body, signed)
        return web.Response(status=HTTPStatus.NO_CONTENT if signed else HTTPStatus.UNAUTHORIZED)

    app = web.Application()
    app.router.add_post(PATH, receive)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        yield f"http://{HOST}:{await _listen(runner)}{PATH}"
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner) -> int:
    reason = ""
    for port in ports_to_try(_PREFERRED_PORT):
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            reason = str(error)
        else:
            return port
    raise DemoFailed(f"the webhook receiver does not start: {reason}")
