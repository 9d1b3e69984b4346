"""The endpoints of the simulated API."""

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from aiohttp import web

from bace_bridge.simulator import datapoints, query, replies, shelf
from bace_bridge.simulator.answers import (
    API,
    TOKEN,
    ApiError,
    as_understood,
    base_of,
    collection,
    order_of,
    pairs_of,
    reply,
    rules,
)
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Session
from bace_bridge.simulator.query import All, Kind, Order, Pairs, Reader, last
from bace_bridge.simulator.replies import (
    SESSION_EXPANDS,
    SESSION_LABELS,
    changed,
    plain_group_row,
    point_row,
    session_row,
)
from bace_bridge.simulator.shelf import Recall, shuffled, sort_key

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
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
        return reply(answer.body, status=answer.status, headers=headers)

    async def list_sessions(self, request: web.Request) -> web.Response:
        quirks, pairs = self._cloud.quirks, pairs_of(request)
        cloud = self._cloud.as_listed()
        by = order_of(pairs, shelf.FIELDS, _NEWEST_FIRST, quirks)
        condition = self._filter(pairs, shelf.FIELDS, ignored=quirks.filters_ignored)
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
            page_rules=rules(quirks, default=20, maximum=100),
            beside={"expand": SESSION_EXPANDS, "labels": SESSION_LABELS},
            altered=datapoints.sessions if quirks.duplicate_sessions else list,
        )

    async def view_session(self, request: web.Request) -> web.Response:
        pairs = pairs_of(request)
        session = self._session(last(pairs, "id") or "")
        base = base_of(request, self._cloud.quirks)
        return reply(self._row(self._cloud, session, base, self._expands(pairs)))

    async def list_points(self, request: web.Request) -> web.Response:
        quirks, pairs = self._cloud.quirks, pairs_of(request)
        cloud = self._cloud.as_listed()
        by = order_of(pairs, datapoints.SORTABLE, datapoints.DEFAULT_ORDER, quirks)
        question = datapoints.asked(self._filter(pairs, datapoints.FIELDS))
        if quirks.data_filters_ignored:
            question = datapoints.asked(All(question.sessions))
        if quirks.session_filter_ignored:
            question = replace(question, sessions=())
        samples, named = cloud.samples, question.named_sessions()
        version = samples.version if named is None else tuple(samples.version_of(one) for one in named)
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
            page_rules=rules(quirks, default=500, maximum=1000),
        )

    async def list_groups(self, request: web.Request) -> web.Response:
        quirks, pairs = self._cloud.quirks, pairs_of(request)
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
            page_rules=rules(quirks, default=20, maximum=100),
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
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        for chunk in replies.chunks(self._cloud, session):
            await response.write(chunk.encode())
        await response.write_eof()
        return response

    def _row(self, cloud: SimulatedCloud, session: Session, base: str, expand: list[str]) -> dict[str, Any]:
        for broken in cloud.quirks.broken_rows:
            if session.id_data_session == (cloud.sessions.by_start(int(broken)) if broken.isdigit() else broken):
                raise ApiError(500, "An internal server error occurred.")
        return session_row(cloud, session, base, expand)

    def _filter(self, pairs: Pairs, kinds: Mapping[str, Kind], *, ignored: bool = False) -> All:
        if ignored:
            return All()
        return as_understood(query.parse(query.nested(pairs, "filter"), kinds), kinds, self._cloud.quirks)

    def _session(self, identifier: str) -> Session:
        found = None if self._cloud.is_in_maintenance else self._cloud.sessions.get(identifier)
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
        key = reader(by.field) if by else lambda _: None
        return shuffled(rows, key, self._cloud.random)


def _question(pairs: Pairs) -> Pairs:
    """What the rows depend on, whichever page of them is asked for."""
    return tuple(pair for pair in pairs if pair[0] not in _OF_THE_PAGE)
