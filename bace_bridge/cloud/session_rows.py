"""A row of a data session: an odd field costs that field alone, unless nothing is true without it. Pure.

With what all of BACE's rows have in common: ids, texts and the numbers of datatypes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from bace_bridge.formats import EARLIEST, LATEST, decoded_leniently
from bace_bridge.polling.rules.changes import LostRow, SeenSession
from bace_bridge.polling.rules.sessions import DataSession

T = TypeVar("T")

LARGEST = 2**53 - 1
"""The largest integer that every reader of JSON holds; SQLite and our own encoder end at 64 bits."""

Code = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]

LONGEST_TEXT = 256
"""Characters of a label, or of the name of a person, a series or a source device; every event repeats them."""

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

NOT_A_ROW = (msgspec.DecodeError, ValueError)


def checked_id(name: str, value: str | int | None) -> str:
    text = str(value)
    if value is None or not ID.fullmatch(text):
        raise ValueError(f"{name} is not an id")
    return text


def text_of(value: Any) -> str | None:
    """A label, which may be a number; None for what is no text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


class SessionRow(msgspec.Struct):
    """As the API writes it, in names and types."""

    id_data_session: str | int
    id_group: str | int
    start: float
    end: float | None = None
    label: str | int | float | None = None
    id_person: str | int | None = None
    created_at: float | None = None
    updated_at: float | None = None
    datapoint_count: Code | None = None
    isIngestionFinished: Any = None
    isArchived: Any = None
    group: Any = None


_DECIDING = ("id_data_session", "id_group", "start", "end", "updated_at")
"""Without these a row is lost: read as missing, an `end` would mean that the session was reopened."""


class TolerantRow(NamedTuple):
    """With the fields that were read as if they were not there, and why."""

    session: SeenSession | LostRow
    odd: tuple[tuple[str, str], ...] = ()


def read_tolerantly(raw: msgspec.Raw) -> TolerantRow:
    """The row, field by field; only those in `_DECIDING` decide whether it is lost."""
    try:
        fields = decoded_leniently(raw, dict[str, msgspec.Raw])
    except NOT_A_ROW as error:
        return TolerantRow(LostRow(str(error)))
    kept = {name: fields[name] for name in _DECIDING if name in fields}
    try:
        _of_fields(kept)
    except NOT_A_ROW as error:
        # The id names the row in the log; its `updated_at` lets the watermark pass it.
        session_id = _field(fields, "id_data_session", str | int, checked_id)
        return TolerantRow(LostRow(str(error), session_id, _field(fields, "updated_at", float, _time)))
    odd: list[tuple[str, str]] = []
    for name in SessionRow.__struct_fields__:
        if name in fields and name not in kept:
            try:
                _of_fields({**kept, name: fields[name]})
            except NOT_A_ROW as error:
                odd.append((name, str(error)))
            else:
                kept[name] = fields[name]
    return TolerantRow(_of_fields(kept), tuple(odd))


def _of_fields(fields: Mapping[str, msgspec.Raw]) -> SeenSession:
    return session_of(decoded_leniently(msgspec.json.encode(fields), SessionRow, strict=False))


def _field(fields: Mapping[str, msgspec.Raw], name: str, shape: Any, check: Callable[[str, Any], T]) -> T | None:
    try:
        return check(name, decoded_leniently(fields[name], shape, strict=False))
    except (KeyError, *NOT_A_ROW):
        return None


def session_of(row: SessionRow) -> SeenSession:
    session = DataSession(
        id=checked_id("id_data_session", row.id_data_session),
        group_id=checked_id("id_group", row.id_group),
        start=_time("start", row.start),
        end=None if row.end is None else _time("end", row.end),
        label=text_of(row.label),
        person_id=text_of(row.id_person),
        created_at=None if row.created_at is None else _time("created_at", row.created_at),
        updated_at=None if row.updated_at is None else _time("updated_at", row.updated_at),
        datapoint_count=row.datapoint_count,
        ingestion_finished=_flag("isIngestionFinished", row.isIngestionFinished),
        archived=_flag("isArchived", row.isArchived),
    )
    # The shape of the expanded group is not documented, so anything but an object with a label is no label.
    return SeenSession(session, text_of(row.group.get("label")) if isinstance(row.group, dict) else None)


def _flag(name: str, value: Any) -> bool:
    flag = _FLAGS.get(str(value).lower()) if isinstance(value, str | int | float | None) else None
    if flag is None:
        raise ValueError(f"{name} is neither true nor false")
    return flag


_FLAGS = dict.fromkeys(("none", "", "0", "0.0", "f", "false"), False) | dict.fromkeys(("1", "1.0", "t", "true"), True)
"""How databases and their drivers write a truth value, with that of a missing one."""


def _time(name: str, seconds: float) -> float:
    if not EARLIEST < seconds < LATEST:
        raise ValueError(f"{name} {seconds} is out of range")
    return seconds
