import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.events.types import EVENT_TYPES, bridge_event, event_id

FACTS = st.recursive(
    st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(EVENT_TYPES), st.lists(FACTS, max_size=4))
def test_an_id_is_the_same_for_the_same_facts_and_holds_no_dots(event_type: str, facts: list[Any]) -> None:
    assert event_id(event_type, *facts) == event_id(event_type, *facts)
    assert re.fullmatch(r"evt_[0-9a-f]{32}", event_id(event_type, *facts))


def test_an_id_is_the_same_on_every_machine_and_in_every_version() -> None:
    """Receivers know a delivery that comes again by this id: another digest would be a new event to them."""
    assert event_id("session.started", "0c7c3d9e", 1_764_590_400.0) == "evt_a2198dc7335671e8e46603532cbc271e"
    assert event_id("session.updated", "s1", None, [["label", "Nacht ☾"]]) == "evt_616605359c270e3deae9d7a157c4b91c"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("session.started", "s1"), ("session.ended", "s1")),
        (("session.started", "s1"), ("session.started", "s2")),
        (("session.ended", "s1", 1.0), ("session.ended", "s1", 1.5)),
        (("session.ended", "s1", None), ("session.ended", "s1")),
        (("session.ended", "s1", "1"), ("session.ended", "s11")),
        (("session.updated", "s1", ["a", "b"]), ("session.updated", "s1", "a", "b")),
    ],
)
def test_other_facts_have_another_id(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert event_id(*one) != event_id(*other)


def test_an_event_of_the_bridge_belongs_to_no_session() -> None:
    event = bridge_event("sink.disabled", at=5.0, facts=("alerts", 5.0), data={"sink": "alerts"})
    assert (event.session_id, event.device_id, event.time, event.observed_at) == (None, None, 5.0, 5.0)
    assert event.data == b'{"sink":"alerts"}'
    assert event.id == event_id("sink.disabled", "alerts", 5.0)
