"""BACE's rows of data sessions: an odd field costs that field alone, unless nothing is true without it. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from bace_bridge.cloud.failures import instead_of_json
from bace_bridge.cloud.replies import Code, checked_id, parse_page, text_of
from bace_bridge.errors import UnexpectedReply
from bace_bridge.formats import EARLIEST, LATEST, decoded_leniently
from bace_bridge.polling.rules.changes import LostRow, Page, SeenSession
from bace_bridge.polling.rules.sessions import DataSession

T = TypeVar("T")


class _SessionRow(msgspec.Struct):
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


def parse_sessions(body: bytes, headers: Mapping[str, str]) -> Page[SeenSession]:
    """A page; where a row is odd, only the fields in `_DECIDING` decide whether the row is lost."""
    # First as if all were well, which is fast. Then field by field: an odd label costs the label, not the session.
    try:
        page = parse_page(body, headers, _SessionRow, _session)
    except UnexpectedReply:
        pass
    else:
        if not page.unreadable:
            return page
    read = parse_page(body, headers, msgspec.Raw, _tolerantly)
    lost = tuple(
        msgspec.structs.replace(one.session, reason=f"items[{index}]: {one.session.reason}")
        for index, one in enumerate(read.items)
        if isinstance(one.session, LostRow)
    )
    items = tuple(one.session for one in read.items if isinstance(one.session, SeenSession))
    return Page(
        items=items,
        count=read.count,
        page=read.page,
        page_count=read.page_count,
        total=read.total,
        unreadable=tuple(one.reason for one in lost),
        per_page=read.per_page,
        lost=lost,
        odd=tuple(odd for one in read.items for odd in one.odd),
    )


def parse_session(body: bytes) -> SeenSession:
    try:
        return _session(decoded_leniently(body, _SessionRow, strict=False))
    except _NOT_A_ROW as error:
        read = _tolerantly(msgspec.Raw(body)).session
        if isinstance(read, SeenSession):
            return read
        raise UnexpectedReply(f"a data session cannot be read: {error}{instead_of_json(body)}") from None


_NOT_A_ROW = (msgspec.DecodeError, ValueError)

_DECIDING = ("id_data_session", "id_group", "start", "end", "updated_at")
"""Without these a row is lost: read as missing, an `end` would mean that the session was reopened."""


class _TolerantRow(NamedTuple):
    session: SeenSession | LostRow
    odd: tuple[tuple[str, str], ...] = ()


def _tolerantly(raw: msgspec.Raw) -> _TolerantRow:
    try:
        fields = decoded_leniently(raw, dict[str, msgspec.Raw])
    except _NOT_A_ROW as error:
        return _TolerantRow(LostRow(str(error)))
    kept = {name: fields[name] for name in _DECIDING if name in fields}
    try:
        _session_of(kept)
    except _NOT_A_ROW as error:
        # The id names the row in the log; its `updated_at` lets the watermark pass it.
        session_id = _field(fields, "id_data_session", str | int, checked_id)
        return _TolerantRow(LostRow(str(error), session_id, _field(fields, "updated_at", float, _time)))
    odd: list[tuple[str, str]] = []
    for name in _SessionRow.__struct_fields__:
        if name in fields and name not in kept:
            try:
                _session_of({**kept, name: fields[name]})
            except _NOT_A_ROW as error:
                odd.append((name, str(error)))
            else:
                kept[name] = fields[name]
    return _TolerantRow(_session_of(kept), tuple(odd))


def _session_of(fields: Mapping[str, msgspec.Raw]) -> SeenSession:
    return _session(decoded_leniently(msgspec.json.encode(fields), _SessionRow, strict=False))


def _field(fields: Mapping[str, msgspec.Raw], name: str, shape: Any, check: Callable[[str, Any], T]) -> T | None:
    try:
        return check(name, decoded_leniently(fields[name], shape, strict=False))
    except (KeyError, *_NOT_A_ROW):
        return None


def _session(row: _SessionRow) -> SeenSession:
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
