"""BACE's JSON to the domain's facts; what cannot be read is named, never guessed.

Tolerant where the API is loosely typed: unknown fields, numbers as strings, booleans as 0 and 1, items without a page's
frame. Pure.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec

from bace_bridge.domain.foreign_json import decoded
from bace_bridge.errors import UnexpectedReply
from bace_bridge.polling.rules.datapoints import Datapoint
from bace_bridge.polling.rules.seen import LostRow, Page, SeenSession
from bace_bridge.polling.rules.sessions import DataSession

T = TypeVar("T")
Row = TypeVar("Row")

EARLIEST, LATEST = -62_000_000_000.0, 253_000_000_000.0
"""Epoch seconds of the years 5 and 9987: what lies beyond, and NaN, is no time that a calendar holds."""

LARGEST = 2**53 - 1
"""The largest integer that every reader of JSON holds; SQLite and our own encoder end at 64 bits."""

MOST_SAMPLES = 2**40
"""Samples in one datapoint: a year of some 30 kHz. Sums of them stay below 64 bits."""

MOST_DIGITS = 15
"""Digits of a figure in a text, so that it is no more than LARGEST."""

Figure = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Code = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Samples = Annotated[int, msgspec.Meta(ge=-MOST_SAMPLES, le=MOST_SAMPLES)]

LONGEST_TEXT = 256
"""Characters of a label, or of the name of a person, a series or a source device; every event repeats them."""

LONGEST_MESSAGE = 120
"""Characters of an error's message that are quoted."""

SHORTEST_SECRET = 4
"""Characters: a shorter text occurs by chance."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class TokenReply(msgspec.Struct, frozen=True):
    """What the token endpoint answers. `expires_in` is in seconds."""

    access_token: str
    expires_in: float = 86400.0
    refresh_token: str | None = None


class _Meta(msgspec.Struct):
    totalCount: Figure | None = None
    pageCount: Figure | None = None
    currentPage: Figure | None = None
    perPage: Figure | None = None


class _Frame(msgspec.Struct, Generic[Row]):
    items: list[Row]
    meta: _Meta | None = msgspec.field(name="_meta", default=None)


class _SessionRow(msgspec.Struct):
    id_data_session: str
    id_group: str
    start: float
    end: float | None = None
    label: str | int | float | None = None
    id_person: str | int | None = None
    created_at: float | None = None
    updated_at: float | None = None
    datapoint_count: Code | None = None
    isIngestionFinished: bool | None = None
    isArchived: bool | None = None
    group: Any = None


class _AxesRow(msgspec.Struct):
    datatypes: Any = None
    physicalDevices: Any = None


class _PointRow(msgspec.Struct, gc=False):
    id_container_data_latest: str
    datatype: Code
    timestamp_seconds: float
    source_device: str | None = None
    min_val: float | None = None
    max_val: float | None = None
    avg_val: float | None = None
    count_val: Samples | None = None
    id_group: Any = None


class _GroupRow(msgspec.Struct):
    id_group: str | None = None
    id: str | int | None = None
    label: str | None = None


class _Problem(msgspec.Struct):
    name: str | None = None
    message: str | None = None


_PROBLEM: Any = _Problem | list[Any]


def parse_token(body: bytes) -> TokenReply:
    try:
        return decoded(body, TokenReply, strict=False)
    except msgspec.DecodeError:
        raise UnexpectedReply(f"the token endpoint answered something that is not a token{_instead(body)}") from None


def is_json(body: bytes) -> bool:
    try:
        decoded(body, msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def parse_sessions(body: bytes, headers: Mapping[str, str]) -> Page[SeenSession]:
    """A page; where a row is odd, only what its session cannot be told without decides whether the row is lost."""
    try:
        page = _parse_page(body, headers, _SessionRow, _session)
    except UnexpectedReply:
        pass
    else:
        if not page.unreadable:
            return page
    read = _parse_page(body, headers, msgspec.Raw, _tolerantly)
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
        return _session(decoded(body, _SessionRow, strict=False))
    except _NOT_A_ROW as error:
        read = _tolerantly(msgspec.Raw(body)).session
        if isinstance(read, SeenSession):
            return read
        raise UnexpectedReply(f"a data session cannot be read: {error}{_instead(body)}") from None


_NOT_A_ROW = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError, OverflowError)

_DECIDING = ("id_data_session", "id_group", "start", "end", "updated_at")
"""Without these a row is lost: read as missing, an `end` would tell that the session was reopened."""


class _TolerantRow(NamedTuple):
    session: SeenSession | LostRow
    odd: tuple[tuple[str, str], ...] = ()


def _tolerantly(raw: msgspec.Raw) -> _TolerantRow:
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
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
    return _session(msgspec.json.decode(msgspec.json.encode(fields), type=_SessionRow, strict=False))


def _id_of(fields: Mapping[str, msgspec.Raw]) -> str | None:
    try:
        return _checked_id("id", msgspec.json.decode(fields["id_data_session"], type=str))
    except (KeyError, *_NOT_A_ROW):
        return None


def _updated_at_of(fields: Mapping[str, msgspec.Raw]) -> float | None:
    try:
        return _time("updated_at", msgspec.json.decode(fields["updated_at"], type=float, strict=False))
    except (KeyError, *_NOT_A_ROW):
        return None


def parse_series_axes(body: bytes) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The datatypes and the source devices that an expanded data session names.

    The expanded shapes are not documented: plain values and objects that hold them are both understood.
    """
    try:
        row = decoded(body, _AxesRow, strict=False)
    except msgspec.DecodeError:
        return (), ()
    named = (_figure(text) for text in _plain_values(row.datatypes, ("datatype", "id_datatype", "id")))
    datatypes = {figure for figure in named if figure is not None}
    devices = set(_plain_values(row.physicalDevices, ("id_physical_device", "source_device", "id")))
    return tuple(sorted(datatypes)), tuple(sorted(device for device in devices if _ID.fullmatch(device)))


