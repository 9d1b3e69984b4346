"""Every discovery payload passes a strict schema, and every template gives what Home Assistant takes."""

import json
import re
from collections.abc import Iterator
from importlib.metadata import metadata
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bace_bridge.config.datatypes import KNOWN_DATATYPES, UNITS, DatatypeConfig, over_the_known, state_classes
from bace_bridge.events.types import EVENT_TYPES, DeviceState, KnownDevice, Series
from bace_bridge.sinks.mqtt.config import HomeAssistantConfig
from bace_bridge.sinks.mqtt.homeassistant.discovery import (
    MIGRATE,
    URL,
    Discovery,
    components_of,
    removal,
    revival,
)
from bace_bridge.sinks.mqtt.homeassistant.entities import escaped
from bace_bridge.sinks.mqtt.picture import DeviceList
from bace_bridge.sinks.mqtt.topics import Topics
from tests.homeassistant_schema import components, rendered, takes, topics_of

DEVICE = "7ceb5723-aa11-4c1e-9d3c-000000000001"
TOPICS = Topics("bace")
STATE = DeviceState(
    DEVICE,
    available=True,
    session=None,
    label="BaceGo-001-002-00020",
    series=(Series("src1", 6000, "Heart rate", "bpm"), Series("src1", 6002), Series("src1", 9999)),
)

# What ids and labels of others are made of: Jinja, JSON, MQTT, and characters that are none.
ODD = st.text(st.sampled_from("aZ9-_ .'\"\\{}%#+/$<>&\n\t\x00\x9f\ud800\udfff\ufffe\u2028éµ♥😀"), max_size=12)
NAMES = st.one_of(
    ODD, st.text(max_size=12), st.sampled_from(["{{ 1/0 }}", "{% raw %}", "bridge", "..", "'}}", "x" * 300])
)


@st.composite
def meanings(draw: st.DrawFn) -> DatatypeConfig:
    device_class = draw(st.none() | st.sampled_from(sorted(UNITS)))
    plain = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
    return DatatypeConfig(
        name=draw(st.none() | plain.filter(str.strip)),
        unit=draw(st.sampled_from(UNITS[device_class]) if device_class else st.none() | plain),
        icon=draw(st.sampled_from([None, "mdi:heart-pulse"])),
        device_class=device_class,
        state_class=draw(st.sampled_from(state_classes(device_class))),
        precision=draw(st.none() | st.integers(0, 15)),
        category=draw(st.sampled_from([None, "diagnostic"])),
        enabled=draw(st.booleans()),
    )


NUMBERS = st.integers(-3, 3) | st.sampled_from([6000, 6001, 6002, 6011, 10**9])
SERIES = st.builds(Series, NAMES, NUMBERS, NAMES | st.none(), NAMES | st.none())
STATES = st.builds(
    DeviceState,
    NAMES,
    st.booleans(),
    st.none(),
    label=NAMES | st.none(),
    series=st.lists(SERIES, max_size=6, unique_by=lambda one: (one.source_device, one.datatype)).map(tuple),
)
CONFIGS = st.builds(
    HomeAssistantConfig,
    prefix=st.sampled_from(["homeassistant", "home/as.sistant"]),
    mode=st.sampled_from(["device", "component"]),
    after_session=st.sampled_from(["unavailable", "keep"]),
)


def discovery(
    config: HomeAssistantConfig | None = None,
    *,
    topics: Topics = TOPICS,
    requests: bool = True,
    largest: int | None = None,
) -> Discovery:
    return Discovery(
        config or HomeAssistantConfig(),
        topics,
        installation="1a2b3c4d",
        version="0.2.0",
        requests=requests,
        largest=largest,
    )


def every_component(found: dict[str, bytes], prefix: str = "homeassistant") -> dict[str, dict[str, Any]]:
    return {key: dict(one) for at, payload in found.items() for key, one in components(prefix, at, payload).items()}


def of(state: DeviceState = STATE, **config: Any) -> dict[str, dict[str, Any]]:
    return every_component(discovery(HomeAssistantConfig(**config)).device(state, KNOWN_DATATYPES))


# --- what the reference has as taken without a warning


