import msgspec
import pytest

from bace_bridge.delivery.rules.outbox import dead_letter_event
from bace_bridge.events.types import SINK_DEAD_LETTER, SINK_DISABLED, Event, is_about_a_sink

NOW = 1_769_817_600.0
EVENT = Event("evt_1", "session.ended", "s1", "g1", NOW - 60, NOW - 50, b"{}")


def told(event: Event = EVENT, *, sink: str = "a", now: float = NOW) -> Event:
    return dead_letter_event(3, sink=sink, event=event, attempts=10, reason="gave up", now=now)


def test_a_dead_letter_names_the_sink_and_the_event() -> None:
    about = told()
    assert (about.type, about.session_id, about.device_id, about.time) == (SINK_DEAD_LETTER, None, None, NOW)
    assert msgspec.json.decode(about.data) == {
        "sink": "a",
        "reason": "gave up",
        "attempts": 10,
        "count": 3,
        "event": {
            "id": "evt_1",
            "type": "session.ended",
            "session_id": "s1",
            "device_id": "g1",
            "time": "2026-01-30T23:59:00Z",
        },
        "observed_at": "2026-01-31T00:00:00Z",
    }


def test_each_end_of_a_delivery_has_an_id_of_its_own() -> None:
    """The store swallows an event whose id it has: a retried delivery that is given up again would be silent."""
    ends = [told(), told(sink="b"), told(now=NOW + 3600), told(msgspec.structs.replace(EVENT, id="evt_2"))]
    assert len({about.id for about in ends}) == 4
    assert told() == ends[0]


@pytest.mark.parametrize("kind", [SINK_DEAD_LETTER, SINK_DISABLED])
def test_what_is_about_a_sink_is_not_answered_by_more_of_the_kind(kind: str) -> None:
    assert is_about_a_sink(Event("evt_1", kind, None, None, NOW, NOW, b'{"sink":"b"}'))
    assert not is_about_a_sink(EVENT)
