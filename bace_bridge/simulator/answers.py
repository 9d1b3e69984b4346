"""aiohttp responses in the formats of the API."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from bace_bridge.simulator import query
from bace_bridge.simulator.query import (
    All,
    Compare,
    Condition,
    FilterRefused,
    Kind,
    Order,
    Page,
    PageRules,
    Pairs,
    has_bad_uuid,
    last,
    order,
    page,
)
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.replies import error_body

API = "/api/v2/"
TOKEN = "/oauth2/token"  # noqa: S105 - a path, no secret


class ApiError(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def accepts_json(accept: str | None) -> bool:
    """Whether an Accept header takes JSON; the XML of the real API is left out, for nothing asks for it."""
    kinds = {part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")}
    return not kinds.isdisjoint(("application/json", "application/*", "*/*"))


def reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    sent = {"Content-Type": "application/json; charset=UTF-8", "X-Powered-By": "PHP/8.3.6", "Vary": "Accept"}
    return web.Response(status=status, body=msgspec.json.encode(body), headers={**sent, **(headers or {})})


def refusal(error: ApiError) -> web.Response:
    return reply(error_body(error.status, error.message), status=error.status, headers=error.headers)


def invalid(message: str, field: str = "filter") -> web.Response:
    """422 is the one error whose body is an array."""
    return reply([{"field": field, "message": message}], status=422)


def no_such_route() -> web.Response:
    """An unknown route is answered by the web site, not by the API."""
    title = "Not Found (#404)"
    page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return web.Response(status=404, text=page, content_type="text/html")


def bad_gateway() -> web.Response:
    """What nginx answers when it cannot take the answer of the PHP behind it."""
    says = "502 Bad Gateway"
    lines = (
        "<html>",
        f"<head><title>{says}</title></head>",
        "<body>",
        f"<center><h1>{says}</h1></center>",
        "<hr><center>nginx/1.24.0</center>",
        "</body>",
        "</html>",
        "",
    )
    return web.Response(status=502, text="\r\n".join(lines), content_type="text/html")


def header_bytes(headers: Mapping[str, str]) -> int:
    """The size of these headers as they are sent."""
    return sum(len(name) + len(": ") + len(value) + len("\r\n") for name, value in headers.items())


_LARGEST_INT4 = 2**31 - 1
_RANGES = frozenset(("gt", "gte", "lt", "lte"))
_LISTS = frozenset(("in", "nin"))


def as_understood(condition: All, kinds: Mapping[str, Kind], quirks: Quirks) -> All:
    """The condition that a server with these quirks applies.

    Raises:
        FilterRefused: it does not support an operator.
        ApiError: its database breaks on a value.
    """
    if quirks.bad_uuid_500 and has_bad_uuid(condition, kinds):
        raise ApiError(500, "Database Exception: invalid input syntax for type uuid")
    for part in _comparisons(condition):
        values = part.value if isinstance(part.value, tuple) else (part.value,)
        wide = [value for value in values if isinstance(value, int) and abs(value) > _LARGEST_INT4]
        if quirks.int4 and kinds[part.field] is Kind.INTEGER and wide:
            raise ApiError(500, f'Numeric value out of range: value "{wide[0]}" is out of range for type integer')
        unsupported = (quirks.no_in_filter and part.operator in _LISTS) or (
            quirks.gte_unsupported and part.field == "updated_at" and part.operator in _RANGES
        )
        if unsupported:
            raise FilterRefused(f'"{part.field}" does not support operator "{part.operator}".')
    ignored: list[Callable[[Compare], bool]] = []
    if quirks.in_filter_ignored:
        ignored.append(lambda part: part.operator in _LISTS)
    if quirks.end_filter_ignored:
        ignored.append(lambda part: part.field == "end")
    if quirks.updated_filter_ignored:
        ignored.append(lambda part: part.field == "updated_at")
    kept = [one for one in condition.parts if not (isinstance(one, Compare) and any(test(one) for test in ignored))]
    return All(tuple(kept))


def _comparisons(condition: Condition) -> Iterator[Compare]:
    if isinstance(condition, Compare):
        yield condition
        return
    for part in condition.parts:
        yield from _comparisons(part)


T = TypeVar("T")


def pairs_of(request: web.Request) -> Pairs:
    return tuple(request.query.items())


def base_of(request: web.Request, quirks: Quirks) -> str:
    """What links start with."""
    return "http://bace-api.internal:8080" if quirks.internal_links else str(request.url.origin())


def rules(quirks: Quirks, *, default: int, maximum: int) -> PageRules:
    most = min(maximum, quirks.per_page_max or maximum)
    return PageRules(default=min(default, most), maximum=most, clamp=quirks.page_clamp)


def order_of(pairs: Pairs, known: Iterable[str], default: Order, quirks: Quirks) -> Order | None:
    """The order of the rows; None: there is none."""
    asked = [] if quirks.sort_ignored else pairs
    if quirks.unstable_order and last(asked, "sort") is None:
        return None
    return order(asked, known, default)


def collection(
    request: web.Request,
    rows: Sequence[T],
    as_json: Callable[[T], Any],
    *,
    quirks: Quirks,
    page_rules: PageRules,
    beside: Mapping[str, Any] | None = None,
    altered: Callable[[Sequence[T]], Iterable[T]] = lambda page: page,
) -> web.Response:
    """One page of the rows, in the form of every BACE collection; `altered` changes the rows of that page."""
    pairs = pairs_of(request)
    shown = page(pairs, len(rows), page_rules)
    links = _links(f"{base_of(request, quirks)}{request.path}", pairs, shown, page_rules)
    items = [as_json(row) for row in altered(rows[shown.rows])]
    body = {
        # From a serializer that keeps keys an object, whose keys have gaps.
        "items": {str(5 + 4 * place): row for place, row in enumerate(items)} if quirks.object_items else items,
        "_links": {name: {"href": url} for name, url in links.items()},
        "_meta": shown.meta,
        **(beside or {}),
    }
    headers = {
        "X-Pagination-Total-Count": str(shown.total),
        "X-Pagination-Page-Count": str(shown.count),
        "X-Pagination-Current-Page": str(shown.number),
        "X-Pagination-Per-Page": str(shown.per_page),
        "Link": ", ".join(f"<{url}>; rel={name}" for name, url in links.items()),
    }
    return reply(body, headers=headers)


def _links(place: str, pairs: Pairs, shown: Page, page_rules: PageRules) -> Mapping[str, str]:
    """Each one repeats the whole query; as in Yii, `per-page` is there unless it is the default."""
    size = {} if shown.per_page == page_rules.default else {"per-page": str(shown.per_page)}
    others = [(name, value) for name, value in pairs if name not in {"page", "per-page"}]
    return {
        name: f"{place}?{query.built_query([*others, *size.items(), ('page', str(number))])}"
        for name, number in shown.neighbours.items()
    }
