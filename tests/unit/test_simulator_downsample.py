import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.simulator.samples import Bucket, Resolution, Samples, Track, buckets


@pytest.mark.parametrize(
    ("interval", "width"),
    [(None, 86400), (0, 0), (3600, 0), (3601, 60), (86400, 60), (86401, 3600), (float("inf"), 3600)],
)
def test_the_interval_chooses_the_resolution(interval: float | None, width: float) -> None:
    assert Resolution().width(interval) == width


def test_raw_samples_can_be_turned_off() -> None:
    assert Resolution(raw=0).width(0) == 60


def test_one_sample_keeps_its_own_time_and_more_take_the_time_of_their_bucket() -> None:
    assert buckets([61.5, 130.0, 140.0, 179.9], [4, 1, 2, 6], 60) == [
        Bucket(61.5, 4, 4, 4, 1),
        Bucket(120, 1, 6, 3, 3),
    ]


def test_raw_samples_are_themselves() -> None:
    assert buckets([1.5, 2.5], [7, 8], 0) == [Bucket(1.5, 7, 7, 7, 1), Bucket(2.5, 8, 8, 8, 1)]


@given(
    st.dictionaries(st.floats(0, 2e9), st.floats(-1e6, 1e6), max_size=60),
    st.sampled_from([0.0, 60.0, 3600.0, 86400.0]),
)
def test_every_sample_is_in_one_bucket(samples: dict[float, float], width: float) -> None:
    times = sorted(samples)
    made = buckets(times, [samples[at] for at in times], width)
    assert sum(bucket.count_val for bucket in made) == len(samples)
    assert all(b.min_val - 1e-5 <= b.avg_val <= b.max_val + 1e-5 for b in made)
    assert [bucket.timestamp for bucket in made] == sorted({bucket.timestamp for bucket in made})


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9))))
def test_samples_arrive_in_any_order_and_the_last_one_of_a_time_holds(points: list[tuple[int, int]]) -> None:
    track = Track()
    new = sum([track.add(at, value) for at, value in points])
    kept = dict(points)
    assert (track.times, track.values) == (sorted(kept), [kept[at] for at in sorted(kept)])
    assert new == len(kept)
    assert track.between(5, 10)[0] == [at for at in sorted(kept) if 5 <= at <= 10]


def test_versions_show_which_session_changed() -> None:
    samples = Samples()
    samples.add("a", "series", [(1.0, 2.0)])
    before = samples.versions["a"]
    samples.add("b", "series", [(1.0, 2.0)])
    assert samples.versions["a"] == before
    assert samples.version == samples.versions["b"] > before
    samples.forget("a")
    assert samples.versions["a"] > before
    assert list(samples.by_session) == ["b"]
