"""What a real Home Assistant makes of the bridge's messages: entities, states, availability and triggers."""

import json
from datetime import datetime
from typing import Any

from tests.acceptance.line import until
from tests.homeassistant.line import OF_A_DEVICE, SOON, Line
from tests.integration.brokers import listening

DETAILS = ("unit_of_measurement", "device_class", "state_class", "icon")


async def test_a_device_that_is_switched_on_appears_and_goes_through_a_session(whole: Line) -> None:
    async with whole.bridged():
        await whole.home.becomes(lambda found: any(name.endswith("_connectivity") for name in found), "the bridge")
        session = whole.starts(whole.device)
        found = await whole.home.becomes(
            lambda found: whole.says(found, whole.device, running="on", heart="61.0", weight="61.0", unknown="61.0"),
            "its values",
        )
        details: dict[str | int, tuple[Any, ...]] = {
            key: (entity.entity_id.replace("bacego_001_002_00020_", ""), *map(entity.attributes.get, DETAILS))
            for key in (*OF_A_DEVICE, 6000, 6011, 9999)
            if (entity := whole.of(found, whole.device, key))
        }
        assert details == {
            "running": ("binary_sensor.running", None, "running", None, None),
            "session": ("event.session", None, None, None, "mdi:clipboard-pulse"),
            "started": ("sensor.session_started", None, "timestamp", None, None),
            "ended": ("sensor.session_ended", None, "timestamp", None, None),
            "csv": ("sensor.csv_ready", None, "timestamp", None, "mdi:file-delimited"),
            "duration": ("sensor.session_duration", "s", "duration", None, None),
            "datapoints": ("sensor.datapoints", None, None, "measurement", "mdi:counter"),
            "last_seen": ("sensor.last_seen", None, "timestamp", None, None),
            6000: ("sensor.heart_rate", "bpm", None, "measurement", "mdi:heart-pulse"),
            6011: ("sensor.body_weight", "kg", "weight", "measurement", "mdi:scale-bathroom"),
            9999: ("sensor.datatype_9999", None, None, "measurement", None),
        }
        event = whole.of(found, whole.device, "session")
        assert event is not None
        assert event.attributes["event_type"] == "session.started"  # the first one of a device that was not known
        devices = await whole.home.devices()
        device = devices[f"bace_{whole.device.id_group}"]
        (bridge,) = (one for name, one in devices.items() if name.startswith("bace_bridge_"))
        assert device["via_device_id"] == bridge["id"]
        assert (device["name"], device["manufacturer"]) == ("BaceGo-001-002-00020", "BACE")
        assert whole.of(found, whole.other, "running") is None or whole.says(found, whole.other, running="off")

        whole.ends(session)
        found = await whole.home.becomes(
            lambda found: (
                whole.says(found, whole.device, running="off", heart="unavailable")
                and (csv := whole.of(found, whole.device, "csv")) is not None
                and csv.state not in {"unknown", "unavailable"}
            ),
            "its end and its CSV",
        )
        csv, ended = whole.of(found, whole.device, "csv"), whole.of(found, whole.device, "ended")
        assert csv is not None
        assert csv.attributes["csv_url"].endswith(f"/data-session/{session}/download-csv")
        assert ended is not None
        assert ended.state not in {None, "unknown", "unavailable"}

        whole.starts(whole.device)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, running="on", heart="62.0"), "the next")
        whole.settled(await whole.home.entities())


async def test_a_series_appears_when_it_is_first_seen(whole: Line) -> None:
    async with whole.bridged():
        session = whole.cloud.open_session(whole.device.id_group)
        whole.measures(whole.device, session, series=[6000])
        found = await whole.home.becomes(lambda found: whole.says(found, whole.device, heart="61.0"), "its heart rate")
        assert whole.of(found, whole.device, 9999) is None
        whole.measures(whole.device, session, series=[9999])
        await whole.home.becomes(
            lambda found: whole.says(found, whole.device, heart="61.0", unknown="62.0"), "the new series"
        )
        whole.settled(await whole.home.entities())


async def test_values_that_stay_after_their_session(whole: Line) -> None:
    async with whole.bridged(whole.configure(home_assistant={"after_session": "keep"})):
        session = whole.starts(whole.device)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, heart="61.0"), "its heart rate")
        whole.ends(session)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, running="off", heart="61.0"), "its end")
        whole.settled(await whole.home.entities())


