import re
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.formats import iso_utc


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_764_590_400.0, "2025-12-01T12:00:00Z"),
        (1_764_590_400.5, "2025-12-01T12:00:00.500Z"),
        (1_764_590_400.125, "2025-12-01T12:00:00.125Z"),
        (1_764_590_400.1, "2025-12-01T12:00:00.100Z"),
        (1_764_590_400.000977, "2025-12-01T12:00:00.000977Z"),
        (1_764_590_400.123456, "2025-12-01T12:00:00.123456Z"),
        (1_764_590_399.9999997, "2025-12-01T12:00:00Z"),
        (-0.5, "1969-12-31T23:59:59.500Z"),
        (1_709_164_800, "2024-02-29T00:00:00Z"),
        (-60_000_000_000, "0068-09-03T13:20:00Z"),
    ],
)
def test_a_time_is_written_in_utc_with_as_many_digits_as_it_has(seconds: float, text: str) -> None:
    assert iso_utc(seconds) == text


@given(st.floats(-6e10, 2.5e11))
def test_a_time_can_be_read_back_to_the_microsecond(seconds: float) -> None:
    text = iso_utc(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?Z", text)
    assert abs(datetime.fromisoformat(text).timestamp() - seconds) <= 1e-6 + abs(seconds) * 2**-52


@given(st.lists(st.integers(0, 2**31), min_size=2))
def test_whole_seconds_sort_as_their_texts(seconds: list[int]) -> None:
    assert [iso_utc(one) for one in sorted(seconds)] == sorted(iso_utc(one) for one in seconds)
