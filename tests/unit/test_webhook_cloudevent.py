import json

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event

from bace_bridge.events.types import Attempt, Event, LoggedEvent
from bace_bridge.sinks.webhook.message import CONTENT_TYPE, structured

DATA = b'{"session":{"id":"s1","label":"gr\xc3\xbcn"},"n":1.50}'


def attempt(
    *, session_id: str | None = "s1", time: float = 1_769_817_600.25, seq: int = 42, replay: bool = False
) -> Attempt:
    event = Event("evt_1", "session.started", session_id, "d1", time, time + 5, DATA)
    return Attempt(LoggedEvent(seq, event), 1, replay)


def test_the_cloudevents_library_reads_it() -> None:
    body = structured(attempt(), "https://cloud.example")
    event = from_structured_event(HTTPMessage({"content-type": CONTENT_TYPE}, body))
    assert event.get_specversion() == "1.0"
    assert event.get_id() == "evt_1"
    assert event.get_source() == "https://cloud.example"
    assert event.get_type() == "bace.session.started"
    assert event.get_subject() == "s1"
    assert event.get_datacontenttype() == "application/json"
    assert event.get_extension("sequence") == "00000000000000000042"
    assert event.get_data() == {"session": {"id": "s1", "label": "grün"}, "n": 1.5}
    moment = event.get_time()
    assert moment is not None
    assert moment.isoformat() == "2026-01-31T00:00:00.250000+00:00"


def test_every_attribute_as_it_is_written() -> None:
    assert json.loads(structured(attempt(), "https://cloud.example")) == {
        "specversion": "1.0",
        "id": "evt_1",
        "source": "https://cloud.example",
        "type": "bace.session.started",
        "subject": "s1",
        "time": "2026-01-31T00:00:00.250Z",
        "datacontenttype": "application/json",
        "sequence": "00000000000000000042",
        "data": {"session": {"id": "s1", "label": "grün"}, "n": 1.5},
    }


def test_data_is_not_encoded_again() -> None:
    assert structured(attempt(), "https://cloud.example").endswith(b'"data":' + DATA + b"}")


def test_an_event_of_the_bridge_itself_has_no_subject() -> None:
    assert "subject" not in json.loads(structured(attempt(session_id=None), "https://cloud.example"))


@pytest.mark.parametrize(("earlier", "later"), [(9, 10), (1, 2**63 - 1), (99, 100)])
def test_sequences_order_as_text(earlier: int, later: int) -> None:
    first, second = (json.loads(structured(attempt(seq=seq), "s"))["sequence"] for seq in (earlier, later))
    assert first < second


def test_a_replay_says_so_and_else_is_the_same() -> None:
    first, again = (json.loads(structured(attempt(replay=replay), "s")) for replay in (False, True))
    assert again.pop("replay") is True
    assert first == again
