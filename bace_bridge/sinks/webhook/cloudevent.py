"""An event as a CloudEvents 1.0 structured-mode JSON body."""

import msgspec

from bace_bridge.domain.events import LoggedEvent
from bace_bridge.domain.timestamps import iso_utc

CONTENT_TYPE = "application/cloudevents+json"
TYPE_PREFIX = "bace."
SEQUENCE_DIGITS = 20


class CloudEvent(msgspec.Struct, frozen=True):
    """The attributes in the order in which they are written; a bridge event has no `subject`."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str | msgspec.UnsetType
    time: str
    datacontenttype: str
    sequence: str
    data: msgspec.Raw


def structured(logged: LoggedEvent, source: str) -> bytes:
    """The same event gives the same bytes at every attempt. `sequence` orders as text."""
    event = logged.event
    return msgspec.json.encode(
        CloudEvent(
            specversion="1.0",
            id=event.id,
            source=source,
            type=TYPE_PREFIX + event.type,
            subject=msgspec.UNSET if event.session_id is None else event.session_id,
            time=iso_utc(event.time),
            datacontenttype="application/json",
            sequence=str(logged.seq).zfill(SEQUENCE_DIGITS),
            data=msgspec.Raw(event.data),
        )
    )