def test_a_device_is_one_message_with_these_components() -> None:
    found = discovery().device(STATE, KNOWN_DATATYPES)
    assert list(found) == [f"homeassistant/device/bace_{DEVICE}/config"]
    (payload,) = found.values()
    document = json.loads(payload)
    assert document["dev"] == {
        "ids": [f"bace_{DEVICE}"], "name": "BaceGo-001-002-00020", "mf": "BACE", "mdl": "BACE Go",
        "sn": "001-002-00020", "via_device": "bace_bridge_1a2b3c4d",
    }  # fmt: skip
    assert document["avty"] == [{"t": "bace/bridge/state"}, {"t": f"bace/{DEVICE}/availability"}]
    assert document["avty_mode"] == "all"
    assert components_of(*found.popitem()) == {
        "running": "binary_sensor", "session": "event", "started": "sensor", "ended": "sensor", "csv": "sensor",
        "duration": "sensor", "datapoints": "sensor", "last_seen": "sensor", "trigger_started": "device_automation",
        "trigger_ended": "device_automation", "trigger_csv_ready": "device_automation",
        "trigger_reopened": "device_automation", "src1_6000": "sensor", "src1_6002": "sensor", "src1_9999": "sensor",
    }  # fmt: skip
    assert [one["name"] for one in of().values() if one["p"] == "sensor"][-3:] == [
        "Heart rate", "Oxygen saturation", "Datatype 9999",
    ]  # fmt: skip


def test_the_bridge_is_a_device_with_a_backlog_for_each_sink() -> None:
    found = discovery().bridge(["home", "alerts"])
    assert list(found) == ["homeassistant/device/bace_bridge_1a2b3c4d/config"]
    parts = every_component(found)
    assert parts.keys() == {
        "connectivity", "problem", "last_poll", "dead_letters", "version", "backlog_home", "backlog_alerts", "poll",
    }  # fmt: skip
    assert {key for key, one in parts.items() if one.get("ent_cat") != "diagnostic"} == {"poll"}
    assert parts["poll"]["cmd_t"] == "bace/bridge/request/poll"
    assert "poll" not in every_component(discovery(requests=False).bridge([]))


def test_nothing_where_it_is_not_enabled() -> None:
    off = discovery(HomeAssistantConfig(enabled=False))
    assert off.device(STATE, KNOWN_DATATYPES) == off.bridge(["home"]) == {}


def test_the_origin_s_address_is_the_project_s() -> None:
    assert any(line.endswith(f", {URL}") for line in metadata("bace-bridge").get_all("Project-URL") or ())


def test_a_device_automation_reads_well_in_the_editor() -> None:
    found = [one for one in of().values() if one["p"] == "device_automation"]
    assert [f'"{one["stype"]}" {one["type"]}' for one in found] == [
        '"Session" started', '"Session" ended', '"Session" CSV ready', '"Session" reopened',
    ]  # fmt: skip


# --- every payload, both modes


@given(STATES, CONFIGS, st.dictionaries(NUMBERS, meanings(), max_size=4), st.sampled_from(["bace", "home/{{ x }}"]))
def test_every_device_passes_the_schema(
    state: DeviceState, config: HomeAssistantConfig, given_: dict[int, DatatypeConfig], base: str
) -> None:
    datatypes = {**KNOWN_DATATYPES, **given_}
    asked = discovery(config, topics=Topics(base))
    found = asked.device(state, datatypes)
    parts = every_component(found, config.prefix)
    assert len(parts) == 12 + len(state.series)
    assert asked.problem is None
    assert all(asked.is_discovery(at) for at in found)
    # Names are told apart as Home Assistant makes ids of them.
    names = [re.sub(r"\W+", "_", one["name"].casefold()) for one in parts.values() if one["p"] == "sensor"]
    by_the_ids = len({(escaped(one.source_device), one.datatype) for one in state.series})
    assert by_the_ids == len(state.series)
    if all(re.fullmatch(r"\w*", one.source_device) for one in state.series):
        assert len(set(names)) == len(names)
    for one in parts.values():
        for what, _, template in topics_of(one):
            takes(one, what, rendered(template, b""))


@given(CONFIGS, st.lists(st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True), max_size=4, unique=True), st.booleans())
def test_every_bridge_passes_the_schema(config: HomeAssistantConfig, sinks: list[str], requests: bool) -> None:
    found = discovery(config, requests=requests).bridge(sinks)
    assert len(every_component(found, config.prefix)) == 5 + len(sinks) + requests
    assert all(discovery(config).is_discovery(at) for at in found)


