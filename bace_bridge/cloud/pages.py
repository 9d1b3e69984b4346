"""A page of a collection: the rows, whatever holds them, and what the server says of its pages. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from bace_bridge.cloud.failures import instead_of_json
from bace_bridge.errors import UnexpectedReply
from bace_bridge.formats import decoded_leniently
from bace_bridge.polling.rules.changes import Page

T = TypeVar("T")
Row = TypeVar("Row")

LARGEST = 2**53 - 1
"""The largest integer that every reader of JSON holds; SQLite and our own encoder end at 64 bits."""

MOST_DIGITS = 15
"""Digits of a figure in a text, so that it is no more than LARGEST."""


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
