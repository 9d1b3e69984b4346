"""The endpoints of the simulated API."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from aiohttp import web

from bace_bridge.simulator import datapoints, query, replies, shelf
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Session
from bace_bridge.simulator.query import (
    All,
    Compare,
    FilterRefused,
    Kind,
    Order,
    Page,
    PageRules,
    Pairs,
    Reader,
    last,
)
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.replies import (
    API,
    SESSION_EXPANDS,
    SESSION_LABELS,
    TOKEN,
    ApiError,
    changed,
    plain_group_row,
    point_row,
    reply,
    session_row,
)
from bace_bridge.simulator.shelf import Recall, sort_key

T = TypeVar("T")

_GROUP_FIELDS = {
    "id": Kind.INTEGER,
    "id_group": Kind.UUID,
    "label": Kind.TEXT,
    "type": Kind.TEXT,
    "subtype": Kind.TEXT,
    "created_at": Kind.INTEGER,
    "deleted_at": Kind.INTEGER,
}
_BY_LABEL = Order("label")
_NEWEST_FIRST = Order("start", descending=True)
_OF_THE_PAGE = frozenset(("page", "per-page", "expand"))


class Routes:
    def __init__(self, cloud: SimulatedCloud) -> None:
        self._cloud = cloud
        self._sessions: Recall[list[Session]] = Recall()
        self._points: Recall[list[datapoints.Row]] = Recall()

    def table(self) -> list[web.RouteDef]:
        return [
            web.post(TOKEN, self.token),
            web.get(f"{API}data-session", self.list_sessions),
            web.get(f"{API}data-session/view", self.view_session),
            web.get(f"{API}data-session/{{id}}/download-csv", self.download_csv),
            web.get(f"{API}data-downsampled", self.list_points),
            web.get(f"{API}group", self.list_groups),
        ]

    async def token(self, request: web.Request) -> web.Response:
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        answer = self._cloud.tokens.answer(form)
        # As RFC 6749 asks of every answer with a token.
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
        return reply(answer.body, status=answer.status, headers=headers)

    async def list_sessions(self, request: web.Request) -> web.Response:
        quirks, pairs = self._cloud.quirks, tuple(request.query.items())
        cloud = self._cloud.as_listed()
        by = order_of(pairs, shelf.FIELDS, _NEWEST_FIRST, quirks)
        condition = self._filter(pairs, shelf.FIELDS, ignored=quirks.filters_ignored)
        # The version changes with each sample of a running session: pages of one walk may come from two selections.
        rows = self._sessions.of(
            (cloud.sessions.version, *_question(pairs)), lambda: cloud.sessions.select(condition, by)
        )
        rows = self._tied(rows, by, shelf.reader)
        base, expand = base_of(request, quirks), self._expands(pairs)
        return collection(
            request,
            rows,
            lambda session: self._row(cloud, session, base, expand),
            quirks=quirks,
            default_size=20,
            largest_size=100,
            beside={"expand": SESSION_EXPANDS, "labels": SESSION_LABELS},
            altered=datapoints.sessions if quirks.duplicate_sessions else list,
        )

    async def view_session(self, request: web.Request) -> web.Response:
        pairs = tuple(request.query.items())
        session = self._session(last(pairs, "id") or "")
        base = base_of(request, self._cloud.quirks)
        return reply(self._row(self._cloud, session, base, self._expands(pairs)))

    async def list_points(self, request: web.Request) -> web.Response:
        quirks, pairs = self._cloud.quirks, tuple(request.query.items())
        cloud = self._cloud.as_listed()
        by = order_of(pairs, datapoints.SORTABLE, datapoints.DEFAULT_ORDER, quirks)
        question = datapoints.asked(self._filter(pairs, datapoints.FIELDS))
        # After the filter was read: a server that ignores a filter still refuses one that it does not know.
        if quirks.data_filters_ignored:
            question = datapoints.asked(All(question.sessions))
        if quirks.session_filter_ignored:
            question = replace(question, sessions=())
        samples, named = cloud.samples, question.named_sessions()
        version = samples.version if named is None else tuple(samples.versions.get(one, 0) for one in named)
        # Without an upper bound the resolution depends on how long ago the lower one was.
        width = datapoints.width(cloud, question)
        rows = self._points.of((version, width, *_question(pairs)), lambda: datapoints.rows(cloud, question, by))
        if quirks.duplicate_points or quirks.conflicting_points:
            rows = list(datapoints.points(rows, conflicting=quirks.conflicting_points))
        return collection(
            request,
            self._tied(rows, by, datapoints.reader),
            lambda row: point_row(row, quirks),
            quirks=quirks,
            default_size=500,
            largest_size=1000,
        )

    async def list_groups(self, request: web.Request) -> web.Response:
        quirks, pairs = self._cloud.quirks, tuple(request.query.items())
        base = base_of(request, quirks)
        rows = [plain_group_row(device, base) for device in self._cloud.devices.values()]
        test = query.holds(self._filter(pairs, _GROUP_FIELDS), itemgetter)
        kept = [row for row in rows if test(row) and not self._cloud.is_in_maintenance]
        by = order_of(pairs, _GROUP_FIELDS, _BY_LABEL, quirks)
        if quirks.unstable_order:
            self._cloud.random.shuffle(kept)
        if by is not None:
            kept.sort(key=sort_key(by, itemgetter), reverse=by.descending)
        return collection(
            request,
            kept,
            lambda row: changed(row, quirks),
            quirks=quirks,
            default_size=20,
            largest_size=100,
        )

    async def download_csv(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request.match_info["id"])
        name = f"data-session-{session.id_data_session}.csv"
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/csv; charset=UTF-8",
                "Content-Disposition": f'attachment; filename="{name}"',
            }
        )
        # The status is on its way before the first line is made: what fails later can only break the text off.
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        for chunk in replies.chunks(self._cloud, session):
            await response.write(chunk.encode())
            # `write` alone lets no other task run: a client that reads as fast as this writes would hold up all others.
            await asyncio.sleep(0)
        if self._cloud.quirks.csv_cut and request.transport is not None:
            request.transport.abort()
        else:
            await response.write_eof()
        return response

    def _row(self, cloud: SimulatedCloud, session: Session, base: str, expand: list[str]) -> dict[str, Any]:
        # Yii renders a page as a whole, so one row that cannot be rendered costs all of them.
        for broken in cloud.quirks.broken_rows:
            if session.id_data_session == (cloud.sessions.by_start(int(broken)) if broken.isdigit() else broken):
                raise ApiError(500, "An internal server error occurred.")
        return session_row(cloud, session, base, expand)

    def _filter(self, pairs: Pairs, kinds: Mapping[str, Kind], *, ignored: bool = False) -> All:
        if ignored:
            return All()
        return as_understood(query.parse(query.nested(pairs, "filter"), kinds), kinds, self._cloud.quirks)

    def _session(self, identifier: str) -> Session:
        found = None if self._cloud.is_in_maintenance else self._cloud.sessions.by_id.get(identifier)
        if found is None and self._cloud.quirks.bad_uuid_500 and not query.is_uuid(identifier):
            raise ApiError(500, "Database Exception: invalid input syntax for type uuid")
        if found is None:
            raise ApiError(404, f"Object not found: {identifier}")
        return found

    def _expands(self, pairs: Pairs) -> list[str]:
        if self._cloud.quirks.no_expand:
            return []
        return [name.strip() for name in (last(pairs, "expand") or "").split(",")]

    def _tied(self, rows: list[Any], by: Order | None, reader: Reader) -> list[Any]:
        if self._cloud.is_in_maintenance:
            return []
        if not (self._cloud.quirks.tie_shuffle or self._cloud.quirks.unstable_order):
            return rows
        # Those of equal key in any order: what a database without a tie-breaker gives.
        shuffled: list[Any] = []
        for _, tied in groupby(rows, reader(by.field) if by else lambda _: None):
            group = [*tied]
            self._cloud.random.shuffle(group)
            shuffled += group
        return shuffled


def _question(pairs: Pairs) -> Pairs:
    """What the rows depend on, whichever page of them is asked for."""
    return tuple(pair for pair in pairs if pair[0] not in _OF_THE_PAGE)


_LARGEST_INT4 = 2**31 - 1
_RANGES = frozenset(("gt", "gte", "lt", "lte"))
_LISTS = frozenset(("in", "nin"))


def as_understood(condition: All, kinds: Mapping[str, Kind], quirks: Quirks) -> All:
    """The condition that a server with these quirks applies.

    Raises:
        FilterRefused: it does not support an operator.
        ApiError: its database breaks on a value.
    """
    compared = [
        (part, part.value if isinstance(part.value, tuple) else (part.value,)) for part in query.comparisons(condition)
    ]
    if quirks.bad_uuid_500 and any(
        kinds[part.field] is Kind.UUID and any(isinstance(one, str) and not query.is_uuid(one) for one in values)
        for part, values in compared
    ):
        raise ApiError(500, "Database Exception: invalid input syntax for type uuid")
    for part, values in compared:
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


def base_of(request: web.Request, quirks: Quirks) -> str:
    """What links start with."""
    return "http://bace-api.internal:8080" if quirks.internal_links else str(request.url.origin())


def order_of(pairs: Pairs, known: Iterable[str], default: Order, quirks: Quirks) -> Order | None:
    """The order of the rows; None: there is none."""
    asked = [] if quirks.sort_ignored else pairs
    if quirks.unstable_order and last(asked, "sort") is None:
        return None
    return query.order(asked, known, default)


def collection(
    request: web.Request,
    rows: Sequence[T],
    as_json: Callable[[T], Any],
    *,
    quirks: Quirks,
    default_size: int,
    largest_size: int,
    beside: Mapping[str, Any] | None = None,
    altered: Callable[[Sequence[T]], Iterable[T]] = lambda page: page,
) -> web.Response:
    """One page of the rows, in the form of every BACE collection; `altered` changes the rows of that page."""
    pairs = tuple(request.query.items())
    # A server with a lower limit clamps the default as well: leaving the number out brings no more rows.
    most = min(largest_size, quirks.per_page_max or largest_size)
    page_rules = PageRules(default=min(default_size, most), maximum=most, clamp=quirks.page_clamp)
    shown = query.page(pairs, len(rows), page_rules)
    links = _links(f"{base_of(request, quirks)}{request.path}", pairs, shown, page_rules)
    items = [as_json(row) for row in altered(rows[shown.rows])]
    body = {
        # From a serializer that keeps keys an object, whose keys have gaps.
        "items": {str(5 + 4 * index): row for index, row in enumerate(items)} if quirks.object_items else items,
        "_links": {name: {"href": url} for name, url in links.items()},
        "_meta": {
            "totalCount": shown.total,
            "pageCount": shown.count,
            "currentPage": shown.number,
            "perPage": shown.per_page,
        },
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


def _links(address: str, pairs: Pairs, shown: Page, page_rules: PageRules) -> Mapping[str, str]:
    """Each one repeats the whole query; as in Yii, `per-page` is there unless it is the default."""
    size = {} if shown.per_page == page_rules.default else {"per-page": str(shown.per_page)}
    others = [(name, value) for name, value in pairs if name not in {"page", "per-page"}]
    return {
        name: f"{address}?{query.built_query([*others, *size.items(), ('page', str(number))])}"
        for name, number in shown.neighbours.items()
    }
