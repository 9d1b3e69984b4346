"""The simulated cloud's memory: its sessions, and a replica of them that lags."""

import random
import re
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from operator import attrgetter
from typing import Any, Generic, TypeAlias, TypeVar

from bace_bridge.simulator.facts import Session, seconds
from bace_bridge.simulator.query import All, Bounds, Compare, Kind, Order, Reader, bounds, holds
from bace_bridge.simulator.samples import Samples

T = TypeVar("T")

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
    return lambda row: (True, 0) if (value := read(row)) is None else (False, value)


def _indexed(field: str, session: Session) -> Any:
    # In PostgreSQL's order NULL is the largest value; None itself cannot be compared with the others.
    value = reader(field)(session)
    return inf if value is None else value


class Shelf:
    """The data sessions, with indexes for what clients ask: a list of 50,000 must not cost a scan."""

    def __init__(self, changes: Callable[[str, Session | None], None] = lambda _, __: None) -> None:
        """`changes` is called with an id and what was there, before a session changes."""
        self._changes = changes
        self.by_id: dict[str, Session] = {}
        self._active: set[str] = set()
        self._indexes: dict[str, list[tuple[Any, str]]] = {field: [] for field in _INDEXED}
        self.version = 0

    def by_start(self, number: int) -> str | None:
        """The id of the data session of that number, the oldest start is 1."""
        index = self._indexes["start"]
        return index[number - 1][1] if 0 < number <= len(index) else None

    def put(self, session: Session) -> None:
        self._changes(session.id_data_session, self.by_id.get(session.id_data_session))
        self.restore(session.id_data_session, session)
        self.version += 1

    def restore(self, identifier: str, session: Session | None) -> None:
        """As `put`, or for None as `remove`, but unnoticed and without a new version."""
        before = self.by_id.pop(identifier, None)
        if before is not None:
            self._active.discard(identifier)
            for field, index in self._indexes.items():
                del index[bisect_left(index, (_indexed(field, before), identifier))]
        if session is not None:
            self.by_id[identifier] = session
            for field, index in self._indexes.items():
                insort(index, (_indexed(field, session), identifier))
            if session.end is None:
                self._active.add(identifier)

    def copy(self, version: int) -> "Shelf":
        # No listener of changes: what is undone in a copy must not be noted as another change.
        made = Shelf()
        made.by_id, made._active = dict(self.by_id), set(self._active)
        made._indexes = {field: list(index) for field, index in self._indexes.items()}
        made.version = version
        return made

    def put_new(self, sessions: Iterable[Session]) -> None:
        """Many at once, none of which is here yet: one sort in place of many insertions."""
        # Unnoticed by the replica: a history was there before the scenario began.
        new = {session.id_data_session: session for session in sessions}
        self.by_id |= new
        self._active |= {identifier for identifier, session in new.items() if session.end is None}
        for field, index in self._indexes.items():
            index.extend((_indexed(field, session), identifier) for identifier, session in new.items())
            index.sort()
        self.version += 1

    def remove(self, identifier: str) -> None:
        self.version += 1
        self._changes(identifier, self.by_id.get(identifier))
        self.restore(identifier, None)

    def select(self, condition: All, order: Order | None) -> list[Session]:
        test = holds(condition, reader) if condition.parts else None
        narrowed = self._narrowed(condition)
        if narrowed is None and order is not None and order.field in self._indexes:
            # The index is in order already, so that only the test is left to do.
            index = self._indexes[order.field]
            ordered = reversed(index) if order.descending else index
            rows = [self.by_id[identifier] for _, identifier in ordered]
            return rows if test is None else [row for row in rows if test(row)]
        source = self.by_id.values() if narrowed is None else narrowed
        rows = [row for row in source if test is None or test(row)]
        if order is not None:
            rows.sort(key=sort_key(order, reader), reverse=order.descending)
        return rows

    def _narrowed(self, condition: All) -> list[Session] | None:
        """The few sessions among which all that fulfil the condition are; None: no index helps."""
        for part in condition.parts:
            if isinstance(part, Compare) and part.operator == "eq":
                if part.field == "id_data_session" and isinstance(part.value, str):
                    found = self.by_id.get(part.value)
                    return [found] if found else []
                # The one question that every client asks every few seconds: which sessions are active.
                if part.field == "end" and part.value is None:
                    return [self.by_id[identifier] for identifier in sorted(self._active)]
        for field in ("updated_at", "start"):
            limits = bounds(condition, field)
            if limits != Bounds():
                index = self._indexes[field]
                # "~" sorts after every UUID, so that all ties with the upper bound are inside.
                low, high = bisect_left(index, (limits.lower, "")), bisect_right(index, (limits.upper, "~"))
                return [self.by_id[identifier] for _, identifier in index[low:high]]
        return None


