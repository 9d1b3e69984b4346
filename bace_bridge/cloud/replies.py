"""A page of BACE's JSON, and its rows of datapoints and devices; what cannot be read is named, never guessed.

Tolerant where the API is loosely typed: unknown fields, numbers as strings and the other way round, labels with half a
character, rows in an object. Pure.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from bace_bridge.cloud.failures import instead_of_json
from bace_bridge.errors import UnexpectedReply
from bace_bridge.formats import EARLIEST, LATEST, decoded_leniently
from bace_bridge.polling.rules.changes import Page
from bace_bridge.polling.rules.datapoints import Datapoint

T = TypeVar("T")

Row = TypeVar("Row")

LARGEST = 2**53 - 1
"""The largest integer that every reader of JSON holds; SQLite and our own encoder end at 64 bits."""

MOST_DIGITS = 15
"""Digits of a figure in a text, so that it is no more than LARGEST."""

MOST_SAMPLES = 2**40
"""Samples in one datapoint: a year of some 30 kHz. Sums of them stay below 64 bits."""

Code = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]

Samples = Annotated[int, msgspec.Meta(ge=-MOST_SAMPLES, le=MOST_SAMPLES)]

LONGEST_TEXT = 256
"""Characters of a label, or of the name of a person, a series or a source device; every event repeats them."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

REPLACED = "\ufffd"
"""Stands where a text had something that is no character."""


class _Frame(msgspec.Struct, Generic[Row]):
    items: list[Row] | dict[str, Row]
    meta: Any = msgspec.field(name="_meta", default=None)

    @property
    def rows(self) -> Sequence[Row]:
        """In order. A server that keeps the keys of its arrays has an object where a list is meant."""
        return list(self.items.values()) if isinstance(self.items, dict) else self.items


def parse_page(body: bytes, headers: Mapping[str, str], row_type: type[Row], convert: Callable[[Row], T]) -> Page[T]:
    # All rows at once, which is much faster; one by one only where a row is odd, to find out which.
    try:
        frame = decoded_leniently(body, _Frame[row_type], strict=False)  # type: ignore[valid-type]  # made at run time
        items = tuple(convert(row) for row in frame.rows)
    except (msgspec.DecodeError, ValueError):
        return _parse_row_by_row(body, headers, row_type, convert)
    return _page(items, len(items), frame.meta, headers, ())


def _parse_row_by_row(
    body: bytes, headers: Mapping[str, str], row_type: type[Row], convert: Callable[[Row], T]
) -> Page[T]:
    try:
        frame = decoded_leniently(body, _Frame[msgspec.Raw], strict=False)
    except msgspec.DecodeError as error:
        raise UnexpectedReply(f"a page cannot be read: {error}{instead_of_json(body)}") from None
    items: list[T] = []
    unreadable: list[str] = []
    for index, raw in enumerate(frame.rows):
        try:
            items.append(convert(decoded_leniently(raw, row_type, strict=False)))
        except (msgspec.DecodeError, ValueError) as error:
            unreadable.append(f"items[{index}]: {error}")
    if unreadable and not items:
        raise UnexpectedReply(f"no row of the page can be read: {unreadable[0]}")
    return _page(tuple(items), len(frame.rows), frame.meta, headers, tuple(unreadable))


def _page(
    items: tuple[T, ...],
    count: int,
    meta: Any,
    headers: Mapping[str, str],
    unreadable: tuple[str, ...],
) -> Page[T]:
    # A figure that is none is not there: it costs neither the rows nor the other figures. Each is in `_meta` and in a
    # header, and a proxy may strip one of them.
    figures = meta if isinstance(meta, dict) else {}
    total = _first(figures.get("totalCount"), headers.get("X-Pagination-Total-Count"))
    per_page = _first(figures.get("perPage"), headers.get("X-Pagination-Per-Page")) or None  # 0 is no size
    page_count = _first(figures.get("pageCount"), headers.get("X-Pagination-Page-Count"))
    # Where `pageCount` alone is missing, the walk would have to find its end by an empty page, which never comes.
    if not page_count and count and total and per_page:
        page_count = -(-total // per_page)
    return Page(
        items=items,
        count=count,
        page=_first(figures.get("currentPage"), headers.get("X-Pagination-Current-Page")) or None,  # there is no page 0
        page_count=page_count,
        total=total,
        unreadable=unreadable,
        per_page=per_page,
    )


def _first(value: Any, header: str | None) -> int | None:
    found = figure(str(value))
    return found if found is not None or header is None else figure(header)


def figure(text: str) -> int | None:
    """None where it is none, or a larger one than can be meant."""
    return int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else None


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
    # A serializer may keep the keys of an array that was filtered, and then JSON has an object in the list's stead.
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


def text_of(value: Any) -> str | None:
    """A label, which may be a number; None for what is no text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


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
    # It identifies a series: shortened, or with U+FFFD for what is no character, two of them might become one.
    text = str(value)
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{name} is longer than {LONGEST_TEXT} characters")
    if REPLACED in text:
        raise ValueError(f"{name} holds something that is no character")
    return text


def _value(value: float | None) -> float | None:
    # PostgreSQL's NaN and infinity come as the texts "NaN" and "Infinity", which JSON's numbers cannot be. The
    # datapoint is there all the same.
    return value if value is not None and math.isfinite(value) else None


def _group(row: _GroupRow) -> tuple[str, str | None]:
    return checked_id("id_group", row.id_group if row.id_group is not None else row.id), text_of(row.label)


def checked_id(name: str, value: str | int | None) -> str:
    text = str(value)
    if value is None or not _ID.fullmatch(text):
        raise ValueError(f"{name} is not an id")
    return text
