"""Which sink gets which event."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from bace_bridge.domain.events import Event


class Filter(msgspec.Struct, frozen=True):
    """What a sink wants: globs on the event type and, where not empty, only these devices (id_group)."""

    events: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ()


def wanted(event: Event, wish: Filter) -> bool:
    """Events about the bridge itself belong to no device, so a filter on devices lets them through."""
    if wish.groups and event.device_id is not None and event.device_id not in wish.groups:
        return False
    return matches(event.type, wish.events)


def matches(event_type: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(event_type, glob) for glob in globs)
