"""Whatever is written into the keys of a configuration: what `check` accepts does not end `run`."""

import asyncio
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bace_bridge.app.bridge import Bridge
from bace_bridge.config.load import load
from bace_bridge.config.models import warnings
from bace_bridge.errors import ConfigError
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import SECRET, until

HERE = "127.0.0.1:9"
"""Nobody listens there."""

texts = st.text(max_size=40) | st.sampled_from(
    [
        "\ud800",
        "\x00",
        "a\nb",
        "ä😀",
        "\u2028",
        " ",
        "%00",
        "%zz",
        "${A:-b}",
        "x" * 300,
        "\uffff",
        "\x7f",
        "..",
        "a\u00adb",
    ]
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**300, 10**400, 10**9, -1, 0, 1e-300, 1e308, 65_536]), st.booleans()
)
good_durations = st.sampled_from(["1ms", "1s", "36500d", "1d2h"])
durations = numbers | good_durations | st.sampled_from(["0.001ms", "36501d", "9" * 400 + "d", "1" * 5000]) | texts
counts = st.integers(1, 999_999_999) | numbers | st.sampled_from(["9" * 5000, "1" * 9, "-5", "1e3", " 7 "]) | texts
hosts = st.sampled_from(
    [
        HERE, "127.0.0.1:65536", "127.0.0.1:0", "127.0.0.1:", "127.0.0.1:٣", "[::1", "[::1]:9", "[fe80::1%25lo]:9",
        "xn--a", "xn--a-.com", "a..b", ".a", "ß.invalid", "☃.invalid", "a%00b", "a|b", "h\\x", "*", "a\u00adb",
        "[v1.x]", "0x7f.1:9", "-a-",
        "u:p@127.0.0.1:9", "@127.0.0.1:9", "127.0.0.1:9?x", "127.0.0.1:9#y",
    ]
)  # fmt: skip


def urls(*schemes: str) -> st.SearchStrategy[str]:
    paths = st.sampled_from(["", "/", "//", "/..", "/%zz", "/ä", "/?a=%2F", "/\x85", '/"<>|'])
    whole = st.tuples(st.sampled_from(schemes), hosts, paths | texts.map(lambda text: f"/{text}"))
    return whole.map(lambda parts: f"{parts[0]}://{parts[1]}{parts[2]}") | texts


KEYS: dict[str, st.SearchStrategy[Any]] = {
    "cloud.url": urls("http", "https"),
    "cloud.access_token": texts,
    "cloud.groups": st.lists(texts, max_size=3),
    "cloud.requests_per_minute": counts,
    "cloud.timeout": durations,
    "watch.session_interval": durations,
    "watch.datapoint_interval": durations,
    "watch.recheck_interval": durations,
    "watch.backfill_interval": durations,
    "watch.start_from": durations | st.sampled_from(["1970-01-01", "9999-12-31T23:59:59Z", "all"]),
    "watch.resolution": st.sampled_from(["finest"]) | texts,
    "store.url": texts.filter(lambda text: ".." not in text),
    "store.retention": durations,
    "store.session_retention": durations,
    "store.max_size": counts | st.sampled_from(["16MiB", "256TiB", "9" * 5000 + "TiB"]),
    "http.listen": hosts | texts | texts.map(lambda text: f"{text}:0"),
    "datatypes": st.dictionaries(
        st.integers() | texts, st.fixed_dictionaries({"name": texts, "unit": texts}), max_size=2
    ),
    "mqtt[0].name": texts,
    "mqtt[0].url": urls("mqtt", "mqtts", "ws", "wss"),
    "mqtt[0].username": texts,
    "mqtt[0].password": texts,
    "mqtt[0].base_topic": texts | st.just("a/" * 195 + "b"),
    "mqtt[0].client_id": texts,
    "mqtt[0].qos": counts,
    "mqtt[0].keepalive": durations,
    "mqtt[0].groups": st.lists(texts, max_size=3),
    "mqtt[0].max_in_flight": counts,
    "webhooks[0].name": texts,
    "webhooks[0].url": urls("http", "https"),
    "webhooks[0].secret": texts | st.lists(texts, max_size=2),
    "webhooks[0].groups": st.lists(texts, max_size=3),
    "webhooks[0].timeout": durations,
    "webhooks[0].max_in_flight": counts,
    "webhooks[0].rate_limit": counts,
}
some_keys = st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=2, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: KEYS[key] for key in keys})
)


def written(folder: Path, cloud_url: str, changes: dict[str, Any]) -> Path:
    """A configuration that runs but for these changes, and a path to it. It is JSON, which is YAML."""
    config: dict[str, Any] = {
        "cloud": {"url": cloud_url, "access_token": "t"},
        "http": {"listen": "127.0.0.1:0"},
        "mqtt[0]": {"name": "m", "url": f"mqtt://{HERE}"},
        "webhooks[0]": {"name": "w", "url": f"http://{HERE}/", "secret": SECRET},
        **{section: {} for section in ("watch", "store", "datatypes")},
    }
    for place, value in {"store.url": "bridge.db", **changes}.items():
        section, _, key = place.partition(".")
        given_value = f"sqlite:///{folder}/{value}" if place == "store.url" else value
        config[section] = {**config[section], key: given_value} if key else given_value
    for sinks in ("mqtt", "webhooks"):
        config[sinks] = [config.pop(f"{sinks}[0]")]
    path = folder / "bridge.yaml"
    path.write_text(json.dumps(config))
    return path


async def run_for_a_while(path: Path) -> None:
    """What `run` does with it, until the first poll has ended in one way or the other."""
    config = load(path, {})
    warnings(config, now=0.0)
    stop = asyncio.Event()
    with capture_logs() as logs:
        running = asyncio.create_task(Bridge(config, version="test").run(stop, notify=lambda _: None, watchdog=None))
        polled = {"session.started", "cloud.unreachable", "cloud.auth_failed", "cloud.request_failed"}
        await until(
            lambda: running.done() or any(one["event"] in polled for one in logs), within=60, what="the first poll"
        )
        stop.set()
        async with asyncio.timeout(60):
            await running


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(some_keys)
def test_what_check_accepts_does_not_end_run(changes: dict[str, Any]) -> None:
    async def check_and_run() -> None:
        cloud = SimulatedCloud()
        cloud.open_session(cloud.add_device("BaceGo-1").id_group)
        with tempfile.TemporaryDirectory() as folder:
            async with SimulatedServer(cloud) as server:
                with suppress(ConfigError):
                    await run_for_a_while(written(Path(folder), server.url, changes))

    asyncio.run(check_and_run())
