"""Which sink gets which event."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from bace_bridge.domain.events import Event


class Filter(msgspec.Struct, frozen=True):
    """What the sink of this name wants: globs on the event type and, where not empty, only these devices (id_group)."""

    events: tuple[str, ...] = ("*",)
    groups: tuple[str, ...] = ()
    sink: str | None = None


class _AboutASink(msgspec.Struct):
    sink: str


def wanted(event: Event, filter_: Filter) -> bool:
    """Events about the bridge itself belong to no device, so a filter on devices lets them through.

    What is wrong with a sink is told to the others: itself would be the last to hear it.
    """
    if filter_.groups and event.device_id is not None and event.device_id not in filter_.groups:
        return False
    return matches(event.type, filter_.events) and not (is_about_a_sink(event) and _sink_of(event) == filter_.sink)


def is_about_a_sink(event: Event) -> bool:
    return event.type.startswith("sink.")


def matches(event_type: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(event_type, glob) for glob in globs)


def _sink_of(event: Event) -> str:
    return msgspec.json.decode(event.data, type=_AboutASink).sink
