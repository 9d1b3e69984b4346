"""CSV links over a real bridge: who gets a CSV, who does not, and what a CSV that breaks off looks like."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from bace_bridge.cloud.api import BaceCloud
from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp
from bace_bridge.cloud.tokens import FixedToken
from bace_bridge.config.load import load
from bace_bridge.csv.checks import CsvCheck
from bace_bridge.csv.serving import MOST_AT_ONCE, MOST_OF_ONE, checked
from bace_bridge.errors import CloudUnavailable, UnexpectedReply
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.simulator.facts import Session
from bace_bridge.status.listener import Listener, Peer
from tests.acceptance.line import until
from tests.integration.brokers import Broker, listening
from tests.integration.csv_line import CsvLine, csv_line, target_of
from tests.integration.peers import speaking
from tests.integration.whole_bridge import SOON

LARGE = {"samples": 8000, "sources": 5}
"""Some 10 MB: more than the system holds of what a client does not take."""


async def fetched(link: str) -> bytes:
    async with aiohttp.ClientSession() as http, http.get(link) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_a_link_opens_without_a_token_and_is_the_clouds_csv(tmp_path: Path) -> None:
    async with csv_line(tmp_path, samples=3000) as line:
        told = line.csv(line.session)
        assert told["url"] == f"{line.server.url}/api/v2/data-session/{line.session}/download-csv"
        answer = await line.ask(target_of(told["link"]))
        assert (answer.status, answer.is_whole) == (200, True)
        assert {name: answer.fields[name] for name in ("content-type", "cache-control", "content-disposition")} == {
            "content-type": "text/csv; charset=UTF-8", "cache-control": "no-store",
            "content-disposition": f'attachment; filename="data-session-{line.session}.csv"',
        }  # fmt: skip
        assert await fetched(told["link"]) == await line.of_the_cloud(line.session)
        old = await line.ask(target_of(told["link"]), version="1.0")
        assert old.body == await line.of_the_cloud(line.session), "without chunks, up to the end of the connection"
        await line.bridge.has_said("csv.downloaded", times=3)


async def test_hostile_links_are_refused_before_the_cloud_is_asked(tmp_path: Path) -> None:
    async with csv_line(tmp_path, csv={"link_expires": "1h"}) as line:
        link, other = await line.link(line.session), await line.link(line.finished())
        target, path, query = target_of(link), *target_of(link).split("?")
        expires = query.split("&")[1]
        signature = query.split("&")[2]
        refused: dict[str, tuple[int, ...]] = {
            target.replace("revision=0", "revision=1"): (403,),
            target.replace("revision=0", "revision=00"): (403,),
            target.replace("revision=0", "revision=-0"): (403,),
            target.replace("revision=0", "revision=%D9%A0"): (403,),
            target.replace("revision=0", "revision=\u0663"): (403,),
            target.replace(expires, "expires=9999999999"): (403,),
            target.replace(expires, "expires=" + "9" * 400): (403,),
            target.replace(signature, "signature="): (403,),
            target.replace(signature, "signature=" + "A" * 43): (403,),
            target.replace(signature, target_of(other).split("&")[2]): (403,),
            target_of(other).split("?")[0] + "?" + query: (403,),
            target[:-1]: (403,),
            target + "A": (403,),
            target + "&": (403,),
            target + "&download=1": (403,),
            target + "&" + signature: (403,),
            f"{path}?{query}&{query}": (403,),
            f"{path}?revision=5&{query}": (403,),
            f"{path}?{'&'.join(reversed(query.split('&')))}": (403,),
            path: (403,),
            path + "?": (403,),
            "/csv/00000000-0000-4000-8000-000000000000?" + query: (403,),
            "/csv/": (404,),
            "/csv": (404,),
            "/csv/../csv/" + target[5:]: (404,),
            "//csv/" + target[5:]: (404,),
            "/csv//" + target[5:]: (404,),
            "/csv/%2e%2e/group?" + query: (404,),
            "/csv/..%2f..%2fgroup?" + query: (404,),
            path + "/?" + query: (404,),
            path + "%00?" + query: (403, 404),
            "/x/.." + target: (404,),
            "/%63sv/" + target[5:]: (404,),
            path.upper() + "?" + query: (404, 403),
            target + "&x=" + "A" * 9000: (431,),
        }
        for one, statuses in refused.items():
            answer = await line.ask(one)
            assert answer.status in statuses, (one, answer.status, answer.body)
            assert msgspec.json.decode(answer.body)["error"]
            assert signature[10:] not in answer.body.decode()
        for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            answer = await line.ask(target, method=method)
            assert (answer.status, answer.fields["allow"]) == (405, "GET")
            assert bool(answer.body) is (method != "HEAD")
        for host, status in {
            "evil.example.org": 421, "evil.example.org:8099": 421, "127.0.0.2": 421, "[::1]": 421, "a@127.0.0.1:x": 421,
            "[": 421, "localhost": 200, "LOCALHOST:1": 200, "127.0.0.1": 200,
        }.items():  # fmt: skip
            assert (await line.ask(target, host=host)).status == status, host
        assert (await line.ask(target, "Host: 127.0.0.1")).status == 421, "two of them"
        assert (await line.ask(f"http://evil.example.org{target}")).status == 421
        assert (await line.ask(f"http://127.0.0.1:{line.port}{target}", host="evil.example.org")).status == 200
        assert (await line.ask("/healthz", host="evil.example.org")).status == 200
        assert line.downloads() == 4, "the good ones alone"


async def test_a_range_is_answered_with_everything(tmp_path: Path) -> None:
    async with csv_line(tmp_path) as line:
        target = target_of(await line.link(line.session))
        for asked in ("bytes=0-9", "bytes=100-", "bytes=-5", "bytes=0-1,5-6", "bytes=99999999-"):
            answer = await line.ask(target, f"Range: {asked}")
            assert (answer.status, answer.is_whole, answer.fields["accept-ranges"]) == (200, True, "none")


async def replayed(line: CsvLine, *, csvs: int) -> None:
    """So many `session.csv_ready` come again, each with a fresh link."""
    expected = len(line.of(line.session)) + csvs
    command = [sys.executable, "-m", "bace_bridge", "replay", "--sink", "hook", "--session", line.session]
    await asyncio.to_thread(subprocess.run, [*command, "-c", str(line.path)], check=True, capture_output=True)
    await until(lambda: len(line.of(line.session)) == expected, within=SOON, what="the replay")


async def test_a_link_ends_with_its_time_and_with_a_newer_revision(tmp_path: Path) -> None:
    async with csv_line(tmp_path, csv={"link_expires": "2m"}) as line:
        # Within the five minutes that the receiver takes signatures of other clocks.
        first = target_of(await line.link(line.session))
        line.bridge.times.forward(60)
        series = next(iter(line.cloud.samples.of(line.session)))
        line.cloud.add_points(line.session, series, [(line.cloud.clock() - 840.5, 7.0)])
        second = target_of(await line.link(line.session, 1))
        assert (await line.ask(first)).status == 410
        assert "newer revision" in (await line.ask(first)).body.decode()
        assert (await line.ask(second)).status == 200
        line.bridge.times.forward(70)
        assert "expired" in (await line.ask(first)).body.decode()
        line.bridge.times.forward(60)
        assert (await line.ask(second)).status == 410
        assert line.downloads() == 1

        # A replay is the same event with a fresh link.
        before = line.of(line.session)
        await replayed(line, csvs=2)
        assert {one.id for one in line.of(line.session)} == {one.id for one in before}
        assert (await line.ask(target_of(line.csv(line.session, 1)["link"]))).status == 200


async def test_a_session_that_is_forgotten_or_removed_is_unknown(tmp_path: Path) -> None:
    async with csv_line(tmp_path) as line:
        link = target_of(await line.link(line.session))
        line.cloud.remove_session(line.session)
        answer = await line.ask(link)
        assert answer.status == 404, "the cloud says so first"
        assert line.server.url not in answer.body.decode()


BROKEN = ("csv-truncated", "csv-cut", "csv-short")


@pytest.mark.parametrize("quirk", BROKEN)
@pytest.mark.parametrize("samples", [5, 8000], ids=["small", "large"])
async def test_what_breaks_off_ends_abnormally(tmp_path: Path, quirk: str, samples: int) -> None:
    async with csv_line(tmp_path, samples=samples) as line:
        link = await line.link(line.session)
        line.set_quirks(quirk)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
            await fetched(link)
        for version in ("--http1.1", "--http1.0"):
            command = ["curl", "-s", version, "-o", str(tmp_path / "got"), link]
            done = await asyncio.to_thread(subprocess.run, command, check=False)
            assert done.returncode in {18, 52, 56}, "partial file, empty reply, or connection reset"
        await line.bridge.has_said("csv.broken_off", times=3)
        line.set_quirks()
        assert await fetched(link) == await line.of_the_cloud(line.session)


async def test_what_the_cloud_refuses_has_a_status_and_no_reason(tmp_path: Path) -> None:
    async with csv_line(tmp_path) as line:
        target = target_of(await line.link(line.session))
        line.set_quirks("forbidden /api/v2/data-session/*/download-csv")
        logins = sum(one.path == "/oauth2/token" for one in line.server.requests)
        for _ in range(5):
            answer = await line.ask(target)
            assert (answer.status, msgspec.json.decode(answer.body)) == (
                502,
                {"error": "the cloud does not give this CSV"},
            )
        assert sum(one.path == "/oauth2/token" for one in line.server.requests) == logins + 1, "a renewal, not five"
        line.set_quirks()
        line.server.faults.answer("/api/v2/data-session/", status=503, times=50, headers={"Retry-After": "77"})
        answer = await line.ask(target)
        assert (answer.status, answer.fields["retry-after"]) == (503, "77")
        line.server.faults.waiting.clear()
        line.server.faults.answer("/api/v2/data-session/", status=200, body="<html>Sign in</html>", times=50)
        assert (await line.ask(target)).status == 502
        line.server.faults.waiting.clear()
        await line.server.stop()
        assert (await line.ask(target)).status == 503


def read_all(client: socket.socket) -> None:
    while client.recv(2**16):
        pass


async def test_many_at_once_are_bounded_and_polls_go_on(tmp_path: Path) -> None:
    async with csv_line(tmp_path, **LARGE) as line:
        link, other = await line.link(line.session), await line.link(line.finished(**LARGE))
        stalled = [line.stalled(one) for one in (link, other) for _ in range(MOST_OF_ONE)]
        assert len(stalled) == MOST_AT_ONCE
        for one in stalled:
            assert await asyncio.to_thread(one.recv, 12) == b"HTTP/1.1 200"
        polled = len(line.server.requests)
        for _ in range(20 - MOST_AT_ONCE):
            answer = await line.ask(target_of(link))
            assert (answer.status, answer.fields["retry-after"]) == (503, "10")
        assert (await line.ask(target_of(link)[:-1])).status == 403, "who has no link is told so all the same"
        assert (await line.ask("/healthz")).status == 200
        await until(lambda: len(line.server.requests) >= polled + 10, within=SOON, what="polls")
        # Those that vanish leave their places.
        for one in stalled[:2]:
            one.close()
        await line.bridge.has_said("csv.not_finished", times=2)
        assert await fetched(link) == await line.of_the_cloud(line.session)
        # The others hold up no end, and see no good one.
        await line.bridge.ends()
        for one in stalled[2:]:
            with one, pytest.raises(ConnectionResetError):
                await asyncio.to_thread(read_all, one)


async def test_one_data_session_leaves_room_for_the_others(tmp_path: Path) -> None:
    async with csv_line(tmp_path, **LARGE) as line:
        link, other = await line.link(line.session), await line.link(line.finished())
        stalled = [line.stalled(link) for _ in range(MOST_OF_ONE)]
        for one in stalled:
            assert await asyncio.to_thread(one.recv, 12) == b"HTTP/1.1 200"
        line.bridge.times.forward(1)
        await replayed(line, csvs=1)
        fresh = line.csv(line.session)["link"]
        assert fresh != link
        for target in (target_of(link), target_of(fresh)):
            answer = await line.ask(target)
            assert (answer.status, answer.fields["retry-after"]) == (503, "10"), "another link is to the same file"
        assert await fetched(other) == await line.of_the_cloud(other.partition("?")[0].rpartition("/")[2])
        stalled.pop().close()
        await line.bridge.has_said("csv.not_finished")
        assert await fetched(link) == await line.of_the_cloud(line.session)
        for one in stalled:
            one.close()


async def test_a_reload_ends_and_begins_links(tmp_path: Path) -> None:
    async with csv_line(tmp_path) as line:
        target = target_of(await line.link(line.session))
        for base, status in (("", 404), ("https://example.org/bace", 200), ("https://example.org/bace", 200)):
            settings: dict[str, Any] = msgspec.json.decode(line.path.read_bytes())
            settings["csv"]["link_base"] = base
            line.path.write_bytes(msgspec.json.encode(settings))
            await line.bridge.reload(load(line.path, {}))
            assert (await line.ask(target)).status == status
            if base:
                assert (await line.ask(target, host="example.org")).status == 200
                assert (await line.ask("/bace" + target, host="EXAMPLE.org.:443")).status == 200


async def command(line: CsvLine, *arguments: str) -> str:
    words = [sys.executable, "-m", "bace_bridge", "csv", *arguments, "-c", str(line.path)]
    return (await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, text=True)).stdout


async def test_the_key_is_rotated_beside_the_running_bridge(tmp_path: Path) -> None:
    async with csv_line(tmp_path, csv={"link_expires": "1h"}) as line:
        first = target_of(await line.link(line.session))
        assert "1h at most" in await command(line, "rotate-key")
        second = target_of(await line.link(line.finished()))
        assert (await line.ask(first)).status == (await line.ask(second)).status == 200
        await command(line, "rotate-key", "--revoke")

        async def both() -> list[int]:
            return [(await line.ask(one)).status for one in (first, second)]

        async with asyncio.timeout(SOON):
            while await both() != [403, 403]:
                await asyncio.sleep(0.05)
        third = target_of(await line.link(line.finished()))
        assert (await line.ask(third)).status == 200


async def test_a_retained_link_is_renewed(broker: Broker, tmp_path: Path) -> None:
    async with csv_line(tmp_path, mqtt_port=broker.port, csv={"link_expires": "2h"}) as line:
        device: Session = line.cloud.session(line.session)
        topic = f"bace/{device.id_group}/session"

        def links() -> list[str]:
            told = [msgspec.json.decode(one.payload) for one in listener.heard if one.topic == topic and one.payload]
            return list(dict.fromkeys(one["csv_link"] for one in told if "csv_link" in one))

        with listening(broker.port, topic) as listener:
            await until(lambda: len(links()) >= 1, within=SOON, what="a link")
            for times in range(2, 4):
                line.bridge.times.forward(3601)
                await line.bridge.has_ticked()
                await until(lambda times=times: len(links()) >= times, within=SOON, what="another link")  # type: ignore[misc]
            assert (await line.ask(target_of(links()[-1]))).status == 200
            assert (await line.ask(target_of(links()[0]))).status == 410
            assert line.csv(line.session)["url"] == msgspec.json.decode(listener.heard[-1].payload)["csv_url"]


@asynccontextmanager
async def old_server(body: bytes, *, hold: bool = False) -> AsyncIterator[BaceCloud]:
    """A cloud whose answer ends with its connection; `hold` leaves it open behind the body."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Accept: */*\r\n" in head, "text/csv is a 406"
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/csv\r\n\r\n" + body)
        await writer.drain()
        if hold:
            await reader.read()
        writer.close()

    async with speaking(answer) as port:
        url = f"http://127.0.0.1:{port}"
        budget = RequestBudget(100_000, clock=time.monotonic)
        http = CloudHttp(url, budget, lambda _: FixedToken("t"), timeout=SOON, version="1", clock=time.time)
        async with http:
            yield BaceCloud(http)


