"""What the demo runs around the bridge: a broker, a webhook receiver, a subscriber; on well-known ports where free."""

import asyncio
import base64
import hmac
import logging
import os
import shutil
import socket
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
from aiohttp import web
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

HOST = "127.0.0.1"


class DemoFailed(Exception):  # what happened, not a class of errors to build on
    """The demonstration cannot begin; the message says what to do."""


def is_free(port: int) -> bool:
    with socket.socket() as one:
        # As servers do it: a port that a server has only just left is free.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return False
        return True


def any_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def ports_to_try(preferred: int) -> list[int]:
    """The preferred one if it is free, and a few others, as another program may be faster."""
    return [*([preferred] if is_free(preferred) else []), any_port(), any_port()]


_BROKER_PORT = 1883
_SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
"""Where systems install it beside a user's PATH."""

_LEAVING = 3.0
"""Seconds that the embedded broker may take to close the connections of its clients."""


class Broker(msgspec.Struct, frozen=True):
    """A broker that listens on `HOST`; `note` says what it cannot do."""

    name: str
    port: int
    protocol: Literal["5", "3.1.1"] = "5"
    note: str = ""


@asynccontextmanager
async def broker() -> AsyncIterator[Broker]:
    """Mosquitto where it is installed, else amqtt, which is a Python package. Raises DemoFailed."""
    program = shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), *_SBIN)))
    async with mosquitto(program) if program else embedded_broker() as one:
        yield one


@asynccontextmanager
async def mosquitto(program: str) -> AsyncIterator[Broker]:
    with TemporaryDirectory(prefix="bace-bridge-demo-broker-") as folder:
        for port in ports_to_try(_BROKER_PORT):
            settings = Path(folder) / "mosquitto.conf"
            settings.write_text(f"listener {port} {HOST}\nallow_anonymous true\nlog_dest none\n", encoding="utf-8")
            # A session of its own: Ctrl-C must end the bridge before its broker.
            process = await asyncio.create_subprocess_exec(
                program, "-c", str(settings), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
            )
            try:
                # Mosquitto says nothing when it is ready: somebody has the port, or the process has ended instead.
                while process.returncode is None:
                    if not is_free(port):
                        yield Broker("Mosquitto", port)
                        return
                    await asyncio.sleep(0.02)
            finally:
                with suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
    raise DemoFailed("mosquitto is installed but does not start: try it by hand, with mosquitto -v")


@asynccontextmanager
async def embedded_broker() -> AsyncIterator[Broker]:
    """Raises DemoFailed."""
    # It logs everyday things at length, such as a client that comes or goes, and what it cannot do as a traceback.
    loggers = [logging.getLogger(name) for name in ("amqtt", "asyncio", "transitions", "websockets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    amqtt, port = await started(ports_to_try(_BROKER_PORT))
    note = "amqtt: MQTT 3.1.1 only, sends retained messages twice; with mosquitto installed the demo uses that"
    try:
        yield Broker("amqtt", port, "3.1.1", note)
    finally:
        try:
            async with asyncio.timeout(_LEAVING):
                await amqtt.shutdown()
        except TimeoutError:
            pass  # the process ends anyway
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


async def started(ports: Iterable[int]) -> tuple[Any, int]:
    """The broker on the first of these ports that is still free."""
    try:
        from amqtt.broker import Broker  # noqa: PLC0415  # an extra, that only the demonstration needs
        from amqtt.errors import AMQTTError, BrokerError  # noqa: PLC0415  # as above
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "amqtt":
            raise
        hint = "pip install 'bace-bridge[demo]'"
        raise DemoFailed(f"the demonstration needs an embedded MQTT broker: {hint}") from None
    reason = ""
    for port in ports:
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        try:
            await broker.start()
        except (AMQTTError, BrokerError, OSError) as error:
            reason = str(error)
        else:
            return broker, port
    raise DemoFailed(f"the embedded MQTT broker does not start: {reason}")


PATH = "/hook"
_RECEIVER_PORT = 8181
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
    # In constant time, and any of several: while a secret is replaced a sender signs with both.
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
    # No access log: it would write between the lines of the view.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        yield f"http://{HOST}:{await _listen(runner)}{PATH}"
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner) -> int:
    reason = ""
    for port in ports_to_try(_RECEIVER_PORT):
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            reason = str(error)
        else:
            return port
    raise DemoFailed(f"the webhook receiver does not start: {reason}")


_PATIENCE = 10.0

Heard = Callable[[str, bytes], None]
"""Called in the event loop with the topic and the payload of each message."""


@asynccontextmanager
async def subscribed(port: int, topics: str, heard: Heard) -> AsyncIterator[None]:
    """Listens to the broker on this machine in a thread of its own. Raises DemoFailed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)

    def on_connect(*_: Any) -> None:
        # Here and not once: paho connects again by itself, and the broker has forgotten the subscription by then.
        client.subscribe(topics, qos=1)

    def on_subscribe(*_: Any) -> None:
        loop.call_soon_threadsafe(ready.set)

    def on_message(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        loop.call_soon_threadsafe(heard, message.topic, bytes(message.payload))

    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    client.connect_async(HOST, port)
    client.loop_start()
    try:
        try:
            async with asyncio.timeout(_PATIENCE):
                await ready.wait()
        except TimeoutError:
            raise DemoFailed("the embedded MQTT broker does not answer") from None
        yield
    finally:
        client.disconnect()
        # Joining the thread takes the broker's help, and that runs in this very loop.
        await asyncio.to_thread(client.loop_stop)