async def test_the_device_of_the_bridge(whole: Line) -> None:
    config = whole.configure(watch={"session_interval": "1h"})
    async with whole.bridged(config):

        def state(found: Any, key: str) -> str | None:
            return next(
                (one.state for name, one in found.items() if name.endswith(f"_{key}") and "bridge" in name), None
            )

        found = await whole.home.becomes(
            lambda found: (
                state(found, "connectivity") == "on"
                and state(found, "problem") == "off"
                and state(found, "version") not in {None, "unknown"}
            ),
            "it is connected",
        )
        assert state(found, "dead_letters") == state(found, "backlog_home") == "0"
        assert state(found, "last_poll") not in {None, "unknown"}
        asked = len(whole.server.requests)
        button = next(one.entity_id for one in found.values() if one.entity_id.startswith("button."))
        await whole.home.call("button.press", entity_id=button)
        await until(lambda: len(whole.server.requests) > asked, within=SOON, what="a poll")
        whole.settled(found)


async def test_the_last_poll_is_a_new_state_once_a_minute(whole: Line) -> None:
    states: list[datetime] = []

    def changed(event: dict[str, Any]) -> None:
        state = event["data"]["new_state"]
        if state["entity_id"] == "sensor.bace_bridge_last_poll" and state["state"] not in {"unknown", "unavailable"}:
            states.append(datetime.fromisoformat(state["state"]))

    await whole.home.on_event("state_changed", changed)
    with listening(whole.mosquitto.port, "bace/bridge/health") as listener:

        def polls() -> list[datetime]:
            """Those of the messages since the first one that Home Assistant shows."""
            found = [json.loads(one.payload)["last_poll_at"] for one in listener.heard]
            times = sorted({datetime.fromisoformat(one) for one in found if one})
            return [one for one in times if states and one >= states[0]]

        async with whole.bridged():
            await until(lambda: len(polls()) >= 6, within=SOON, what="polls")
        minutes = {one.replace(second=0, microsecond=0) for one in polls()}
    assert set(states) <= minutes
    assert len(states) == len(set(states)) < 6
    assert whole.home.complaints == []


async def test_triggers_fire_once_and_not_for_replays(whole: Line) -> None:
    async with whole.bridged():
        first = whole.starts(whole.device)
        await whole.home.becomes(lambda found: whole.says(found, whole.device, running="on"), "it runs")
        device = await whole.device_id(whole.device)
        offered = await whole.home.ask("device_automation/trigger/list", device_id=device)
        of_session = {one["type"]: one for one in offered if one.get("subtype") == "Session"}
        assert of_session.keys() == {"started", "ended", "CSV ready", "reopened"}
        fired: list[tuple[str, str]] = []
        await whole.home.on_event(
            "bace_fired", lambda event: fired.append((event["data"]["kind"], event["data"]["session"]))
        )
        for kind, trigger in of_session.items():
            await whole.home.automate(
                kind.replace(" ", "_").lower(),
                triggers=[{"trigger" if key == "platform" else key: value for key, value in trigger.items()}],
                actions=[
                    {
                        "event": "bace_fired",
                        "event_data": {"kind": kind, "session": "{{ trigger.payload_json.session.id }}"},
                    }
                ],
            )
        whole.cloud.end_session(first)
        await until(lambda: ("ended", first) in fired, within=SOON, what="its end")
        whole.cloud.change(first, end=None, is_ingestion_finished=False)
        await until(lambda: ("reopened", first) in fired, within=SOON, what="it goes on")
        whole.ends(first)
        await until(lambda: ("CSV ready", first) in fired, within=SOON, what="its CSV")
        second = whole.starts(whole.device)
        await until(lambda: ("started", second) in fired, within=SOON, what="the next one")
        expected = [("ended", first), ("reopened", first), ("ended", first), ("CSV ready", first), ("started", second)]
        assert fired == expected

        with listening(whole.mosquitto.port, "bace/bridge/response/#", "bace/+/event") as listener:
            listener.publish("bace/bridge/request/replay", b'{"since": "2020-01-01T00:00:00Z"}')
            await until(
                lambda: sum(b"replay" in one.payload for one in listener.heard) >= 5, within=SOON, what="replays"
            )
            whole.ends(second)
            await until(lambda: ("CSV ready", second) in fired, within=SOON, what="its CSV")
        assert fired == [*expected, ("ended", second), ("CSV ready", second)]
        whole.settled(await whole.home.entities())