class Recall(Generic[T]):
    """The last few results, so that the next page of a walk need not select and sort again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        # Only the newest few: a test asks for thousands of windows, and each result may be a whole session.
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = make()
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)
        return made


_REMEMBERED = 24
_SHARE = re.compile(r"([1-9]\d?|100)%")
_Undo: TypeAlias = Callable[[Shelf, Samples], None]


@dataclass(frozen=True, slots=True)
class Lag:
    """`share`: of all lists, those that show what was `seconds` ago."""

    seconds: float
    share: float

    @staticmethod
    def parse(written: str) -> "Lag":
        """`5s 30%`. Raises ValueError."""
        behind, _space, share = written.partition(" ")
        match = _SHARE.fullmatch(share)
        if match is None:
            raise ValueError(f"{share!r} is not a share from 1% to 100%")
        return Lag(seconds(behind), int(match[1]) / 100)


class Replica:
    """What happened in the last few seconds, so that a list can be answered as if it had not happened yet."""

    def __init__(self, *, clock: Callable[[], float], remembers: float, seed: int) -> None:
        self._clock = clock
        self._remembers = remembers
        # Of its own, so that ids do not depend on how often the cloud is read.
        self._random = random.Random(seed)  # noqa: S311 - repeatable, no secrets
        self._undos: deque[tuple[float, _Undo]] = deque()
        self._versions = count(-1, -1)

    def session_changes(self, identifier: str, before: Session | None) -> None:
        self._note(lambda shelf, _: shelf.restore(identifier, before))

    def points_change(self, session: str, series: str, before: Mapping[float, float | None]) -> None:
        self._note(lambda _, samples: samples.restore(session, series, before))

    def lags_now(self, lag: Lag) -> bool:
        return self._random.random() < lag.share

    def as_it_was(self, lag: Lag, shelf: Shelf, samples: Samples) -> tuple[Shelf, Samples]:
        """Copies, as of so many seconds ago."""
        # Versions of copies are negative and never repeat, so no remembered answer of now is given for then.
        version = next(self._versions)
        old_shelf, old_samples = shelf.copy(version), samples.copy(version)
        moment = self._clock() - lag.seconds
        # The newest change first: two changes of one session are only undone right in that order.
        for at, undo in reversed(self._undos):
            if at <= moment:
                break
            undo(old_shelf, old_samples)
        return old_shelf, old_samples

    def with_stamps_of_now(self, lag: Lag, shelf: Shelf, samples: Samples) -> Shelf:
        """The sessions as of so many seconds ago, those of then and now, with the `updated_at` of now."""
        then, _ = self.as_it_was(lag, shelf, samples)
        mixed = shelf.copy(next(self._versions))
        for session in shelf.by_id.values():
            old = then.by_id.get(session.id_data_session)
            if old is not None and old is not session:
                mixed.restore(session.id_data_session, replace(old, updated_at=session.updated_at))
        return mixed

    def _note(self, undo: _Undo) -> None:
        now = self._clock()
        while self._undos and self._undos[0][0] < now - self._remembers:
            self._undos.popleft()
        self._undos.append((now, undo))
