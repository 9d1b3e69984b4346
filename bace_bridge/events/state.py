"""The state that sinks with memory (MQTT's retained topics) show: not what happened, but how things are."""

import re

import msgspec


class KnownDevice(msgspec.Struct, frozen=True):
    """A device of which data sessions are known, or which the cloud lists.

    `last_seen_at` is the newest time that the cloud has of it: of a datapoint, or of a session's start or end. The last
    session is the active one, where there is one.
    """

    id: str
    label: str | None = None
    active_session_id: str | None = None
    last_session_id: str | None = None
    last_seen_at: float | None = None


class LatestPoint(msgspec.Struct, frozen=True):
    """The newest datapoint of a series; `payload` is the contract's datapoint object as JSON."""

    source_device: str
    datatype: int
    payload: bytes


class DeviceState(msgspec.Struct, frozen=True):
    """How a device stands now.

    `session` is the contract's `session` object, with `device`, and `csv_url` once there is one, of the newest active
    data session, else of the newest one, as JSON; None where there is none. `available` is false while the view is not
    current. The last session is the one that is shown.
    """

    device_id: str
    available: bool
    session: bytes | None
    latest: tuple[LatestPoint, ...] = ()
    active_session_id: str | None = None
    last_session_id: str | None = None


LONGEST_TOKEN = 16 * 1024
"""Characters: more than web servers take in a header as they are installed."""

_SENDABLE = re.compile(r"[\x21-\x7e]+")


class Token(msgspec.Struct, frozen=True):
    """An access token of the cloud; `expires_at` is in epoch seconds."""

    access: str
    refresh: str | None
    expires_at: float


def is_sendable(token: str) -> bool:
    """True for what a header can carry: visible ASCII characters, and not too many."""
    return len(token) <= LONGEST_TOKEN and _SENDABLE.fullmatch(token) is not None
