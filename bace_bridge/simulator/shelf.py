from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from math import inf
from operator import attrgetter
from typing import Any

from bace_bridge.simulator.facts import Session
from bace_bridge.simulator.filters import All, Compare, Kind, Reader, holds
from bace_bridge.simulator.query import Order, bounds

FIELDS: Mapping[str, Kind] = {
    "id_data_session": Kind.UUID,
    "id_group": Kind.UUID,
    "id_person": Kind.UUID,
    "label": Kind.TEXT,
    "start": Kind.INTEGER,
    "end": Kind.INTEGER,
    "created_at": Kind.INTEGER,
    "created_by": Kind.UUID,
    "updated_at": Kind.INTEGER,
    "updated_by": Kind.UUID,
    "archived_at": Kind.INTEGER,
    "datapoint_count": Kind.INTEGER,
    "isIngestionFinished": Kind.FLAG,
    "isArchived": Kind.FLAG,
}
_ATTRIBUTES = {"isIngestionFinished": "is_ingestion_finished", "isArchived": "is_archived"}
_INDEXED = ("id_data_session", "start", "updated_at")


def reader(field: str) -> Callable[[Any], Any]:
    return attrgetter(_ATTRIBUTES.get(field, field))


def sort_key(order: Order, reader: Reader) -> Callable[[Any], Any]:
    """NULLs come after everything, as in PostgreSQL."""
    read = reader(order.field)

    def key(row: Any) -> Any:
        value = read(row)
        return (value is None, value if value is not None else 0)

    return key


def _indexed(field: str, session: Session) -> Any:
    value = reader(field)(session)
    return inf if value is None else value


class Shelf:
    """The data sessions, with indexes for what clients ask: a list of 50,000 must not cost a scan."""

    def __init__(self, changes: Callable[[str, Session | None], None] = lambda _, __: None) -> None:
        """`changes` is called with an id and what was there, before a session changes."""
        self._changes = changes
        self._sessions: dict[str, Session] = {}
        self._active: set[str] = set()
        self._indexes: dict[str, list[tuple[Any, str]]] = {field: [] for field in _INDEXED}
        self.version = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, identifier: str) -> Session | None:
        return self._sessions.get(identifier)

    def by_start(self, number: int) -> str | None:
        """The id of the data session of that number, the oldest start is 1."""
        index = self._indexes["start"]
        return index[number - 1][1] if 0 < number <= len(index) else None

    def all(self) -> Iterable[Session]:
        return self._sessions.values()

    def put(self, session: Session) -> None:
        self._changes(session.id_data_session, self.get(session.id_data_session))
        self.restore(session.id_data_session, session)
        self.version += 1

    def restore(self, identifier: str, session: Session | None) -> None:
        """As `put`, or for None as `remove`, but unnoticed and without a new version."""
        before = self._sessions.pop(identifier, None)
        if before is not None:
            self._active.discard(identifier)
            for field, index in self._indexes.items():
                del index[bisect_left(index, (_indexed(field, before), identifier))]
        if session is not None:
            self._sessions[identifier] = session
            for field, index in self._indexes.items():
                insort(index, (_indexed(field, session), identifier))
            if session.end is None:
                self._active.add(identifier)

    def copy(self, version: int) -> "Shelf":
        made = Shelf()
        made._sessions, made._active = dict(self._sessions), set(self._active)
        made._indexes = {field: list(index) for field, index in self._indexes.items()}
        made.version = version
        return made

    def put_new(self, sessions: Iterable[Session]) -> None:
        """Many at once, none of which is here yet: one sort in place of many insertions."""
        new = {session.id_data_session: session for session in sessions}
        self._sessions |= new
        self._active |= {identifier for identifier, session in new.items() if session.end is None}
        for field, index in self._indexes.items():
            index.extend((_indexed(field, session), identifier) for identifier, session in new.items())
            index.sort()
        self.version += 1

    def remove(self, identifier: str) -> None:
        self.version += 1
        self._changes(identifier, self.get(identifier))
        self.restore(identifier, None)

    def select(self, condition: All, order: Order | None) -> list[Session]:
        test = holds(condition, reader) if condition.parts else None
        narrowed = self._narrowed(condition)
        if narrowed is None and order is not None and order.field in self._indexes:
            index = self._indexes[order.field]
            ordered = reversed(index) if order.descending else index
            rows = [self._sessions[identifier] for _, identifier in ordered]
            return rows if test is None else [row for row in rows if test(row)]
        source = self._sessions.values() if narrowed is None else narrowed
        rows = [row for row in source if test is None or test(row)]
        if order is not None:
            rows.sort(key=sort_key(order, reader), reverse=order.descending)
        return rows

    def _narrowed(self, condition: All) -> list[Session] | None:
        """The few sessions among which all that fulfil the condition are; None: no index helps."""
        for part in condition.parts:
            if isinstance(part, Compare) and part.operator == "eq":
                if part.field == "id_data_session" and isinstance(part.value, str):
                    found = self._sessions.get(part.value)
                    return [found] if found else []
                if part.field == "end" and part.value is None:
                    return [self._sessions[identifier] for identifier in sorted(self._active)]
        for field in ("updated_at", "start"):
            limits = bounds(condition, field)
            if limits.narrow:
                index = self._indexes[field]
                # "~" sorts after every UUID, so that all ties with the upper bound are inside.
                low, high = bisect_left(index, (limits.lower, "")), bisect_right(index, (limits.upper, "~"))
                return [self._sessions[identifier] for _, identifier in index[low:high]]
        return None
