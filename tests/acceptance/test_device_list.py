"""`bridge/devices`, over the real process and a real Mosquitto."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bace_bridge.simulator.server import SimulatedServer
from tests.acceptance.line import running, until
from tests.acceptance.test_retained import Home, configured, home, ids_in, keeps
from tests.integration.brokers import Listener, Mosquitto, listening

NewMosquitto = Callable[..., Mosquitto]
DEVICES = "bace/bridge/devices"

__all__ = ["home"]


def shown(listener: Listener) -> dict[str, dict[str, Any]]:
    """The newest list, by id."""
    payloads = listener.payloads(DEVICES)
    return {one["id"]: one for one in json.loads(payloads[-1])} if payloads else {}


async def test_the_devices_and_their_sessions(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    device, session = one.one.id_group, one.sessions[one.one.id_group]
    port = new_mosquitto().port
    with listening(port) as listener:
        async with running(configured(tmp_path, server, port)) as bridge:
            await until(lambda: len(shown(listener)) == 2, within=60, what="both devices")
            await until(lambda: shown(listener)[device]["active_session_id"] == session, within=60, what="its session")
            assert shown(listener)[device].keys() == {
                "id",
                "label",
                "active_session_id",
                "last_seen_at",
                "last_session_id",
            }
            assert shown(listener)[device]["label"] == "BaceGo-1"
            assert shown(listener)[device]["last_seen_at"].endswith("Z")

            one.cloud.end_session(session)
            await until(lambda: shown(listener)[device]["active_session_id"] is None, within=60, what="it has ended")
            assert shown(listener)[device]["last_session_id"] == session
            following = one.cloud.open_session(device)
            await until(lambda: shown(listener)[device]["active_session_id"] == following, within=60, what="the next")
            assert await bridge.stop() == 0
        assert not any(heard.retained for heard in listener.on(DEVICES)), "live"
    with listening(port) as late:
        await until(lambda: len(shown(late)) == 2, within=60, what="the list is retained")


async def test_only_the_devices_of_the_sink_are_in_it(
    new_mosquitto: NewMosquitto, tmp_path: Path, home: tuple[Home, SimulatedServer]
) -> None:
    one, server = home
    port = new_mosquitto().port
    both = {one.one.id_group, one.other.id_group}

    def lists(ids: set[str]) -> Callable[[dict[str, bytes]], bool]:
        return lambda found: DEVICES in found and ids_in(found[DEVICES]) == ids

    async with running(configured(tmp_path, server, port)) as bridge:
        await keeps(port, lists(both), "both devices")
        configured(tmp_path, server, port, groups=[one.one.id_group])
        bridge.process.send_signal(signal.SIGHUP)
        await keeps(port, lists({one.one.id_group}), "the one of the sink")
        configured(tmp_path, server, port, watched=[one.other.id_group])
        bridge.process.send_signal(signal.SIGHUP)
        await keeps(port, lists({one.other.id_group}), "the one of the cloud")
        assert await bridge.stop() == 0