def test_a_component_s_message_has_all_that_the_device_s_has() -> None:
    whole, alone = of(), of(mode="component")
    for key, one in whole.items():
        # A trigger has no availability, and its own message no room for one.
        shared = {"avty", "avty_mode"} if one["p"] == "device_automation" else set()
        assert alone[key] == {name: value for name, value in one.items() if name not in shared}
    topics = discovery(HomeAssistantConfig(mode="component")).device(STATE, KNOWN_DATATYPES)
    assert f"homeassistant/sensor/bace_{DEVICE}/src1_6000/config" in topics
    assert f"homeassistant/device_automation/bace_{DEVICE}/trigger_ended/config" in topics


@given(st.lists(NAMES, min_size=3, max_size=3), st.lists(NAMES, min_size=3, max_size=3))
@example(["a", "b_c", ""], ["a_b", "c", ""])
@example(["a", "_5f", "b"], ["a_", "f", "b"])
@example(["", "", "x"], ["", "x", ""])
@example(["a", "", "60"], ["a`", "", ""])
def test_different_ids_are_different_joined(one: list[str], other: list[str]) -> None:
    joined = ["_".join(map(escaped, names)) for names in (one, other)]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", text) for text in joined)
    assert (joined[0] == joined[1]) == (one == other)


def test_plain_ids_stay_as_they_are() -> None:
    assert escaped("7ceb5723-AA11") == "7ceb5723-AA11"
    assert of(msgspec.structs.replace(STATE, device_id="a b"))["running"]["uniq_id"] == "bace_a__20b_running"


@pytest.mark.parametrize(
    ("topic", "ours"),
    [
        ("homeassistant/device/bace_x/config", True),
        ("homeassistant/sensor/bace_x/src1_6000/config", True),
        ("homeassistant/device/zigbee_x/config", False),
        ("homeassistant/sensor/bace_x/config", False),
        ("homeassistant/light/bace_x/y/config", False),
        ("homeassistant/device/bace_x/config/more", False),
        ("homeassistantx/device/bace_x/config", False),
        ("other/homeassistant/device/bace_x/config", False),
        ("homeassistant/device/bace_é/config", False),
        ("homeassistant/device/bace_x/config\n", False),
        ("homeassistant/status", False),
        ("bace/bridge/state", False),
    ],
)
def test_which_topics_are_ours(topic: str, ours: bool) -> None:
    assert discovery().is_discovery(topic) == ours


# --- names


def names_of(*series: Series, **datatypes: DatatypeConfig) -> list[str]:
    known = {**KNOWN_DATATYPES, **{int(number[1:]): one for number, one in datatypes.items()}}
    parts = every_component(discovery().device(msgspec.structs.replace(STATE, series=series), known))
    return [parts[f"{escaped(one.source_device)}_{one.datatype}"]["name"] for one in series]


def test_two_sources_of_a_datatype_both_say_which_they_are() -> None:
    assert names_of(Series("left", 6000), Series("right", 6000), Series("left", 6002)) == [
        "Heart rate left", "Heart rate right", "Oxygen saturation",
    ]  # fmt: skip


def test_names_that_are_the_same_are_told_apart() -> None:
    room = DatatypeConfig(name="Temperature")
    assert names_of(Series("s", 1), Series("s", 2), _1=room, _2=room) == ["Temperature s 1", "Temperature s 2"]
    assert names_of(Series("s", 1), Series("t", 2), _1=room, _2=room) == ["Temperature s", "Temperature t"]
    # One of the device's own entities has it already, or almost.
    assert names_of(Series("s", 1), _1=DatatypeConfig(name="last  SEEN")) == ["last SEEN s"]


def test_the_configuration_names_a_series_and_not_what_was_stored() -> None:
    assert names_of(Series("s", 6000, "Old name", "x"), Series("s", 5, "Old name", "x")) == ["Heart rate", "Datatype 5"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (None, f"BACE Go {DEVICE}"),
        ("", f"BACE Go {DEVICE}"),
        (" \n", f"BACE Go {DEVICE}"),
        ("Bed\n12\x00", "Bed 12"),
        ('"Bed" \\ {{ 1/0 }}', '"Bed" \\ {{ 1/0 }}'),
        ("Half \ud800", "Half \ufffd\ufffd\ufffd"),
        ("Heart", "BACE Go Heart"),
        ("session", "BACE Go session"),
        ("x" * 300, "x" * 200),
    ],
)
def test_the_name_of_a_device(label: str | None, name: str) -> None:
    (payload,) = discovery().device(msgspec.structs.replace(STATE, label=label), KNOWN_DATATYPES).values()
    assert json.loads(payload)["dev"]["name"] == name
    assert "sn" not in json.loads(payload)["dev"]


