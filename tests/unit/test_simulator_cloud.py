import time

import pytest

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.samples import SIGNALS, value


class Clock:
    now = 1_700_000_000.75

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud(clock: Clock) -> SimulatedCloud:
    made = SimulatedCloud(clock=clock)
    made.add_device("BaceGo-001-002-00020", datatypes=(6000, 5205), sources=2)
    return made


def group(cloud: SimulatedCloud) -> str:
    return next(iter(cloud.devices))


def test_a_device_has_a_series_for_each_source_and_datatype(cloud: SimulatedCloud) -> None:
    device = cloud.devices[group(cloud)]
    assert len({series.id_container_data_latest for series in device.series}) == 4
    assert {(series.source_device, series.datatype) for series in device.series} == {
        (source, datatype) for source in device.sources for datatype in (6000, 5205)
    }
    with pytest.raises(ValueError, match="already a device"):
        cloud.add_device("BaceGo-001-002-00020")


def test_devices_keep_their_ids_whatever_the_seed(cloud: SimulatedCloud) -> None:
    other = SimulatedCloud(seed=99).add_device("BaceGo-001-002-00020", datatypes=(6000, 5205), sources=2)
    assert other.series == cloud.devices[group(cloud)].series


def test_a_session_lives(cloud: SimulatedCloud, clock: Clock) -> None:
    sid = cloud.open_session(group(cloud))
    opened = cloud.session(sid)
    assert (opened.start, opened.end, opened.created_at, opened.updated_at) == (
        1_700_000_000,
        None,
        *[1_700_000_000] * 2,
    )
    assert opened.label == "BaceGo-001-002-00020 2023-11-14 22:13"

    clock.now += 10
    series = cloud.devices[group(cloud)].series[0].id_container_data_latest
    cloud.add_points(sid, series, [(1.0, 2.0), (2.0, 3.0)])
    assert (cloud.session(sid).datapoint_count, cloud.session(sid).updated_at) == (2, 1_700_000_010)

    clock.now += 10
    cloud.add_points(sid, series, [(2.0, 4.0), (3.0, 3.0)], touch=False)
    assert (cloud.session(sid).datapoint_count, cloud.session(sid).updated_at) == (3, 1_700_000_010)

    cloud.end_session(sid)
    cloud.finish_ingestion(sid)
    assert (cloud.session(sid).end, cloud.session(sid).is_ingestion_finished) == (1_700_000_020, True)

    cloud.change(sid, end=None, is_ingestion_finished=False)
    assert (cloud.session(sid).end, cloud.session(sid).is_ingestion_finished) == (None, False)

    cloud.finish_ingestion(sid)
    cloud.change(sid, is_ingestion_finished=False)
    assert not cloud.session(sid).is_ingestion_finished


def test_people_change_a_session(cloud: SimulatedCloud) -> None:
    other = cloud.add_device("other").id_group
    sid = cloud.open_session(group(cloud), label="x", start=5.9, created_at=9)
    cloud.change(sid, label="y")
    cloud.change(sid, id_person="person")
    cloud.move_session(sid, other)
    cloud.change(sid, archived_at=1_700_000_000, is_archived=True)
    cloud.rename_device(other, "another")
    session = cloud.session(sid)
    assert (session.start, session.created_at, session.label) == (5, 9, "y")
    assert (session.id_person, session.id_group, session.is_archived) == ("person", other, True)
    assert session.archived_at == 1_700_000_000
    assert cloud.devices[other].label == "another"
    cloud.remove_session(sid)
    with pytest.raises(KeyError):
        cloud.session(sid)


def test_nothing_happens_to_what_is_not_there(cloud: SimulatedCloud) -> None:
    sid = cloud.open_session(group(cloud))
    for wrong in (
        lambda: cloud.end_session("nope"),
        lambda: cloud.remove_session("nope"),
        lambda: cloud.open_session("nope"),
        lambda: cloud.move_session(sid, "nope"),
        lambda: cloud.add_points(sid, "nope", []),
    ):
        with pytest.raises(KeyError):
            wrong()


def test_a_history_of_50_000_sessions_is_quick(cloud: SimulatedCloud) -> None:
    began = time.process_time()
    ids = cloud.add_history(50_000, first_start=1_000_000, spacing=600, duration=300)
    assert time.process_time() - began < 5  # it takes half a second; a slow machine is no failure
    assert len(cloud.sessions.by_id) == len(set(ids)) == 50_000
    last = cloud.session(ids[-1])
    assert (last.start, last.end) == (1_000_000 + 49_999 * 600, 1_000_300 + 49_999 * 600)
    assert last.is_ingestion_finished


def test_a_history_needs_a_device() -> None:
    with pytest.raises(ValueError, match="no device"):
        SimulatedCloud().add_history(1, first_start=0, spacing=1, duration=1)


def test_a_history_may_have_samples(cloud: SimulatedCloud) -> None:
    (sid,) = cloud.add_history(1, first_start=1000, spacing=1, duration=100, points=10)
    assert cloud.session(sid).datapoint_count == 10
    (track,) = cloud.samples.of(sid).values()
    assert track.times == [1000 + 10 * number for number in range(10)]


def test_the_same_seed_gives_the_same_sessions(clock: Clock) -> None:
    def opened(seed: int) -> str:
        cloud = SimulatedCloud(clock=clock, seed=seed)
        return cloud.open_session(cloud.add_device("x").id_group)

    assert opened(1) == opened(1) != opened(2)


@pytest.mark.parametrize("datatype", [*SIGNALS, 7777])
def test_signals_are_plausible_and_repeatable(datatype: int) -> None:
    shown = [value(datatype, at * 5.0, seed=3) for at in range(500)]
    assert shown == [value(datatype, at * 5.0, seed=3) for at in range(500)]
    assert shown != [value(datatype, at * 5.0, seed=4) for at in range(500)]
    if datatype in SIGNALS:
        signal = SIGNALS[datatype]
        assert signal.low <= min(shown) < max(shown) <= signal.high
        assert abs(sum(shown) / len(shown) - signal.rest) < signal.swing