def _plain_values(shape: Any, names: tuple[str, ...]) -> list[str]:
    entries = list(shape.values()) if isinstance(shape, dict) else shape
    found: list[str] = []
    for entry in entries if isinstance(entries, list) else []:
        value = next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else entry
        if isinstance(value, str | int):
            found.append(str(value))
    return found


def parse_datapoints(body: bytes, headers: Mapping[str, str]) -> Page[Datapoint]:
    return _parse_page(body, headers, _PointRow, _datapoint)


def parse_groups(body: bytes, headers: Mapping[str, str]) -> Page[tuple[str, str | None]]:
    return _parse_page(body, headers, _GroupRow, _group)


def parse_problem(body: bytes, *, private: Sequence[str] = ()) -> str | None:
    """The message of an error in BACE's own JSON, shortened; None where the body is something else (HTML).

    What it repeats of the `private` texts is masked.
    """
    try:
        problem: _Problem | list[Any] = decoded(body, _PROBLEM, strict=False)
    except msgspec.DecodeError:
        return None
    if isinstance(problem, list):
        parts = [f"{one.get('field')}: {one.get('message')}" for one in problem if isinstance(one, dict)]
        return _told("; ".join(parts), private)
    if problem.name is None and problem.message is None:
        return None
    return _told(" ".join((problem.message or problem.name or "").split()), private)


