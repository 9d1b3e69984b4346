"""The real process before receivers whose answers, addresses and headers are odd: each event comes once, as written."""

import asyncio
import json
import ssl
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, configuration, running, until
from tests.integration.peers import speaking

LIFE = ["started", "ended", "csv_ready"]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

DELIVERED = {
    "a-204-with-a-body": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    "a-205-with-a-body": b"HTTP/1.1 205 Reset\r\n\r\nok",
    "a-header-of-9-kB": OK + b"X: " + b"x" * 9000 + b"\r\nContent-Length: 0\r\n\r\n",
    "a-header-of-1-MB": OK + b"X: " + b"x" * 1_000_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "2000-headers": OK + b"X: x\r\n" * 2000 + b"Content-Length: 0\r\n\r\n",
    "bytes-after-the-body": OK + b"Content-Length: 2\r\n\r\nok, and more",
    "an-answer-after-the-answer": (OK + b"Content-Length: 2\r\n\r\nok") * 2,
    "a-body-cut-off": OK + b"Content-Length: 900\r\n\r\nok",
    "a-length-that-is-none": OK + b"Content-Length: two\r\n\r\nok",
    "two-lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "a-length-and-chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunks-that-are-none": CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",
    "chunks-cut-off": CHUNKED + b"10\r\nok",
    "half-a-header": OK + b"Content-Le",
    "a-status-line-alone": OK,
    "a-status-line-without-its-end": b"HTTP/1.1 200",
    "a-status-without-words": b"HTTP/1.1 299\r\n\r\n",
    "line-feeds-alone": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "a-header-without-a-colon": OK + b"what is this\r\nContent-Length: 0\r\n\r\n",
    "a-header-with-a-blank": OK + b"Keep Alive : 5\r\nContent-Length: 0\r\n\r\n",
    "a-header-with-a-nul": OK + b"X: a\x00b\r\n\xff\xfe: \xff\r\nContent-Length: 0\r\n\r\n",
    "gzip-that-is-none": OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
    "http-1.0": b"HTTP/1.0 200 OK\r\n\r\nok",
    "interim-answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: <x>\r\n\r\n" + OK + b"\r\n",
    "blank-lines-before": b"\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "a-cookie-that-is-none": OK + b"Set-Cookie: \x01=;;;=\r\nContent-Length: 0\r\n\r\n",
    "a-redirect-that-is-none": OK + b"Location: http://[\r\nContent-Length: 0\r\n\r\n",
}  # fmt: skip
"""Answers by path. What follows their status line is odd; the connection stays open unless the answer is cut off."""

CUT_OFF = (
    "a-body-cut-off", "chunks-cut-off", "half-a-header", "a-status-line-alone", "a-status-line-without-its-end",
    "a-status-without-words", "a-length-that-is-none", "http-1.0", "interim-answers",
)  # fmt: skip

Answer = Callable[[str, int], tuple[bytes, bool]]
"""Of a request's target, and how often it was asked: the bytes, and whether the connection is closed after them."""


class Request(msgspec.Struct, frozen=True):
    line: bytes
    headers: dict[str, str]
    body: dict[str, Any]
    raw_body: bytes


class Receiver:
    """A socket that reads requests as they are and answers with whatever bytes a test likes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: dict[str, list[Request]] = defaultdict(list)
        self.url = ""
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
                pairs = [one.decode().split(": ", 1) for one in lines]
                headers = {name.lower(): value for name, value in pairs}
                assert len(headers) == len(pairs)
                raw = await reader.readexactly(int(headers["content-length"]))
                target = line.split(b" ")[1].decode()
                self.requests[target].append(Request(line, headers, json.loads(raw), raw))
                answer, closes = self._answer(target, len(self.requests[target]))
                writer.write(answer)
                await writer.drain()
                if closes:
                    break
        writer.close()

    def types(self, target: str) -> list[str]:
        return [one.body["type"].removeprefix("bace.session.") for one in self.requests[target]]


@asynccontextmanager
async def receiving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(answer)
    async with speaking(receiver.serve, tls=tls) as port:
        receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        yield receiver


def with_webhooks(folder: Path, cloud_url: str, hooks: list[dict[str, Any]]) -> Path:
    path = configuration(folder, cloud_url=cloud_url)
    document = msgspec.json.decode(path.read_bytes())
    events = ["session.started", "session.ended", "session.csv_ready"]
    document["webhooks"] = [
        {"name": f"hook{index}", "secret": SECRET, "events": events, **hook} for index, hook in enumerate(hooks)
    ]
    path.write_text(json.dumps(document), encoding="utf-8")  # with escapes, which YAML takes
    return path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bace_bridge", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


async def a_session(
    folder: Path, receiver: Receiver, hooks: list[dict[str, Any]], targets: list[str], **environment: str
) -> str:
    """The log of a process that delivers a data session's three events to each target."""
    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with SimulatedServer(cloud) as server:
        config = with_webhooks(folder, server.url, hooks)
        async with running(config, level="debug", environment=environment) as bridge:
            await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
            session = cloud.open_session(device.id_group)
            await until(lambda: all(receiver.types(one) for one in targets), within=60, what="the start everywhere")
            cloud.end_session(session)
            cloud.finish_ingestion(session)
            await until(
                lambda: all("csv_ready" in receiver.types(one) for one in targets), within=60, what="the end everywhere"
            )
            assert await bridge.stop() == 0
    return bridge.log


