"""The list of devices: when it is read again, and what fits into it."""

import json

import pytest

from bace_bridge.events.types import DeviceState, KnownDevice
from bace_bridge.sinks.mqtt.picture import AT_MOST_EVERY, LARGEST, DeviceList


class Now:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def state(device: str, *, active: str | None = None, last: str | None = None) -> DeviceState:
    return DeviceState(device, True, b"{}", (), active, last or active)


def seen(devices: DeviceList, *states: DeviceState, asked: set[str] | None = None) -> None:
    devices.note({one.device_id: one for one in states}, asked=asked)


def read(devices: DeviceList, *known: KnownDevice) -> list[str]:
    """Reads it, and returns the ids in it."""
    asked = devices.begin()
    devices.read([one for one in known if one.id in asked], asked=asked)
    assert devices.payload is not None
    return [one["id"] for one in json.loads(devices.payload)]


def test_it_is_read_at_once_when_a_session_starts_or_ends_else_once_a_minute() -> None:
    now = Now()
    devices = DeviceList(largest_packet=None, clock=now)
    seen(devices, state("g1", active="s1"), state("g2"))
    assert devices.due_in() == 0
    assert read(devices, KnownDevice("g1", active_session_id="s1"), KnownDevice("g2")) == ["g1", "g2"]
    assert devices.due_in() is None, "nothing has changed"

    now.seconds += 1
    seen(devices, state("g1", active="s1"), asked={"g1"})
    assert devices.due_in() == AT_MOST_EVERY - 1, "such as a datapoint, or another label"
    for changed in (
        state("g1", last="s1"),
        state("g1", active="s1"),
        state("g1", active="s2"),
        state("g1", last="s2"),
        state("g1", last="s3"),
    ):
        seen(devices, changed, asked={"g1"})
        assert devices.due_in() == 0
        assert devices.begin() == {"g1"}
        devices.read([KnownDevice("g1")], asked={"g1"})
        seen(devices, changed, asked={"g1"})
        assert devices.due_in() == AT_MOST_EVERY
    now.seconds += AT_MOST_EVERY
    assert devices.due_in() == 0


@pytest.mark.parametrize("asked", [{"g1"}, None])
def test_a_device_that_is_gone_leaves_it_at_once(asked: set[str] | None) -> None:
    devices = DeviceList(largest_packet=None, clock=Now())
    seen(devices, state("g1"), state("g2"))
    assert read(devices, KnownDevice("g1"), KnownDevice("g2")) == ["g1", "g2"]
    seen(devices, *([state("g2")] if asked is None else []), asked=asked)
    assert devices.due_in() == 0
    assert read(devices, KnownDevice("g2")) == ["g2"]


def test_what_could_not_be_read_is_read_again() -> None:
    devices = DeviceList(largest_packet=None, clock=Now())
    seen(devices, state("g1"))
    devices.failed(devices.begin())
    assert devices.due_in() == 0
    assert read(devices, KnownDevice("g1")) == ["g1"]


def test_without_a_device_it_is_empty() -> None:
    devices = DeviceList(largest_packet=None, clock=Now())
    seen(devices)
    assert devices.due_in() == 0
    assert read(devices) == []
    assert devices.payload == b"[]"


def test_it_says_what_the_contract_says_those_with_a_session_first_then_those_seen_last() -> None:
    devices = DeviceList(largest_packet=None, clock=Now())
    known = [
        KnownDevice("g1", "Bed 1", None, "s0", 10.5),
        KnownDevice("g2"),
        KnownDevice("g3", 'quo"te', "s3", "s3", 5.0),
    ]
    seen(devices, *(state(one.id) for one in known))
    assert read(devices, *known) == ["g3", "g1", "g2"]
    assert json.loads(devices.payload or b"") == [
        {
            "id": "g3",
            "label": 'quo"te',
            "active_session_id": "s3",
            "last_seen_at": "1970-01-01T00:00:05Z",
            "last_session_id": "s3",
        },
        {
            "id": "g1",
            "label": "Bed 1",
            "active_session_id": None,
            "last_seen_at": "1970-01-01T00:00:10.500Z",
            "last_session_id": "s0",
        },
        {"id": "g2", "label": None, "active_session_id": None, "last_seen_at": None, "last_session_id": None},
    ]


@pytest.mark.parametrize(
    ("largest", "whole"), [(1, False), (10_000, False), (300_000, True), (2**30, True), (None, True)]
)
def test_it_is_never_larger_than_the_broker_takes(largest: int | None, whole: bool) -> None:
    devices = DeviceList(largest_packet=largest, clock=Now())
    known = [KnownDevice(f"g{n:04}" + 31 * "x", 20 * "l", 36 * "a", 36 * "s", float(n)) for n in range(1000)]
    seen(devices, *(state(one.id) for one in known))
    found = read(devices, *known)
    assert len(devices.payload or b"") <= max(2, largest or LARGEST)
    assert found == [one.id for one in reversed(known)][: len(found)]
    assert (len(found) == 1000) == (devices.problem is None) == whole
    assert whole or f"leaves out {1000 - len(found)} of 1000" in str(devices.problem)
