"""The devices that a sink shows, as one retained message: when it is read again, and what fits into it."""

from collections.abc import Callable, Collection, Mapping

import msgspec

from bace_bridge.events.state import DeviceState, KnownDevice
from bace_bridge.formats import iso_utc

AT_MOST_EVERY = 60.0
"""Seconds between two lists, unless a data session starts or ends."""

LARGEST = 512 * 2**10
"""Bytes of a list at any broker: some take no packet of more than 1 MiB, and do not say so. 2,000 devices have room."""

_BESIDE_THE_LIST = 2048
"""Bytes that the rest of the packet takes at most: its topic is 1 KiB at most."""


class _Row(msgspec.Struct, frozen=True):
    """The contract's device object."""

    id: str
    label: str | None
    active_session_id: str | None
    last_seen_at: str | None
    last_session_id: str | None


class DeviceList:
    """Does no I/O. `largest_packet` is what the broker takes, in bytes, None where it does not say.

    `clock` is in seconds. `payload` is the list as it was read last, None before that.
    """

    def __init__(self, *, largest_packet: int | None, clock: Callable[[], float]) -> None:
        self._largest = max(0, min(LARGEST, (largest_packet or 2 * LARGEST) - _BESIDE_THE_LIST))
        self._clock = clock
        self._rows: dict[str, KnownDevice] = {}
        self._sessions: dict[str, tuple[str | None, str | None]] = {}
        self._outdated: set[str] = set()
        self._due_at = clock()
        self._left_out = 0
        self.payload: bytes | None = None

    @property
    def problem(self) -> str | None:
        if not self._left_out:
            return None
        return f"the list of devices leaves out {self._left_out} of {len(self._rows)}: more than {self._largest} bytes"

    def note(self, states: Mapping[str, DeviceState], *, asked: Collection[str] | None) -> None:
        """How these devices stand now; all there are where none were `asked` for."""
        for device in asked if asked is not None else {*states, *self._sessions}:
            state = states.get(device)
            before = self._sessions.pop(device, None)
            if state is not None:
                self._sessions[device] = (state.active_session_id, state.last_session_id)
            if self._sessions.get(device) != before:
                # A session that starts or ends is news; `last_seen_at` alone moves with each fetch and waits for its
                # minute.
                self._due_at = self._clock()
            if state is not None or before is not None:
                self._outdated.add(device)

    def due_in(self) -> float | None:
        """Seconds until some devices are to be read again; None where nothing has changed."""
        return max(0.0, self._due_at - self._clock()) if self._outdated or self.payload is None else None

    def begin(self) -> set[str]:
        """The devices to be read now."""
        outdated, self._outdated = self._outdated, set()
        self._due_at = self._clock() + AT_MOST_EVERY
        return outdated

    def failed(self, devices: Collection[str]) -> None:
        """They could not be read."""
        self._outdated.update(devices)
        self._due_at = self._clock()

    def read(self, known: Collection[KnownDevice], *, asked: Collection[str]) -> None:
        for device in asked:
            self._rows.pop(device, None)
        self._rows.update((one.id, one) for one in known)
        self.payload, self._left_out = _encoded(self._rows.values(), self._largest)


def _encoded(devices: Collection[KnownDevice], largest: int) -> tuple[bytes, int]:
    """The list, and how many do not fit: those with an active data session go first, then those seen last."""
    rows, room = [], largest - len(b"[]")
    # Where the list is cut, the devices that matter now stay.
    for one in sorted(devices, key=lambda one: (one.active_session_id is None, -(one.last_seen_at or 0.0), one.id)):
        seen = None if one.last_seen_at is None else iso_utc(one.last_seen_at)
        label, active, last = map(_whole, (one.label, one.active_session_id, one.last_session_id))
        row = msgspec.json.encode(_Row(_whole(one.id) or "", label, active, seen, last))
        room -= len(row) + len(b",")
        if room < 0:
            break
        rows.append(row)
    return b"[%b]" % b",".join(rows), len(devices) - len(rows)


def _whole(text: str | None) -> str | None:
    """Without half characters, for which UTF-8 has no bytes."""
    return None if text is None else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
