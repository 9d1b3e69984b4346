from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.sinks.webhook.sink import Pace


@given(st.sampled_from([0.5, 3.0, 50.0]), st.lists(st.floats(0, 5), min_size=2, max_size=50))
def test_never_more_often_than_the_rate(per_second: float, pauses: list[float]) -> None:
    pace, now = Pace(per_second), 0.0
    turns: list[float] = []
    for pause in pauses:
        now += pause
        turns.append(now + pace.turn(now))
    gaps = [later - earlier for earlier, later in pairwise(turns)]
    assert all(gap >= 1 / per_second - 1e-6 for gap in gaps)


@given(st.sampled_from([0.5, 3.0]), st.floats(0, 1e6))
def test_who_comes_rarely_never_waits(per_second: float, since: float) -> None:
    pace = Pace(per_second)
    pace.turn(0.0)
    assert pace.turn(since + 1 / per_second) == 0.0


def test_without_a_limit_nobody_waits() -> None:
    pace = Pace(0)
    assert [pace.turn(1.0) for _ in range(5)] == [0.0] * 5
