import pytest

from bace_bridge.store.sqlite import PACKED_FROM, pack, unpack


@pytest.mark.parametrize("size", [0, 1, PACKED_FROM - 1, PACKED_FROM, 100_000])
def test_what_is_packed_comes_back(size: int) -> None:
    data = (b'{"datapoints":[' + b'{"value":1.5},' * size)[:size]
    assert unpack(pack(data)) == data


def test_small_events_stay_readable_and_large_ones_become_small() -> None:
    small, large = b'{"type":"session.started"}', b'{"value":1.5},' * 1000
    assert pack(small) == small
    assert len(pack(large)) < len(large) / 6


def test_what_an_earlier_version_wrote_is_read_as_it_is() -> None:
    data = b'{"value":1.5},' * 1000
    assert unpack(data) == data
