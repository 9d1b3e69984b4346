from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web

from bace_bridge.simulator.answers import reply
from bace_bridge.simulator.query import Page, PageRules, Pairs, page
from bace_bridge.simulator.quirks import Quirks

T = TypeVar("T")


def pairs_of(request: web.Request) -> Pairs:
    return tuple(request.query.items())


def base_of(request: web.Request, quirks: Quirks) -> str:
    """What links start with."""
    return "http://bace-api.internal:8080" if quirks.internal_links else str(request.url.origin())


def rules(quirks: Quirks, *, default: int, maximum: int) -> PageRules:
    most = min(maximum, quirks.per_page_max or maximum)
    return PageRules(default=min(default, most), maximum=most, clamp=quirks.page_clamp)


def collection(
    request: web.Request,
    rows: Sequence[T],
    as_json: Callable[[T], Any],
    *,
    quirks: Quirks,
    page_rules: PageRules,
    beside: Mapping[str, Any] | None = None,
) -> web.Response:
    """One page of the rows, in the form of every BACE collection."""
    pairs = pairs_of(request)
    shown = page(pairs, len(rows), page_rules)
    body = {
        "items": [as_json(row) for row in rows[shown.rows]],
        "_links": _links(request, pairs, shown, quirks),
        "_meta": shown.meta,
        **(beside or {}),
    }
    headers = {
        "X-Pagination-Total-Count": str(shown.total),
        "X-Pagination-Page-Count": str(shown.count),
        "X-Pagination-Current-Page": str(shown.number),
        "X-Pagination-Per-Page": str(shown.per_page),
    }
    return reply(request, body, headers=headers)


def _links(request: web.Request, pairs: Pairs, shown: Page, quirks: Quirks) -> Mapping[str, Any]:
    place = f"{base_of(request, quirks)}{request.path}"
    kept = [(name, value) for name, value in pairs if name != "page"]
    return {
        name: {"href": f"{place}?{urlencode([*kept, ('page', str(number))])}"}
        for name, number in shown.neighbours.items()
    }
