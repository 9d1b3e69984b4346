"""What the cloud showed, after parsing."""

from enum import IntEnum
from typing import Generic, TypeVar

import msgspec

from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.sessions import DataSession

T = TypeVar("T")


class Urgency(IntEnum):
    """Who goes first when requests have to wait: a session's start and end, then live datapoints, then the rest."""

    SESSIONS = 0
    LIVE = 1
    BACKLOG = 2


class LostRow(msgspec.Struct, frozen=True):
    """A data session's row that could not be read, with what is known of it."""

    reason: str
    id: str | None = None
    updated_at: float | None = None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a collection. `unreadable` names the rows that could not be read; `count` includes them.

    Of data sessions `lost` are these rows, and `odd` the fields that were read as if they were not there, with reasons.

    `per_page` is the size of the pages that were served, which may be less than was asked for.
    """

    items: tuple[T, ...]
    count: int
    page: int | None
    page_count: int | None
    total: int | None
    unreadable: tuple[str, ...] = ()
    per_page: int | None = None
    lost: tuple[LostRow, ...] = ()
    odd: tuple[tuple[str, str], ...] = ()


class SeenSession(msgspec.Struct, frozen=True):
    """A data session and, where the reply was expanded with it, its group's label."""

    session: DataSession
    device_label: str | None = None


class PointsRead(msgspec.Struct, frozen=True):
    """A complete reading of datapoints, each (series, timestamp) once.

    `own` is false where the cloud served rows of other data sessions, too: these can be no other's.
    """

    points: tuple[Datapoint, ...]
    pages: int
    own: bool = True