def test_what_a_datatype_says_of_its_series() -> None:
    entry = DatatypeConfig(
        name="Skin",
        unit="μg/m³",
        device_class="pm25",
        icon="mdi:hand",
        precision=2,
        category="diagnostic",
        enabled=False,
    )
    state = msgspec.structs.replace(STATE, series=(Series("s", 1), Series("s", 2), Series("s", 6011)))
    datatypes = {**KNOWN_DATATYPES, 1: entry, 6011: over_the_known(6011, DatatypeConfig(unit="stone"))}
    parts = every_component(discovery().device(state, datatypes))
    kept = ("name", "unit_of_meas", "dev_cla", "ic", "sug_dsp_prc", "ent_cat", "en", "stat_cla")
    assert {key: parts["s_1"].get(key) for key in kept} == {
        # The older of the two letters for micro: the new one makes an old Home Assistant refuse the entity.
        "name": "Skin", "unit_of_meas": "\u00b5g/m³", "dev_cla": "pm25", "ic": "mdi:hand", "sug_dsp_prc": 2,
        "ent_cat": "diagnostic", "en": False, "stat_cla": "measurement",
    }  # fmt: skip
    assert {key for key in kept if key in parts["s_2"]} == {"name", "stat_cla"}
    assert parts["s_6011"]["unit_of_meas"] == "stone"
    assert "dev_cla" not in parts["s_6011"]


# --- templates, rendered with what is on the topics


def state_of(one: dict[str, Any], payload: bytes, what: str = "state") -> str:
    (template,) = [template for about, _, template in topics_of(one) if about == what]
    found = rendered(template, payload)
    takes(one, what, found)
    return found


ENDED = {
    "id": "s1", "group_id": DEVICE, "label": None, "person_id": None, "state": "ended",
    "started_at": "2026-11-30T10:00:00Z", "ended_at": "2026-11-30T10:05:00.5Z", "duration_seconds": 300.5,
    "datapoint_count": 12, "ingestion_finished": False, "archived": False, "updated_at": "2026-11-30T10:06:00Z",
    "device": {"id": DEVICE, "label": "Bed 12"},
}  # fmt: skip
ACTIVE = {**ENDED, "state": "active", "ended_at": None}
READY = {
    **ENDED,
    "state": "ingested",
    "csv_url": "https://bace.example.org/csv",
    "csv_link": "https://me.example.org/1",
}
POINT = {
    "series_id": "x", "source_device": "src1", "datatype": 6000, "name": "Heart rate", "unit": "bpm",
    "timestamp": "2026-11-30T10:04:00Z", "min": 60.0, "max": 80, "avg": 70.5, "count": 3, "revision": 0,
}  # fmt: skip
HEALTH: dict[str, Any] = {
    "healthy": False, "problems": {"cloud": "away"}, "degraded": {"home": "slow"}, "backlog": {"home": 3},
    "dead_letters": {"home": 2, "alerts": 1}, "last_poll_at": "2026-11-30T10:04:37.988419Z",
}  # fmt: skip
SUMMARY = {
    "datapoints": 12, "first_at": "2026-11-30T10:00:00Z", "last_at": "2026-11-30T10:04:00Z",
    "longest_gap_seconds": 15.0,
    "series": [{"source_device": "src1", "datatype": 6000, "name": "Heart rate", "min": 60, "max": 80, "avg": 70.5}],
}  # fmt: skip
EVENT = {"event_type": "session.ended", "id": "evt_1", "time": "2026-11-30T10:05:00Z", "session": ENDED, "device": {}}


def encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("key", "payloads"),
    [
        ("running", {"ON": ACTIVE, "OFF": ENDED}),
        ("started", {"2026-11-30T10:00:00Z": ACTIVE}),
        ("ended", {"None": ACTIVE, "2026-11-30T10:05:00.5Z": ENDED}),
        ("csv", {"None": ENDED, "2026-11-30T10:06:00Z": READY}),
        ("duration", {"300.5": ENDED}),
        ("datapoints", {"12": ENDED}),
        ("src1_6000", {"70.5": POINT, "None": {**POINT, "avg": None}, "0": {**POINT, "avg": 0}}),
    ],
)
def test_the_states_of_a_device(key: str, payloads: dict[str, Any]) -> None:
    one = of()[key]
    for state, payload in payloads.items():
        assert state_of(one, encoded(payload)) == state
    assert state_of(one, b"") == ("OFF" if key == "running" else "None")