def _told(message: str, private: Sequence[str]) -> str:
    for secret in sorted(private, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            message = message.replace(secret, "***")
    return message[:LONGEST_MESSAGE]


def _parse_page(body: bytes, headers: Mapping[str, str], row_type: type[Row], convert: Callable[[Row], T]) -> Page[T]:
    try:
        frame = decoded(body, _Frame[row_type], strict=False)  # type: ignore[valid-type]  # made at run time
        items = tuple(convert(row) for row in frame.items)
    except (msgspec.DecodeError, ValueError):
        return _parse_row_by_row(body, headers, row_type, convert)
    return _page(items, len(items), frame.meta, headers, ())


def _parse_row_by_row(
    body: bytes, headers: Mapping[str, str], row_type: type[Row], convert: Callable[[Row], T]
) -> Page[T]:
    try:
        frame = decoded(body, _Frame[msgspec.Raw], strict=False)
    except msgspec.DecodeError as error:
        raise UnexpectedReply(f"a page cannot be read: {error}{_instead(body)}") from None
    items: list[T] = []
    unreadable: list[str] = []
    for place, raw in enumerate(frame.items):
        try:
            items.append(convert(decoded(raw, row_type, strict=False)))
        except (msgspec.DecodeError, ValueError) as error:
            unreadable.append(f"items[{place}]: {error}")
    if unreadable and not items:
        raise UnexpectedReply(f"no row of the page can be read: {unreadable[0]}")
    return _page(tuple(items), len(frame.items), frame.meta, headers, tuple(unreadable))


def _instead(body: bytes) -> str:
    """What came in place of JSON, for people."""
    if not body.strip():
        return " (the answer was empty)"
    html = body.lstrip()[:1] == b"<"
    return " (HTML came: the login page of a network, a proxy, or a wrong cloud.url)" if html else ""


def _page(
    items: tuple[T, ...],
    count: int,
    meta: _Meta | None,
    headers: Mapping[str, str],
    unreadable: tuple[str, ...],
) -> Page[T]:
    meta = meta or _Meta()
    return Page(
        items=items,
        count=count,
        page=_first(meta.currentPage, headers.get("X-Pagination-Current-Page")),
        page_count=_first(meta.pageCount, headers.get("X-Pagination-Page-Count")),
        total=_first(meta.totalCount, headers.get("X-Pagination-Total-Count")),
        unreadable=unreadable,
        per_page=_first(meta.perPage, headers.get("X-Pagination-Per-Page")) or None,  # 0 is no size
    )


def _first(figure: int | None, header: str | None) -> int | None:
    if figure is not None:
        return figure
    return None if header is None else _figure(header)


def _figure(text: str) -> int | None:
    """None where it is none, or a larger one than can be meant."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


def _session(row: _SessionRow) -> SeenSession:
    session = DataSession(
        id=_checked_id("id_data_session", row.id_data_session),
        group_id=_checked_id("id_group", row.id_group),
        start=_time("start", row.start),
        end=None if row.end is None else _time("end", row.end),
        label=None if row.label is None else _shortened(str(row.label)),
        person_id=None if row.id_person is None else _shortened(str(row.id_person)),
        created_at=None if row.created_at is None else _time("created_at", row.created_at),
        updated_at=None if row.updated_at is None else _time("updated_at", row.updated_at),
        datapoint_count=row.datapoint_count,
        ingestion_finished=bool(row.isIngestionFinished),
        archived=bool(row.isArchived),
    )
    return SeenSession(session, _expanded_label(row.group))


def _expanded_label(group: Any) -> str | None:
    """The label of the expanded group; the shape is not documented, so anything else is no label."""
    label = group.get("label") if isinstance(group, dict) else None
    return _shortened(label) if isinstance(label, str) else None


def _datapoint(row: _PointRow) -> Datapoint:
    timestamp = row.timestamp_seconds
    if not EARLIEST < timestamp < LATEST:
        raise ValueError(f"timestamp_seconds {timestamp} is out of range")
    for value in (row.min_val, row.max_val, row.avg_val):
        if value is not None and not -math.inf < value < math.inf:
            raise ValueError(f"the value {value} is no number that JSON can hold")
    for name, text in (
        ("id_container_data_latest", row.id_container_data_latest),
        ("source_device", row.source_device),
    ):
        if text is not None and len(text) > LONGEST_TEXT:
            raise ValueError(
                f"{name} {text[:64]!r}... is longer than {LONGEST_TEXT} characters"
            )  # a part is no identity
    return Datapoint(
        row.id_container_data_latest,
        row.source_device or "unknown",
        row.datatype,
        timestamp,
        row.min_val,
        row.max_val,
        row.avg_val,
        1 if row.count_val is None else row.count_val,
        row.id_group if isinstance(row.id_group, str) else None,
    )


def _group(row: _GroupRow) -> tuple[str, str | None]:
    label = None if row.label is None else _shortened(row.label)
    return _checked_id("id_group", str(row.id_group if row.id_group is not None else row.id)), label


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _checked_id(name: str, value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(f"{name} {value[:64]!r} is not an id")
    return value


def _time(name: str, seconds: float) -> float:
    if not EARLIEST < seconds < LATEST:
        raise ValueError(f"{name} {seconds} is out of range")
    return seconds