async def test_what_follows_a_2xx_makes_no_failure_of_it(tmp_path: Path) -> None:
    """An event comes after the one before it was delivered, so that all three came says it of the first two."""

    def answer(target: str, _: int) -> tuple[bytes, bool]:
        name = target.removeprefix("/")
        return DELIVERED[name], name in CUT_OFF

    async with receiving(answer) as receiver:
        hooks = [{"url": f"{receiver.url}/{name}"} for name in DELIVERED]
        log = await a_session(tmp_path, receiver, hooks, [f"/{name}" for name in DELIVERED])
    came = {name: receiver.types(f"/{name}") for name in DELIVERED}
    assert came == dict.fromkeys(DELIVERED, LIFE)
    parked = command("dead-letters", "list", "--parked", "--json", "-c", str(tmp_path / "bridge.yaml"))
    assert json.loads(parked.stdout) == []
    assert "Traceback" not in log
    for requests in receiver.requests.values():
        for one in requests:
            Webhook(SECRET).verify(one.raw_body, one.headers)


async def test_over_tls_it_is_the_same(tmp_path: Path) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=a -out own.pem"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "own.key"]
    subprocess.run([*make.split(), *more], cwd=tmp_path, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "own.pem", tmp_path / "own.key")
    names = ["bytes-after-the-body", "a-header-of-1-MB", "chunks-cut-off", "half-a-header", "line-feeds-alone"]

    def answer(target: str, _: int) -> tuple[bytes, bool]:
        name = target.removeprefix("/")
        return DELIVERED[name], name in CUT_OFF

    async with receiving(answer, tls) as receiver:
        hooks = [{"url": f"{receiver.url}/{name}"} for name in names]
        await a_session(
            tmp_path, receiver, hooks, [f"/{name}" for name in names], SSL_CERT_FILE=str(tmp_path / "own.pem")
        )
    assert {name: receiver.types(f"/{name}") for name in names} == dict.fromkeys(names, LIFE)
    assert receiver.connections < 3 * len(names), "the connection of the good one is used again"


async def test_an_answer_without_end_holds_nothing_up(tmp_path: Path) -> None:
    """The time-out is an hour: only what a status line says can let the next event go."""

    def answer(target: str, _: int) -> tuple[bytes, bool]:
        head = OK + b"Content-Length: 9999999999\r\n\r\n" if target == "/body" else OK + b"X: x"
        return head, False

    async with receiving(answer) as receiver:
        hooks = [{"url": f"{receiver.url}/{name}", "timeout": "1h"} for name in ("body", "head")]
        await a_session(tmp_path, receiver, hooks, ["/body", "/head"])
    assert [receiver.types(target) for target in ("/body", "/head")] == [LIFE, LIFE]


async def test_what_comes_late_is_not_taken_for_the_next_answer(tmp_path: Path) -> None:
    """A body after a 204 in a packet of its own may come when the connection is used again."""

    def answer(_: str, count: int) -> tuple[bytes, bool]:
        leftover = b"ok" if count > 1 else b""
        return leftover + b"HTTP/1.1 204 No Content\r\n\r\n", False

    async with receiving(answer) as receiver:
        await a_session(tmp_path, receiver, [{"url": f"{receiver.url}/late"}], ["/late"])
    assert receiver.types("/late") == LIFE


TARGETS = [
    "/api/triggers/manual/run?sp=%2Ftrig%2Frun&sig=aB%2BcD%2FeF%3D",
    "/a%2fb/%E4/%41%zz?q=c+d%20e&x==&&",
    "/a;v=1,2;b?x;y",
    "/empty?",
    "/a/../b/./c//d/..?../x",
    "/\"<>\\^`{|}[]'()*!$~:@",
]