@pytest.mark.parametrize("odd", [None, True, False, "70", [70], {}])
def test_what_is_no_number_is_unknown(odd: object) -> None:
    parts = of()
    assert state_of(parts["src1_6000"], encoded({**POINT, "avg": odd})) == "None"
    assert state_of(parts["duration"], encoded({**ENDED, "duration_seconds": odd})) == "None"


def test_the_states_of_the_bridge() -> None:
    parts = every_component(discovery().bridge(["home", "alerts"]))
    del parts["poll"]
    info = encoded({"version": "0.2.0", "installation": "1a2b3c4d"})
    states = {key: state_of(one, info if key == "version" else encoded(HEALTH)) for key, one in parts.items()}
    assert states == {
        "connectivity": "OFF", "problem": "ON", "last_poll": "2026-11-30T10:04:00Z", "dead_letters": "3",
        "version": "0.2.0", "backlog_home": "3", "backlog_alerts": "None",
    }  # fmt: skip
    well = {**HEALTH, "healthy": True, "problems": {}, "dead_letters": {}}
    assert [state_of(parts[key], encoded(well)) for key in ("connectivity", "problem", "dead_letters")] == [
        "ON",
        "OFF",
        "0",
    ]
    assert json.loads(state_of(parts["problem"], encoded(HEALTH), "attributes")) == {
        "problems": {"cloud": "away"}, "degraded": {"home": "slow"},
    }  # fmt: skip
    endless = {**HEALTH, "problems": {"cloud": "x" * 20_000}}
    assert json.loads(state_of(parts["problem"], encoded(endless), "attributes"))["problems"] == ["cloud"]
    assert {state_of(one, b"") for one in parts.values()} == {"None"}


def test_what_is_asked_of_the_bridge_comes_as_a_request() -> None:
    poll = every_component(discovery().bridge([]))["poll"]
    assert poll["cmd_t"] == "bace/bridge/request/poll"
    assert json.loads(poll["pl_prs"]) == {}


@pytest.mark.parametrize("after_session", ["unavailable", "keep"])
def test_what_a_value_is_after_its_session(after_session: str) -> None:
    one = of(after_session=after_session)["src1_6000"]
    always = [{"t": "bace/bridge/state"}, {"t": f"bace/{DEVICE}/availability"}]
    if after_session == "keep":
        assert one["avty"] == always
        return
    assert one["avty"][:2] == always
    assert one["avty"][2]["t"] == f"bace/{DEVICE}/session"
    # Each entry counts: `latest`, the default, would take the last message of any of them.
    assert one["avty_mode"] == "all"
    shown = [state_of(one, payload, "availability") for payload in (encoded(ACTIVE), encoded(ENDED), b"", b"null")]
    assert shown == ["online", "offline", "offline", "offline"]


@given(NAMES, st.lists(NAMES, max_size=3))
@example("'}}", ["x"])
@example("\\'", [])
@example("{{ 1/0 }}", ["{% raw %}"])
@example("\ud800\n", [])
def test_when_a_device_was_seen_last_whatever_its_id_is(device: str, others: list[str]) -> None:
    known = [
        KnownDevice(one, last_seen_at=float(number)) for number, one in enumerate(dict.fromkeys([*others, device]))
    ]
    devices = DeviceList(largest_packet=None, clock=float)
    devices.read(known, asked=[])
    assert devices.payload is not None
    one = of(msgspec.structs.replace(STATE, device_id=device))["last_seen"]
    seen = state_of(one, devices.payload)
    # Ids that have no bytes in UTF-8 are the same in the list, and cannot be told apart there.
    alike = [of_it.last_seen_at for of_it in known if clean(of_it.id) == clean(device)]
    assert seen in [f"1970-01-01T00:00:0{at:.0f}Z" for at in alike if at is not None]
    assert state_of(one, b"[]") == state_of(one, b"") == state_of(one, b'[{"id": "%b"}]' % b"x") == "None"


