"""What every sink's configuration holds: a name, and which events it wants."""

import re
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator

from bace_bridge.config.values import FormerNames, WholeNumber, mistake
from bace_bridge.domain.events import EVENT_TYPES
from bace_bridge.domain.routing import matches

_KNOWN_TYPES = (*EVENT_TYPES, "alert.firing", "alert.resolved")


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", value):
        raise mistake("must be a short name of letters, digits, - and _")
    return value


def _event_globs(globs: tuple[str, ...]) -> tuple[str, ...]:
    if not globs:
        raise mistake("names no event, so nothing would ever be sent", 'write ["*"] for all events')
    return globs


def _event_glob(glob: str) -> str:
    if not any(matches(known, (glob,)) for known in _KNOWN_TYPES):
        close = get_close_matches(glob, (*_KNOWN_TYPES, "session.*", "alert.*", "cloud.*"), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_KNOWN_TYPES)}"
        raise mistake(f"{glob!r} matches no event type", hint)
    return glob


MaxInFlight = Annotated[WholeNumber, FormerNames(("in_flight", "concurrency"))]
Name = Annotated[str, AfterValidator(_name)]
Events = Annotated[tuple[Annotated[str, AfterValidator(_event_glob)], ...], AfterValidator(_event_globs)]
