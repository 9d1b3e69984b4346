"""Restart drills: whatever was away, Home Assistant shows what is true within seconds of its return."""

import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from tests.homeassistant.line import Entities, Line, steady

GOES_AWAY = ("broker", "Home Assistant", "both", "bridge", "killed bridge")
WITHIN = 10.0
"""Seconds. Home Assistant itself asks for a lost broker every 10 s, so that comes on top where the broker was away."""


def unavailable(entities: Entities) -> set[str]:
    return {name for name, one in entities.items() if one.state == "unavailable"}


@pytest.mark.parametrize("away", GOES_AWAY)
async def test_everything_is_right_again(
    whole: Line, away: str, record_property: Callable[[str, object], None]
) -> None:
    config = whole.configure()
    async with whole.bridged(config) as bridge:
        session, ended = whole.starts(whole.device), whole.starts(whole.other)
        await whole.home.becomes(lambda found: whole.says(found, whole.other, running="on", heart="62.0"), "both run")
        whole.ends(ended)
        before = await whole.home.becomes(
            lambda found: (
                whole.says(found, whole.device, running="on", heart="61.0")
                and whole.says(found, whole.other, running="off", heart="unavailable")
            ),
            "one of two runs",
        )

        if "bridge" in away:
            await bridge.stop(signal.SIGKILL if away == "killed bridge" else signal.SIGTERM)
            await whole.home.becomes(
                lambda found: unavailable(found) == found.keys(), "nothing is available without the bridge"
            )
        if away in {"broker", "both"}:
            whole.mosquitto.stop()
        if away in {"Home Assistant", "both"}:
            await whole.home.stop()
        # What changes meanwhile: another value, and another session.
        value = whole.measures(whole.device, session, series=[6000])
        second = whole.starts(whole.other)
        if away in {"broker", "both"}:
            whole.mosquitto.start()
        if away in {"Home Assistant", "both"}:
            await whole.home.start()
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            if "bridge" in away:
                await stack.enter_async_context(whole.bridged(config))
            found = await right_again(whole, before, value)
        record_property("seconds", round(time.monotonic() - began, 1))
        whole.settled(found, broker_was_away=away in {"broker", "both"})
        assert whole.cloud.session(second).end is None


async def right_again(whole: Line, before: Entities, value: float) -> Entities:
    def right(found: Entities) -> bool:
        return (
            whole.says(found, whole.device, running="on", heart=str(value), weight="61.0", unknown="61.0")
            and whole.says(found, whole.other, running="on", heart=str(value + 1))
            and not unavailable(found)
        )

    found = await whole.home.becomes(right, "it is right again", within=WITHIN + 10)
    assert {name: one for name, (one, _) in steady(found).items()} == {
        name: one for name, (one, _) in steady(before).items()
    }
    return found


async def test_a_bridge_that_is_gone_for_good(whole: Line) -> None:
    async with whole.bridged() as bridge:
        whole.starts(whole.device)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, running="on", heart="61.0"), "it runs")
        await bridge.stop(signal.SIGKILL)
    found = await whole.home.becomes(lambda found: unavailable(found) == found.keys(), "nothing is available")
    whole.settled(found)
    await whole.home.stop()
    await whole.home.start()
    found = await whole.home.becomes(
        lambda found: bool(found) and unavailable(found) == found.keys(), "nor after a restart of Home Assistant"
    )
    whole.settled(found)