async def read_checked(cloud: BaceCloud, datapoints: int | None = None) -> bytes:
    async with cloud.csv("s-1") as download:
        assert not download.framed
        return b"".join([piece async for piece in checked(download, CsvCheck(), datapoints=datapoints)])


OLD = b"time,datatype,value\n" + b"".join(
    b"%d,6000,%d.5\n" % (second, second) for second in range(1_000_000, 1_000_050)
)


async def test_an_answer_without_a_length_ends_with_a_whole_line() -> None:
    for cut in range(len(OLD) - 16, len(OLD) + 1):
        async with old_server(OLD[:cut]) as cloud:
            if OLD[:cut].endswith(b"\n"):
                assert await read_checked(cloud) == OLD[:cut]
            else:
                with pytest.raises(UnexpectedReply, match="breaks off"):
                    await read_checked(cloud)
    last_line = OLD.rindex(b"\n", 0, -1) + 1
    async with old_server(OLD[:last_line]) as cloud:
        with pytest.raises(UnexpectedReply, match="49 rows, and the data session 50 datapoints"):
            await read_checked(cloud, 50)


async def test_a_download_that_the_bridge_itself_closes_is_not_whole() -> None:
    async with old_server(OLD, hold=True) as cloud, cloud.csv("s-1") as download:
        pieces = download.pieces()
        assert await anext(pieces) == OLD
        ending = asyncio.ensure_future(anext(pieces))
        await cloud._http.__aexit__()
        with pytest.raises(CloudUnavailable):
            await ending
        with pytest.raises(CloudUnavailable):
            async with cloud.csv("s-1"):
                pass


