import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.events.types import EVENT_TYPES, Event, Filter, matches, wanted


def event(event_type: str, device: str | None) -> Event:
    return Event("evt_1", event_type, None, device, 0.0, 0.0, b'{"sink":"alerts"}')


@pytest.mark.parametrize(
    ("event_type", "globs", "matched"),
    [
        ("session.started", ("*",), True),
        ("session.started", ("session.started",), True),
        ("session.started", ("session.*",), True),
        ("session.started", ("alert.*", "session.st*"), True),
        ("session.started", ("session.[se]*",), True),
        ("session.csv_ready", ("*.csv_ready",), True),
        ("session.started", (), False),
        ("session.started", ("session",), False),
        ("session.started", ("started",), False),
        ("session.started", ("Session.*",), False),
        ("session.started", ("session.ended", "cloud.*"), False),
    ],
)
def test_globs(event_type: str, globs: tuple[str, ...], matched: bool) -> None:
    assert matches(event_type, globs) is matched


@pytest.mark.parametrize(
    ("event_type", "device", "wish", "is_wanted"),
    [
        ("session.started", "g1", Filter(), True),
        ("session.started", "g1", Filter(groups=("g1", "g2")), True),
        ("session.started", "g3", Filter(groups=("g1", "g2")), False),
        ("session.started", "g1", Filter(("session.ended",), ("g1",)), False),
        ("cloud.unreachable", None, Filter(groups=("g1",)), True),
        ("cloud.unreachable", None, Filter(("session.*",), ("g1",)), False),
        ("sink.disabled", None, Filter(sink="alerts"), False),
        ("sink.disabled", None, Filter(sink="home"), True),
        ("cloud.unreachable", None, Filter(sink="alerts"), True),
    ],
)
def test_what_a_sink_wants(event_type: str, device: str | None, wish: Filter, is_wanted: bool) -> None:
    assert wanted(event(event_type, device), wish) is is_wanted


@given(st.sampled_from(EVENT_TYPES), st.one_of(st.none(), st.text(max_size=5)))
def test_a_sink_without_wishes_gets_everything(event_type: str, device: str | None) -> None:
    assert wanted(event(event_type, device), Filter())


@given(st.sampled_from(EVENT_TYPES), st.sampled_from(EVENT_TYPES))
def test_a_type_matches_itself_alone(one: str, other: str) -> None:
    assert matches(one, (other,)) is (one == other)
