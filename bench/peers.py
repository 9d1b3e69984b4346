"""What others would do: the bare libraries at their best, and the script that users write today."""

import asyncio
import json
import time
import urllib.request
from typing import Any

import aiohttp
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


async def paho_on_the_loop(port: int, payloads: list[tuple[str, bytes]], *, window: int = 100) -> float:
    """Seconds for publishing all at QoS 1, acknowledged: paho on the asyncio loop, refilled on every PUBACK."""
    loop = asyncio.get_running_loop()
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(0)
    connected, done = asyncio.Event(), asyncio.Event()
    left = iter(payloads)
    acknowledged = 0

    def publish_next() -> None:
        if (one := next(left, None)) is not None:
            client.publish(one[0], one[1], qos=1)

    def on_publish(*_: object) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged == len(payloads):
            done.set()
        publish_next()

    client.on_connect = lambda *_: connected.set()
    client.on_publish = on_publish

    def opened(_client: paho.Client, _userdata: object, sock: Any) -> None:
        loop.add_reader(sock, client.loop_read)

    def closed(_client: paho.Client, _userdata: object, sock: Any) -> None:
        loop.remove_reader(sock)

    def wants_to_write(_client: paho.Client, _userdata: object, sock: Any) -> None:
        loop.add_writer(sock, client.loop_write)

    def has_written(_client: paho.Client, _userdata: object, sock: Any) -> None:
        loop.remove_writer(sock)

    client.on_socket_open, client.on_socket_close = opened, closed
    client.on_socket_register_write, client.on_socket_unregister_write = wants_to_write, has_written
    client.connect("127.0.0.1", port)
    await connected.wait()
    started = time.perf_counter()
    for _ in range(window):
        publish_next()
    await done.wait()
    seconds = time.perf_counter() - started
    client.disconnect()
    client.loop_write()
    return seconds


async def aiohttp_client(url: str, bodies: list[bytes], *, at_once: int = 10) -> float:
    """Seconds for one POST a body: the bare client, so many at once."""
    left = iter(bodies)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as session:

        async def work() -> None:
            for body in left:
                async with session.post(url, data=body) as response:
                    await response.read()

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(at_once)))
        return time.perf_counter() - started


def naive_script(cloud_url: str, token: str, session: str, port: int) -> tuple[float, int]:
    """Seconds and points of the script that users write: all pages by urllib, a message a point by paho's thread."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(0)
    client.connect("127.0.0.1", port)
    client.loop_start()
    started = time.perf_counter()
    page, last, published = 1, 1, []
    while page <= last:
        query = f"filter%5Bid_data_session%5D={session}&page={page}"
        request = urllib.request.Request(
            f"{cloud_url}/api/v2/data-downsampled?{query}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request) as answer:
            body = json.loads(answer.read())
        last = body["_meta"]["pageCount"]
        published += [client.publish("naive/points", json.dumps(item), qos=1) for item in body["items"]]
        page += 1
    for one in published:
        one.wait_for_publish(60)
    seconds = time.perf_counter() - started
    client.loop_stop()
    client.disconnect()
    return seconds, len(published)
