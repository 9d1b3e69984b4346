"""An event as a CloudEvents 1.0 structured-mode JSON body."""

import msgspec

from bace_bridge.domain.lanes import Attempt
from bace_bridge.domain.timestamps import iso_utc

CONTENT_TYPE = "application/cloudevents+json"
TYPE_PREFIX = "bace."
SEQUENCE_DIGITS = 20


class CloudEvent(msgspec.Struct, frozen=True):
    """The attributes in the order in which they are written; a bridge event has no `subject`.

    `replay` is an extension attribute, there and true where the event is told again because somebody asked for it.
    """

    specversion: str
    id: str
    source: str
    type: str
    subject: str | msgspec.UnsetType
    time: str
    datacontenttype: str
    sequence: str
    replay: bool | msgspec.UnsetType
    data: msgspec.Raw


def structured(attempt: Attempt, source: str) -> bytes:
    """The same event gives the same bytes at every attempt but a replay. `sequence` orders as text."""
    event = attempt.logged.event
    return msgspec.json.encode(
        CloudEvent(
            specversion="1.0",
            id=event.id,
            source=source,
            type=TYPE_PREFIX + event.type,
            subject=msgspec.UNSET if event.session_id is None else event.session_id,
            time=iso_utc(event.time),
            datacontenttype="application/json",
            sequence=str(attempt.logged.seq).zfill(SEQUENCE_DIGITS),
            replay=True if attempt.replay else msgspec.UNSET,
            data=msgspec.Raw(event.data),
        )
    )
