"""From one discovery mode to the other and back: Home Assistant keeps what its user has made of the entities."""

from typing import Any

from tests.acceptance.line import until
from tests.homeassistant.line import SOON, Entities, Line
from tests.integration.brokers import listening


def made_of(entities: Entities) -> dict[str, tuple[Any, ...]]:
    return {name: (one.entity_id, one.name, one.device, one.disabled) for name, one in entities.items()}


async def test_a_user_keeps_ids_names_and_automations(whole: Line) -> None:
    modes = ["device", "component", "component", "device", "device"]
    session = whole.starts(whole.device)
    fired: list[str] = []
    kept: dict[str, tuple[Any, ...]] = {}
    counts: list[int] = []
    topics = ("homeassistant/#",)
    with listening(whole.mosquitto.port, *topics) as listener:
        for number, mode in enumerate(modes):
            async with whole.bridged(whole.configure(home_assistant={"mode": mode})):
                if number:
                    whole.measures(whole.device, session, series=[6000])
                value = str(whole.values)
                found = await whole.home.becomes(
                    lambda found, value=value: (
                        whole.says(found, whole.device, running="on")  # type: ignore[misc]
                        and any(one.state == value for one in found.values())
                    ),
                    f"{mode} discovery",
                )
                if not number:
                    await customise(whole)
                    await whole.home.on_event("bace_fired", lambda event: fired.append(event["data"]["session"]))
                    found = await whole.home.becomes(
                        lambda found: any(one.disabled for one in found.values()), "one is disabled"
                    )
                    kept = made_of(found)
                assert made_of(found) == kept
                whole.ends(session)
                await until(lambda: fired[-1:] == [session], within=SOON, what=f"the automation, {mode}")  # noqa: B023  # waited for here
                session = whole.starts(whole.device)
                await whole.home.becomes(lambda found: whole.says(found, whole.device, running="on"), "the next one")
            counts.append(sum(b"migrate_discovery" in one.payload for one in listener.heard))
            retained = {one.topic: one.payload for one in listener.heard if one.topic.endswith("/config")}
            left = {topic for topic, payload in retained.items() if payload}
            assert [topic for topic in left if ("/device/" in topic) != (mode == "device")] == []
    assert counts[0] == 0
    assert counts[1] == counts[2] == 2  # one topic each of the device and of the bridge, once
    assert counts[3] == counts[4] > 2
    assert len(fired) == len(modes)
    # Whoever clears a device's topic after its components have gone elsewhere gets this one, once.
    assert len(whole.home.complaints) == 2
    assert all("No device components to cleanup" in one for one in whole.home.complaints)


async def customise(whole: Line) -> None:
    """As a user does: another id and name for the heart rate, the weight switched off, an automation."""
    found = await whole.home.entities()
    heart, weight = whole.of(found, whole.device, 6000), whole.of(found, whole.device, 6011)
    assert heart is not None
    assert weight is not None
    update = "config/entity_registry/update"
    await whole.home.ask(update, entity_id=heart.entity_id, new_entity_id="sensor.grandmas_pulse", name="Pulse")
    await whole.home.ask(update, entity_id=weight.entity_id, disabled_by="user")
    device = await whole.device_id(whole.device)
    await whole.home.automate(
        "ended",
        triggers=[{"trigger": "device", "domain": "mqtt", "device_id": device, "type": "ended", "subtype": "Session"}],
        actions=[{"event": "bace_fired", "event_data": {"session": "{{ trigger.payload_json.session.id }}"}}],
    )
