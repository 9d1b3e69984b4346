"""BACE's JSON to the domain's facts; what cannot be read is named, never guessed.

Tolerant where the API is loosely typed: unknown fields, numbers as strings and the other way round, booleans in any
form, labels with half a character. Pure.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from bace_bridge.cloud.failures import instead_of_json
from bace_bridge.cloud.pages import LARGEST, figure, parse_page
from bace_bridge.errors import UnexpectedReply
from bace_bridge.formats import EARLIEST, LATEST, decoded_leniently
from bace_bridge.polling.rules.changes import LostRow, Page, SeenSession
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.sessions import DataSession

MOST_SAMPLES = 2**40
"""Samples in one datapoint: a year of some 30 kHz. Sums of them stay below 64 bits."""

Code = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Samples = Annotated[int, msgspec.Meta(ge=-MOST_SAMPLES, le=MOST_SAMPLES)]

LONGEST_TEXT = 256
"""Characters of a label, or of the name of a person, a series or a source device; every event repeats them."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

REPLACED = "\ufffd"
"""Stands where a text had something that is no character."""


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


class _AxesRow(msgspec.Struct):
    datatypes: Any = None
    physicalDevices: Any = None


class _PointRow(msgspec.Struct, gc=False):
    id_container_data_latest: str | int
    datatype: Code
    timestamp_seconds: float
    source_device: str | int | None = None
    min_val: float | None = None
    max_val: float | None = None
    avg_val: float | None = None
    count_val: Samples | None = None
    id_group: Any = None


class _GroupRow(msgspec.Struct):
    id_group: str | int | None = None
    id: str | int | None = None
    label: Any = None


_ID_SHAPE: Any = str | int


def parse_sessions(body: bytes, headers: Mapping[str, str]) -> Page[SeenSession]:
    """A page; where a row is odd, only what its session cannot be reported without decides whether the row is lost."""
    try:
        page = parse_page(body, headers, _SessionRow, _session)
    except UnexpectedReply:
        pass
    else:
        if not page.unreadable:
            return page
    read = parse_page(body, headers, msgspec.Raw, _tolerantly)
    lost = tuple(
        msgspec.structs.replace(one.session, reason=f"items[{place}]: {one.session.reason}")
        for place, one in enumerate(read.items)
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
        return _TolerantRow(LostRow(str(error), _id_of(fields), _updated_at_of(fields)))
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


def _id_of(fields: Mapping[str, msgspec.Raw]) -> str | None:
    try:
        return _checked_id("id", decoded_leniently(fields["id_data_session"], _ID_SHAPE))
    except (KeyError, *_NOT_A_ROW):
        return None


def _updated_at_of(fields: Mapping[str, msgspec.Raw]) -> float | None:
    try:
        return _time("updated_at", decoded_leniently(fields["updated_at"], float, strict=False))
    except (KeyError, *_NOT_A_ROW):
        return None


def parse_series_axes(body: bytes) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The datatypes and the source devices that an expanded data session names.

    The expanded shapes are not documented: plain values and objects that hold them are both understood.
    """
    try:
        row = decoded_leniently(body, _AxesRow, strict=False)
    except msgspec.DecodeError:
        return (), ()
    named = (figure(text) for text in _plain_values(row.datatypes, ("datatype", "id_datatype", "id")))
    datatypes = {figure for figure in named if figure is not None}
    devices = set(_plain_values(row.physicalDevices, ("id_physical_device", "source_device", "id")))
    return tuple(sorted(datatypes)), tuple(sorted(device for device in devices if _ID.fullmatch(device)))


def _plain_values(shape: Any, names: tuple[str, ...]) -> list[str]:
    entries = list(shape.values()) if isinstance(shape, dict) else shape
    found: list[str] = []
    for entry in entries if isinstance(entries, list) else []:
        value = next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else entry
        if isinstance(value, str | int) and not isinstance(value, bool):
            found.append(str(value))
    return found


def parse_datapoints(body: bytes, headers: Mapping[str, str]) -> Page[Datapoint]:
    return parse_page(body, headers, _PointRow, _datapoint)


def parse_groups(body: bytes, headers: Mapping[str, str]) -> Page[tuple[str, str | None]]:
    return parse_page(body, headers, _GroupRow, _group)


def _session(row: _SessionRow) -> SeenSession:
    session = DataSession(
        id=_checked_id("id_data_session", row.id_data_session),
        group_id=_checked_id("id_group", row.id_group),
        start=_time("start", row.start),
        end=None if row.end is None else _time("end", row.end),
        label=_text(row.label),
        person_id=_text(row.id_person),
        created_at=None if row.created_at is None else _time("created_at", row.created_at),
        updated_at=None if row.updated_at is None else _time("updated_at", row.updated_at),
        datapoint_count=row.datapoint_count,
        ingestion_finished=_flag("isIngestionFinished", row.isIngestionFinished),
        archived=_flag("isArchived", row.isArchived),
    )
    return SeenSession(session, _expanded_label(row.group))


def _expanded_label(group: Any) -> str | None:
    """The label of the expanded group; the shape is not documented, so anything else is no label."""
    return _text(group.get("label")) if isinstance(group, dict) else None


def _text(value: Any) -> str | None:
    """A label, which may be a number; None for what is no text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _shortened(str(value))


def _flag(name: str, value: Any) -> bool:
    flag = _FLAGS.get(str(value).lower()) if isinstance(value, str | int | float | None) else None
    if flag is None:
        raise ValueError(f"{name} is neither true nor false")
    return flag


_FLAGS = dict.fromkeys(("none", "", "0", "0.0", "f", "false"), False) | dict.fromkeys(("1", "1.0", "t", "true"), True)
"""How databases and their drivers write a truth value, with that of a missing one."""


def _datapoint(row: _PointRow) -> Datapoint:
    timestamp = row.timestamp_seconds
    if not EARLIEST < timestamp < LATEST:
        raise ValueError(f"timestamp_seconds {timestamp} is out of range")
    return Datapoint(
        _identity("id_container_data_latest", row.id_container_data_latest),
        _identity("source_device", row.source_device) if row.source_device not in {None, ""} else "unknown",
        row.datatype,
        timestamp,
        _value(row.min_val),
        _value(row.max_val),
        _value(row.avg_val),
        1 if row.count_val is None else row.count_val,
        str(row.id_group) if isinstance(row.id_group, str | int) else None,
    )


def _identity(name: str, value: str | int | None) -> str:
    """A name that identifies a series, so no part of it, and nothing in its place, will do."""
    text = str(value)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{name} is longer than {LONGEST_TEXT} characters")
    if REPLACED in text:
        raise ValueError(f"{name} contains an invalid character")
    return text


def _value(value: float | None) -> float | None:
    """NaN and infinity, which come as texts, are no numbers; the datapoint is there all the same."""
    return value if value is not None and math.isfinite(value) else None


def _group(row: _GroupRow) -> tuple[str, str | None]:
    return _checked_id("id_group", row.id_group if row.id_group is not None else row.id), _text(row.label)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _checked_id(name: str, value: str | int | None) -> str:
    text = str(value)
    if value is None or not _ID.fullmatch(text):
        raise ValueError(f"{name} is not an id")
    return text


def _time(name: str, seconds: float) -> float:
    if not EARLIEST < seconds < LATEST:
        raise ValueError(f"{name} {seconds} is out of range")
    return seconds
