"""BACE's resources: data sessions, downsampled datapoints and groups, with their endpoints, page sizes and JSON.

The JSON is read tolerantly where the API is loosely typed: unknown fields, numbers as strings and the other way round,
labels with half a character, rows in an object. What cannot be read is named, never guessed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from bace_bridge.cloud.failures import instead_of_json
from bace_bridge.cloud.http import CloudHttp, Download, Params
from bace_bridge.cloud.session_rows import (
    ID,
    LONGEST_TEXT,
    NOT_A_ROW,
    Code,
    SessionRow,
    checked_id,
    read_tolerantly,
    session_of,
    text_of,
)
from bace_bridge.errors import UnexpectedReply
from bace_bridge.formats import EARLIEST, LATEST, decoded_leniently
from bace_bridge.polling.rules.changes import LostRow, Page, SeenSession, Urgency
from bace_bridge.polling.rules.datapoints import Datapoint

SESSIONS = "/api/v2/data-session"
ONE_SESSION = "/api/v2/data-session/view"
DATAPOINTS = "/api/v2/data-downsampled"
GROUPS = "/api/v2/group"

SESSIONS_PER_PAGE = 100
DATAPOINTS_PER_PAGE = 5000
"""What is requested; the server clamps both to its own limits and says so in `_meta`."""


def csv_url(base_url: str, session_id: str) -> str:
    return f"{base_url.rstrip('/')}{SESSIONS}/{session_id}/download-csv"


class BaceCloud:
    """What the bridge asks of the cloud. Every method raises CloudErrors only."""

    def __init__(self, http: CloudHttp) -> None:
        self._http = http

    def now(self) -> float:
        """Epoch seconds by the cloud's clock, as far as its answers show."""
        return self._http.now()

    async def session_page(
        self, params: Params, page: int, *, per_page: int = SESSIONS_PER_PAGE, expand: bool = True
    ) -> Page[SeenSession]:
        """A page of the list; `expand` brings the labels of the groups along, where the server knows that."""
        more = [("expand", "group")] if expand else []
        # A page beyond the last one is answered with the last one (Yii's validatePage): see `polling.reading.pages`.
        query = [*params, *more, ("per-page", str(per_page)), ("page", str(page))]
        reply = await self._http.get(SESSIONS, query, urgency=Urgency.SESSIONS)
        return parse_sessions(reply.body, reply.headers)

    async def session(self, session_id: str) -> SeenSession:
        """One data session. Raises CloudGone where it cannot be seen any more."""
        query = [("id", session_id), ("expand", "group")]
        seen = parse_session((await self._http.get(ONE_SESSION, query, urgency=Urgency.SESSIONS)).body)
        # A server that ignores `id` shows some session or other: that says nothing of this one.
        if seen.session.id.lower() != session_id.lower():
            raise UnexpectedReply(f"got another data session instead of {session_id}")
        return seen

    def csv(self, session_id: str) -> AbstractAsyncContextManager[Download]:
        """The CSV of a data session, of any size. A download may wait: it comes after all that is polled."""
        path = csv_url("", session_id)
        return self._http.download(path, endpoint=csv_url("", "*"), urgency=Urgency.BACKLOG)

    async def group_page(self, page: int) -> Page[tuple[str, str | None]]:
        """Ids and labels of groups, as urgent as the session list: a poll of it waits for them."""
        # Sorted, since pages of a list without an order need not be cut from the same one (PostgreSQL).
        query = [("sort", "id_group"), ("per-page", "100"), ("page", str(page))]
        reply = await self._http.get(GROUPS, query, urgency=Urgency.SESSIONS)
        return parse_groups(reply.body, reply.headers)

    async def point_page(self, params: Params, page: int, *, urgency: Urgency) -> Page[Datapoint]:
        query = [*params, ("per-page", str(DATAPOINTS_PER_PAGE)), ("page", str(page))]
        reply = await self._http.get(DATAPOINTS, query, urgency=urgency)
        return parse_datapoints(reply.body, reply.headers)

    async def series_axes(self, session_id: str, *, urgency: Urgency) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The datatypes and the source devices of a data session, as far as the cloud names them."""
        query = [("id", session_id), ("expand", "datatypes,physicalDevices")]
        return parse_series_axes((await self._http.get(ONE_SESSION, query, urgency=urgency)).body)


T = TypeVar("T")
Row = TypeVar("Row")

MOST_DIGITS = 15
"""Digits of a figure in a text, so that it is no more than any reader of JSON holds."""


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
        typed = decoded_leniently(body, _Frame[row_type], strict=False)  # type: ignore[valid-type]  # made at run time
        found = tuple(convert(row) for row in typed.rows)
    except NOT_A_ROW:
        pass
    else:
        return _page(found, len(found), typed.meta, headers, ())
    try:
        frame = decoded_leniently(body, _Frame[msgspec.Raw], strict=False)
    except msgspec.DecodeError as error:
        raise UnexpectedReply(f"a page cannot be read: {error}{instead_of_json(body)}") from None
    items: list[T] = []
    unreadable: list[str] = []
    for index, raw in enumerate(frame.rows):
        try:
            items.append(convert(decoded_leniently(raw, row_type, strict=False)))
        except NOT_A_ROW as error:
            unreadable.append(f"items[{index}]: {error}")
    if unreadable and not items:
        raise UnexpectedReply(f"no row of the page can be read: {unreadable[0]}")
    return _page(tuple(items), len(frame.rows), frame.meta, headers, tuple(unreadable))


def _page(
    items: tuple[T, ...], count: int, meta: Any, headers: Mapping[str, str], unreadable: tuple[str, ...]
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


def parse_sessions(body: bytes, headers: Mapping[str, str]) -> Page[SeenSession]:
    """A page; where a row is odd, `lost` and `odd` name what could not be read."""
    # First as if all were well, which is fast. Then field by field: an odd label costs the label, not the session.
    try:
        page = parse_page(body, headers, SessionRow, session_of)
    except UnexpectedReply:
        pass
    else:
        if not page.unreadable:
            return page
    read = parse_page(body, headers, msgspec.Raw, read_tolerantly)
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
        return session_of(decoded_leniently(body, SessionRow, strict=False))
    except NOT_A_ROW as error:
        read = read_tolerantly(msgspec.Raw(body)).session
        if isinstance(read, SeenSession):
            return read
        raise UnexpectedReply(f"a data session cannot be read: {error}{instead_of_json(body)}") from None


MOST_SAMPLES = 2**40
"""Samples in one datapoint: a year of some 30 kHz. Sums of them stay below 64 bits."""

Samples = Annotated[int, msgspec.Meta(ge=-MOST_SAMPLES, le=MOST_SAMPLES)]

REPLACED = "\ufffd"
"""Stands where a text had something that is no character."""


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
    return tuple(sorted(datatypes)), tuple(sorted(device for device in devices if ID.fullmatch(device)))


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
    return parse_page(
        body,
        headers,
        _GroupRow,
        lambda row: (checked_id("id_group", row.id if row.id_group is None else row.id_group), text_of(row.label)),
    )


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
        raise ValueError(f"{name} contains an invalid character")
    return text


def _value(value: float | None) -> float | None:
    # PostgreSQL's NaN and infinity come as the texts "NaN" and "Infinity", which JSON's numbers cannot be. The
    # datapoint is there all the same.
    return value if value is not None and math.isfinite(value) else None