async def test_downloads_come_after_polls_and_within_the_budget() -> None:
    async with old_server(OLD) as cloud:
        asked: list[Urgency] = []
        turn = cloud._http._budget.turn

        async def noted(urgency: Urgency) -> None:
            asked.append(urgency)
            await turn(urgency)

        cloud._http._budget.turn = noted  # type: ignore[method-assign]
        await read_checked(cloud)
    assert asked == [Urgency.BACKLOG]


async def test_a_peer_that_takes_nothing_is_left() -> None:
    ended: list[type[BaseException]] = []
    sent = 0

    async def for_ever(peer: Peer) -> None:
        nonlocal sent
        try:
            while True:
                await peer.send(b"x" * 2**16)
                sent += 2**16
        except BaseException as error:
            ended.append(type(error))
            raise

    listener = Listener(lambda _: for_ever, clock=time.monotonic, taken_within=0.2)
    await listener.open("127.0.0.1", 0)
    try:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.addresses[0])
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: ended != [], within=SOON, what="the end")
            assert ended == [TimeoutError]
            assert sent <= 2**20, "of what is held untaken a slow client has to take a part in time"
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(read_all, client)  # the listener may have yet to reset it
        assert listener._long == {}
    finally:
        await listener.close()


async def test_a_session_without_datapoints_may_have_an_empty_csv(tmp_path: Path) -> None:
    async with csv_line(tmp_path) as line:
        empty = line.finished(0)
        links = [await line.link(empty), await line.link(line.session)]
        line.server.faults.answer("/api/v2/data-session/", status=200, times=2)
        assert await fetched(links[0]) == b""
        assert (await line.ask(target_of(links[1]))).status == 502


async def test_who_has_gone_while_the_cloud_makes_the_file_holds_no_place(tmp_path: Path) -> None:
    async with csv_line(tmp_path) as line:
        target, faults = target_of(await line.link(line.session)), line.server.faults
        faults.delay(f"/api/v2/data-session/{line.session}", 3 * SOON, times=MOST_OF_ONE)
        waiting = [line.stalled(line.csv(line.session)["link"]) for _ in range(MOST_OF_ONE)]
        await until(lambda: faults.waiting == [], within=SOON, what="the cloud is asked")
        assert (await line.ask(target)).status == 503
        for one in waiting:
            one.close()
        async with asyncio.timeout(SOON):
            while (await line.ask(target)).status != 200:
                await asyncio.sleep(0.05)
        assert line.bridge.said("csv.not_finished") == MOST_OF_ONE
