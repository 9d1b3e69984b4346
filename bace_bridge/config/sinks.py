"""What every sink's configuration holds: a name, and which events it wants."""

import re
from typing import Annotated

from pydantic import AfterValidator

from bace_bridge.config.values import FormerNames, WholeNumber, closest, mistake
from bace_bridge.domain.events import EVENT_TYPES
from bace_bridge.domain.routing import matches

_TYPES_TO_COME = ("alert.firing", "alert.resolved")
"""Accepted, but no version sends them yet: no message offers them."""


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", value):
        raise mistake("must be a short name of letters, digits, - and _, 64 at most")
    return value


def _event_globs(globs: tuple[str, ...]) -> tuple[str, ...]:
    if not globs:
        raise mistake("names no event, so nothing would ever be sent", 'write ["*"] for all events')
    return globs


def _event_glob(glob: str) -> str:
    if not any(matches(known, (glob,)) for known in (*EVENT_TYPES, *_TYPES_TO_COME)):
        close = closest(glob, (*EVENT_TYPES, "session.*", "cloud.*", "sink.*"))
        hint = f"did you mean {close}?" if close else f"known: {', '.join(EVENT_TYPES)}"
        raise mistake(f"{glob!r} matches no event type", hint)
    return glob


def has_no_effect_yet(glob: str) -> bool:
    """True for a glob that matches no event that this version sends."""
    return not any(matches(known, (glob,)) for known in EVENT_TYPES)


MaxInFlight = Annotated[WholeNumber, FormerNames(("in_flight", "concurrency"))]
Name = Annotated[str, AfterValidator(_name)]
Events = Annotated[tuple[Annotated[str, AfterValidator(_event_glob)], ...], AfterValidator(_event_globs)]
