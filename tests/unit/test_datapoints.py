import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bace_bridge.polling.rules.datapoints import (
    Datapoint,
    Datatype,
    Emitted,
    EmittedPoint,
    compare,
    datapoint_events,
    samples_per_hour,
)
from bace_bridge.polling.rules.sessions import DataSession, KnownSession
from tests.models import examples

NOON = 1_764_590_400.0
KNOWN = KnownSession(session=DataSession("s1", "g1", NOON), device_label="BaceGo-1")
POINT = Datapoint("x", "device", 6000, NOON, 1.0, 3.0, 2.0, 4)


@pytest.mark.parametrize(
    ("served", "revision"),
    [
        (POINT, None),
        (replace(POINT, min=0.0), 3),
        (replace(POINT, max=4.0), 3),
        (replace(POINT, avg=2.5), 3),
        (replace(POINT, count=5), 3),
        (replace(POINT, avg=None), 3),
        (replace(POINT, timestamp=NOON + 60), 0),
        (replace(POINT, series_id="y"), 0),
        (replace(POINT, datatype=6001), None),
    ],
)
def test_a_point_is_emitted_when_it_is_new_or_its_values_are(served: Datapoint, revision: int | None) -> None:
    emitted: Emitted = {"x": {NOON: EmittedPoint(1.0, 3.0, 2.0, 4, 2)}}
    after, changed = compare(emitted, [served])
    assert changed == ([] if revision is None else [replace(served, revision=revision)])
    assert emitted == {"x": {NOON: EmittedPoint(1.0, 3.0, 2.0, 4, 2)}}, (
        "what was emitted before is not changed in place"
    )
    assert compare(after, [served]) == (after, [])


def test_points_are_emitted_oldest_first_and_a_point_served_twice_counts_both_values() -> None:
    late, early = replace(POINT, timestamp=NOON + 60), replace(POINT, count=9)
    _, changed = compare({}, [late, POINT, early])
    assert changed == [POINT, replace(early, revision=1), late]


def test_what_was_emitted_survives_the_store() -> None:
    emitted, _ = compare({}, [POINT, replace(POINT, timestamp=NOON + 0.1, min=None, max=None, avg=None)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(emitted), type=Emitted) == emitted


def test_samples_are_counted_by_the_hour() -> None:
    stamps = [-1.0, 0.0, 3599.9, 3600.0]
    assert samples_per_hour(replace(POINT, timestamp=one) for one in stamps) == {-3600: 4, 0: 8, 3600: 4}


def test_a_point_is_shown_as_the_contract_says() -> None:
    datatypes = {6000: Datatype("Heart rate", "bpm")}
    (event,) = datapoint_events(KNOWN, [replace(POINT, revision=2)], datatypes, now=NOON + 9)
    shown = msgspec.json.decode(event.data)
    assert shown["datapoints"] == [
        {
            "series_id": "x",
            "source_device": "device",
            "datatype": 6000,
            "name": "Heart rate",
            "unit": "bpm",
            "timestamp": "2025-12-01T12:00:00Z",
            "min": 1.0,
            "max": 3.0,
            "avg": 2.0,
            "count": 4,
            "revision": 2,
        }
    ]
    assert (shown["session"]["id"], shown["device"]["label"], shown["observed_at"]) == (
        "s1",
        "BaceGo-1",
        "2025-12-01T12:00:09Z",
    )
    (event,) = datapoint_events(KNOWN, [replace(POINT, revision=2)], {}, now=NOON)
    assert [msgspec.json.decode(event.data)["datapoints"][0][key] for key in ("name", "unit")] == [None, None]


TEXT = st.text(max_size=255)
"""Names, units and labels, up to what a column of a database holds; also what JSON writes as six bytes."""


@settings(max_examples=examples(60))
@given(
    count=st.integers(0, 650),
    name=TEXT,
    unit=TEXT,
    label=st.none() | TEXT,
    device=st.none() | TEXT,
    series=st.text("0123456789abcdef-", min_size=1, max_size=64),
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    revision=st.integers(0, 2**40),
)
def test_an_event_has_at_most_200_points_and_stays_under_64_kib(
    count: int,
    name: str,
    unit: str,
    label: str | None,
    device: str | None,
    series: str,
    value: float | None,
    revision: int,
) -> None:
    session = replace(KNOWN.session, label=label)
    known = replace(KNOWN, session=session, device_label=device)
    changed = [
        Datapoint(series, series, 6000, NOON + one, value, value, value, 2**31, revision=revision)
        for one in range(count)
    ]
    emitted = datapoint_events(known, changed, {6000: Datatype(name, unit)}, now=NOON)
    shown = [msgspec.json.decode(event.data)["datapoints"] for event in emitted]
    assert all(1 <= len(one) <= 200 for one in shown)
    assert all(len(event.data) <= 60 * 1024 for event in emitted), "the envelope has to fit into 64 KiB, too"
    stamps = [one["timestamp"] for page in shown for one in page]
    assert len(stamps) == count
    assert stamps == sorted(stamps)
    assert len({event.id for event in emitted}) == len(emitted)
    newest = [page[-1].timestamp for page in _chunks(changed, [len(one) for one in shown])]
    assert [event.time for event in emitted] == newest


def _chunks(changed: list[Datapoint], sizes: list[int]) -> list[list[Datapoint]]:
    rest = iter(changed)
    return [[next(rest) for _ in range(size)] for size in sizes]


def test_many_small_points_fill_their_events() -> None:
    """Halving an event that is too large must not end in hundreds of tiny ones."""
    changed = [replace(POINT, timestamp=NOON + one) for one in range(450)]
    emitted = datapoint_events(KNOWN, changed, {}, now=NOON)
    assert [len(msgspec.json.decode(event.data)["datapoints"]) for event in emitted] == [200, 200, 50]


@pytest.mark.parametrize("length", [1, 100, 256])
def test_an_event_of_datapoints_stays_below_64_kib(length: int) -> None:
    names = Datatype("n" * length, "u" * length)
    changed = [replace(POINT, series_id="s" * length, source_device=f"{one:0{length}}") for one in range(450)]
    events = datapoint_events(KNOWN, changed, {6000: names}, now=NOON)
    assert all(len(one.data) < 62 * 1024 for one in events), "there is room for an envelope"
    counts = [len(msgspec.json.decode(one.data)["datapoints"]) for one in events]
    assert sum(counts) == 450
    assert max(counts) <= 200