def clean(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


ODD_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats() | st.sampled_from([{}, []]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "series", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def payloads_for(topic: str) -> dict[str, Any] | list[dict[str, Any]]:
    if topic.endswith("/session"):
        return {**READY, "summary": SUMMARY}
    if topic.endswith("/event"):
        return EVENT
    if topic.endswith("/bridge/devices"):
        return [{"id": DEVICE, "label": "Bed 12", "last_seen_at": "2026-11-30T10:04:00Z"}]
    if topic.endswith("/bridge/health"):
        return HEALTH
    return {"version": "0.2.0"} if topic.endswith("/bridge/info") else POINT


def everything() -> Iterator[dict[str, Any]]:
    yield from of().values()
    yield from (one for one in every_component(discovery().bridge(["home"])).values() if one["p"] != "button")


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"true", b"3", b'"x"', b"[]", b"[1]", b"{}", b"online", b"NaN", b"1e999"]
)
def test_no_template_stumbles_over_another_payload(payload: bytes) -> None:
    for one in everything():
        for what, _, template in topics_of(one):
            found = rendered(template, payload)
            if one["p"] != "event":  # `{}` is none, and nobody but the bridge publishes there
                takes(one, what, found)


@given(st.data())
def test_no_template_stumbles_over_a_key_that_is_missing_or_odd(data: st.DataObject) -> None:
    pieces = [(one, *piece) for one in everything() for piece in topics_of(one)]
    one, what, topic, template = data.draw(st.sampled_from(pieces))
    payload = payloads_for(topic)
    row = dict(payload[0] if isinstance(payload, list) else payload)
    key = data.draw(st.sampled_from(sorted({*row} - {"event_type", "id"})))
    if data.draw(st.booleans()):
        del row[key]
    else:
        row[key] = data.draw(ODD_VALUES)
    takes(one, what, rendered(template, msgspec.json.encode([row] if isinstance(payload, list) else row)))


# --- the summary, events and replays


@pytest.mark.parametrize(
    ("series", "name"), [(0, "x"), (1, "x"), (39, "x"), (100, "x"), (100, "é" * 100), (100, "<" * 9000)]
)
def test_the_attributes_of_the_csv_fit_into_a_state(series: int, name: str) -> None:
    rows = [{**SUMMARY["series"][0], "name": f"{name} {number}"} for number in range(series)]  # type: ignore[index]
    payload = {**READY, "summary": {**SUMMARY, "series": rows, "series_omitted": 7}}
    found = json.loads(state_of(of()["csv"], encoded(payload), "attributes"))
    assert (found["csv_link"], found["csv_url"]) == (READY["csv_link"], READY["csv_url"])
    shown = found["summary"]["series"]
    assert shown == rows[: len(shown)]
    assert found["summary"]["series_omitted"] == 7 + series - len(shown)
    assert len(shown) <= 40
    assert len(shown) == min(series, 40) or len(encoded(rows[: 2 * len(shown) + 5])) > 7_000


def test_without_a_summary_there_are_the_links() -> None:
    attributes = json.loads(state_of(of()["csv"], encoded(ENDED), "attributes"))
    assert attributes == {"csv_link": None, "csv_url": None}


def test_an_event_is_shown_whole_where_that_fits() -> None:
    one = of()["session"]
    assert json.loads(state_of(one, encoded(EVENT))) == EVENT
    assert set(one["evt_typ"]) == {name for name in EVENT_TYPES if name.startswith("session.")} - {"session.datapoints"}
    series = [{"name": f"HR {number}"} for number in range(100)]
    large = {**EVENT, "summary": {**SUMMARY, "series": series}}
    less = {**EVENT, "summary": {**SUMMARY, "series": series[:40], "series_omitted": 60}}
    assert json.loads(state_of(one, encoded(large))) == less
    larger = {**large, "session": {**ENDED, "label": "é" * 20_000}}
    assert json.loads(state_of(one, encoded(larger))) == {key: EVENT[key] for key in ("event_type", "id", "time")}


@pytest.mark.parametrize(
    "key", ["session", "trigger_started", "trigger_ended", "trigger_csv_ready", "trigger_reopened"]
)
def test_a_replay_and_what_is_no_event_start_nothing(key: str) -> None:
    one = of()[key]
    for payload in (encoded({**EVENT, "replay": True}), b"", b"nonsense", b"[]"):
        assert state_of(one, payload) == ""


