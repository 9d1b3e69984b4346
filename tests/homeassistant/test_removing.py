"""A device without a data session leaves nothing behind in Home Assistant, whoever was away when that was removed."""

import pytest

from tests.acceptance.line import until
from tests.homeassistant.line import SOON, Entities, Line
from tests.integration.brokers import listening

OFTEN = {"recheck_interval": "1s"}
IMPATIENT = "tests.homeassistant.impatient"


def without(whole: Line, before: Entities) -> set[str]:
    return {name for name in before if whole.device.id_group not in name}


async def both_run(whole: Line) -> tuple[str, Entities]:
    """The data session of `device`, and all entities."""
    session = whole.starts(whole.device)
    whole.starts(whole.other)
    return session, await whole.home.becomes(
        lambda found: (
            whole.says(found, whole.device, running="on", heart="61.0")
            and whole.says(found, whole.other, running="on", heart="62.0")
        ),
        "both run",
    )


async def is_gone(whole: Line, expected: set[str]) -> None:
    """Neither entities nor states nor the device are left; the other device is as it was."""
    found = await whole.home.becomes(
        lambda found: found.keys() == expected and whole.says(found, whole.other, running="on", heart="62.0"),
        "it is gone",
    )
    assert [one for one in await whole.home.devices() if whole.device.id_group in one] == []
    states = [one["entity_id"] for one in await whole.home.ask("get_states")]
    assert [one for one in states if "bacego_001_002_00020" in one] == []
    whole.settled(found)


@pytest.mark.parametrize("ended", [False, True])
async def test_a_removed_session(whole: Line, ended: bool) -> None:
    async with whole.bridged(whole.configure(watch=OFTEN), IMPATIENT):
        session, before = await both_run(whole)
        if ended:
            whole.ends(session)
            await whole.home.becomes(lambda found: whole.says(found, whole.device, running="off"), "its end")
        whole.cloud.remove_session(session)
        await is_gone(whole, without(whole, before))

        whole.starts(whole.device)  # it comes back as it was
        found = await whole.home.becomes(lambda found: whole.says(found, whole.device, heart="63.0"), "the next one")
        assert {name: one.entity_id for name, one in found.items()} == {
            name: one.entity_id for name, one in before.items()
        }


async def test_a_session_that_was_removed_while_the_bridge_was_away(whole: Line) -> None:
    async with whole.bridged(whole.configure(watch=OFTEN), IMPATIENT):
        session, before = await both_run(whole)
    whole.cloud.remove_session(session)
    await whole.home.stop()
    await whole.home.start()
    await whole.home.becomes(lambda found: found.keys() == before.keys(), "it is still there")
    async with whole.bridged(whole.configure(watch=OFTEN), IMPATIENT):
        await is_gone(whole, without(whole, before))


@pytest.mark.parametrize("bridge_stays", [True, False])
async def test_a_session_that_was_removed_while_home_assistant_was_away(whole: Line, bridge_stays: bool) -> None:
    """If the bridge does not hear Home Assistant's start, the remains go at the next start that it hears."""
    config = whole.configure(watch=OFTEN)
    async with whole.bridged(config, IMPATIENT):
        session, before = await both_run(whole)
        await whole.home.stop()
        topic = f"homeassistant/device/bace_{whole.device.id_group}/config"
        with listening(whole.mosquitto.port, topic) as listener:
            whole.cloud.remove_session(session)
            await until(
                lambda: [one.payload for one in listener.heard][-1:] == [b""], within=SOON, what="it is cleared"
            )
        if bridge_stays:
            await whole.home.start()
            await is_gone(whole, without(whole, before))
    if not bridge_stays:
        await whole.home.start()
        async with whole.bridged(config, IMPATIENT):
            await whole.home.becomes(
                lambda found: whole.says(found, whole.other, running="on", heart="62.0"), "the bridge is back"
            )
            await whole.home.stop()
            await whole.home.start()
            await is_gone(whole, without(whole, before))