async def test_urls_and_headers_go_out_byte_for_byte(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer a+b/c==", "X-Odd": "t\tab \u00fc \u2603 \"';,", "x_under.score!": ""}
    async with receiving(lambda _, __: (b"HTTP/1.1 204 No\r\n\r\n", False)) as receiver:
        login = receiver.url.replace("//", "//u:p%E4@")
        hooks: list[dict[str, Any]] = [{"url": f"{login}{one}#fragment"} for one in TARGETS]
        hooks[1]["headers"] = headers
        await a_session(tmp_path, receiver, hooks, TARGETS)
    assert {*receiver.requests} == {*TARGETS}
    assert {one.line for one in receiver.requests["/empty?"]} == {b"POST /empty? HTTP/1.1"}
    assert {one.headers["authorization"] for one in receiver.requests["/empty?"]} == {"Basic dTpw5A=="}
    (*_, last) = receiver.requests[TARGETS[1]]
    assert {name: last.headers[name.lower()] for name in headers} == headers


async def test_without_a_secret_nothing_is_signed(tmp_path: Path) -> None:
    async with receiving(lambda _, __: (b"HTTP/1.1 204 No\r\n\r\n", False)) as receiver:
        await a_session(tmp_path, receiver, [{"url": f"{receiver.url}/x", "secret": None}], ["/x"])
    for one in receiver.requests["/x"]:
        assert one.headers["webhook-id"] == one.body["id"]
        assert "webhook-signature" not in one.headers
    checked = command("check", "-c", str(tmp_path / "bridge.yaml"))
    assert checked.returncode == 0
    assert "warning: webhooks[0].secret: is not set" in checked.stdout


@pytest.mark.parametrize(
    "headers", ["Retry-After: 20.5", "date", "Retry-After: 3\r\nRetry-After: 20.5\r\nretry-after: x"]
)
async def test_no_attempt_is_made_before_retry_after_by_the_receiver_s_own_clock(tmp_path: Path, headers: str) -> None:
    def answer(_: str, __: int) -> tuple[bytes, bool]:
        then = 1_769_817_600  # far from our own clock
        dates = f"Date: {formatdate(then, usegmt=True)}\r\nRetry-After: {formatdate(then + 20.5, usegmt=True)}"
        said = dates if headers == "date" else headers
        return f"HTTP/1.1 503 Later\r\n{said}\r\nContent-Length: 0\r\n\r\n".encode(), False

    cloud = SimulatedCloud()
    device = cloud.add_device("BaceGo-1")
    async with receiving(answer) as receiver, SimulatedServer(cloud) as server:
        config = with_webhooks(tmp_path, server.url, [{"url": f"{receiver.url}/x"}])
        async with running(config, level="debug") as bridge:
            await until(lambda: len(server.requests) > 4, within=60, what="the first poll")
            cloud.open_session(device.id_group)
            await until(lambda: "delivery.retry_scheduled" in bridge.log, within=60, what="a retry is planned")
            assert await bridge.stop() == 0
    (planned, *_) = [
        one for one in map(json.loads, bridge.log.splitlines()) if one["event"] == "delivery.retry_scheduled"
    ]
    assert 20 <= planned["again_in"] <= 23


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"headers": {name: "x"}}, f"headers.{name}") for name in ("Transfer-Encoding", "content-encoding", "Expect")),
    *(({"headers": {name: "x"}}, f"headers.{name}") for name in ("CONTENT-LENGTH", "Host", "TE", "Trailer", "a b")),
    *(
        ({"headers": {name: "x"}}, f"headers.{name}")
        for name in ("Connection", "Upgrade", "webhook-ID", "content-type")
    ),
    *(({"headers": {"A": f"a{char}b"}}, "headers.A") for char in ("\x01", "\x7f", "\n", "\r\nHost: x", "\0", "\x85")),
    *(
        ({"url": f"https://{rest}"}, "url")
        for rest in ("h/\u00fc", "h?\u2603", "ho<st/", "h/a b", "h/\x7f", "u%3A:p@h/")
    ),
    *(({"secret": secret}, "secret") for secret in ("", "${NOT_SET}")),
    ({"secret": []}, "secret"),
    ({"secret": [""]}, "secret[0]"),
]


def test_what_cannot_be_sent_is_refused_with_its_place(tmp_path: Path) -> None:
    hooks = [{"url": "https://h/", **hook} for hook, _ in REFUSED]
    config = with_webhooks(tmp_path, "http://127.0.0.1:9", hooks)
    for name in ("check", "run"):
        ended = command(name, "-c", str(config))
        assert ended.returncode == 78
        found = {line.split(": ")[0] for line in ended.stderr.splitlines()}
        assert found == {f"webhooks[{index}].{place}" for index, (_, place) in enumerate(REFUSED)}
        assert len(ended.stderr.splitlines()) == len(REFUSED)


def test_an_access_token_that_no_header_carries_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "bridge.yaml"
    for token in ("two words", "a\x01b", "t\u00fc", "a\r\nHost: x"):
        config.write_text(json.dumps({"cloud": {"access_token": token}}), encoding="utf-8")
        ended = command("run", "-c", str(config))
        assert (ended.returncode, ended.stderr.split(": ")[0]) == (78, "cloud.access_token")
        assert token not in ended.stderr