def test_a_trigger_fires_for_its_event_alone() -> None:
    triggers = [one for one in of().values() if one["p"] == "device_automation"]
    for name in EVENT_TYPES:
        fired = [one["pl"] for one in triggers if state_of(one, encoded({**EVENT, "event_type": name})) == one["pl"]]
        assert fired == ([name] if name in {one["pl"] for one in triggers} else [])
    assert len({one["pl"] for one in triggers}) == 4


# --- what a packet holds


def many(series: int, name: str = "src") -> DeviceState:
    return msgspec.structs.replace(STATE, series=tuple(Series(f"{name}{n}", 6000 + n % 3) for n in range(series)))


@pytest.mark.parametrize("largest", [None, 200_000, 20_000, 5_000, 100, 1])
def test_a_device_with_1000_series_fits_into_a_packet(largest: int | None) -> None:
    asked = discovery(largest=largest)
    found = asked.device(many(1000), KNOWN_DATATYPES)
    parts = every_component(found)
    for topic, payload in found.items():
        assert len(topic) + len(payload) + 100 < (largest or 2**20)
    if largest is None:
        assert len(parts) == 1012
        assert asked.problem is None
        return
    assert asked.problem is not None
    assert f"{1012 - len(parts)} entities of BaceGo-001-002-00020" in asked.problem
    if largest >= 20_000:
        # What the device itself is comes first, then what people have named.
        assert {"running", "session", "trigger_ended", "src0_6000"} <= parts.keys()
        assert (largest - sum(map(len, found.values()))) < 4_000, "there was room for more"
    # It is right again as soon as it fits.
    asked.device(many(0), KNOWN_DATATYPES)
    assert (asked.problem is None) == (largest >= 20_000)


def test_a_packet_holds_one_component_of_a_large_device() -> None:
    asked = discovery(HomeAssistantConfig(mode="component"), largest=5_000)
    assert len(asked.device(many(1000), KNOWN_DATATYPES)) == 1012
    assert asked.problem is None
    found = asked.device(many(3, "é" * 400), KNOWN_DATATYPES)
    assert len(found) == 12
    assert asked.problem is not None


def test_several_devices_that_are_too_large_are_one_problem() -> None:
    asked = discovery(largest=20_000)
    for number in range(3):
        label = f"Bed {number}"
        asked.device(msgspec.structs.replace(many(100 + number), device_id=label, label=label), KNOWN_DATATYPES)
    assert asked.problem is not None
    assert re.fullmatch(
        r"discovery for Home Assistant leaves out \d+ entities of Bed 2, and some of 2 more: more than \d+ bytes",
        asked.problem,
    )


# --- moving and removing


def test_what_is_left_out_is_removed_first() -> None:
    before = discovery().bridge(["home", "alerts"])
    ((at, after),) = discovery(requests=False).bridge(["home"]).items()
    gone = {key: one for key, one in components_of(at, before[at]).items() if key not in components_of(at, after)}
    assert gone == {"backlog_alerts": "sensor", "poll": "button"}
    parts = components("homeassistant", at, removal(after, gone))
    assert {key: one["p"] for key, one in parts.items() if "uniq_id" not in one} == gone
    # Without them it is the payload that stays.
    assert {key: one for key, one in parts.items() if key not in gone} == components("homeassistant", at, after)
    revived = components("homeassistant", at, with_templates(revival(after, gone)))
    assert {key: one["p"] for key, one in revived.items()} == components_of(at, before[at])


def test_a_component_of_any_platform_comes_back_whole_for_a_moment() -> None:
    for found in (discovery().device(STATE, KNOWN_DATATYPES), discovery().bridge(["home"])):
        ((at, payload),) = found.items()
        nothing = json.dumps({**json.loads(payload), "cmps": {}}).encode()
        revived = components("homeassistant", at, with_templates(revival(nothing, components_of(at, payload))))
        assert {key: one["p"] for key, one in revived.items()} == components_of(at, payload)


def with_templates(payload: bytes) -> bytes:
    """What comes back for a moment needs none: nobody publishes on its topic."""
    document = json.loads(payload)
    for one in document.get("cmps", {"": document}).values():
        if "stat_t" in one and "val_tpl" not in one:
            assert not one["stat_t"].startswith("bace/")
            one["val_tpl"] = "x"
    return encoded(document)


def test_the_word_that_moves_entities_between_modes() -> None:
    assert json.loads(MIGRATE) == {"migrate_discovery": True}
