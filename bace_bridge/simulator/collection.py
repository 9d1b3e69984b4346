from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web

from bace_bridge.simulator import php
from bace_bridge.simulator.answers import reply
from bace_bridge.simulator.query import Order, Page, PageRules, Pairs, last, order, page
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
    body = {
        "items": _items([as_json(row) for row in altered(rows[shown.rows])], quirks),
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
    return reply(request, body, headers=headers)


def _items(rows: list[Any], quirks: Quirks) -> list[Any] | dict[str, Any]:
    """The rows; from a serializer that keeps keys an object, whose keys have gaps."""
    return {str(5 + 4 * place): row for place, row in enumerate(rows)} if quirks.object_items else rows


def _links(place: str, pairs: Pairs, shown: Page, page_rules: PageRules) -> Mapping[str, str]:
    """Each one repeats the whole query; as in Yii, `per-page` is there unless it is the default."""
    size = {} if shown.per_page == page_rules.default else {"per-page": str(shown.per_page)}
    others = [(name, value) for name, value in pairs if name not in {"page", "per-page"}]
    return {
        name: f"{place}?{php.built_query([*others, *size.items(), ('page', str(number))])}"
        for name, number in shown.neighbours.items()
    }
