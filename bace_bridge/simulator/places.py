"""The lesser endpoints: groups, physical devices, the user, events."""

import uuid
from operator import itemgetter
from typing import Any

from aiohttp import web

from bace_bridge.simulator import filters, php
from bace_bridge.simulator.answers import ApiError, reply
from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.collection import base_of, collection, order_of, pairs_of, rules
from bace_bridge.simulator.filter_quirks import as_understood
from bace_bridge.simulator.filters import Kind
from bace_bridge.simulator.gate import API
from bace_bridge.simulator.query import Order, last
from bace_bridge.simulator.replies import (
    changed,
    latest_sessions,
    physical_device_rows,
    plain_group_row,
    session_row,
)
from bace_bridge.simulator.shelf import sort_key

_GROUP_FIELDS = {
    "id": Kind.INTEGER,
    "id_group": Kind.UUID,
    "label": Kind.TEXT,
    "type": Kind.TEXT,
    "subtype": Kind.TEXT,
    "created_at": Kind.INTEGER,
    "deleted_at": Kind.INTEGER,
}
_DEVICE_FIELDS = {
    "id_physical_device": Kind.UUID,
    "id_device_type": Kind.TEXT,
    "id_group": Kind.UUID,
    "label": Kind.TEXT,
    "created_at": Kind.INTEGER,
}
_EVENT_FIELDS = {
    "id_event": Kind.UUID,
    "id_group": Kind.UUID,
    "source_device": Kind.UUID,
    "event_type": Kind.TEXT,
    "occurred_at": Kind.INTEGER,
}
_BY_LABEL = Order("label")


class Places:
    def __init__(self, cloud: SimulatedCloud) -> None:
        self._cloud = cloud

    def table(self) -> list[web.RouteDef]:
        return [
            web.get(f"{API}group", self.list_groups),
            web.get(f"{API}group/view", self.view_group),
            web.get(f"{API}physical-device", self.list_devices),
            web.get(f"{API}user/self", self.user),
            web.get(f"{API}event", self.list_events),
        ]

    async def list_groups(self, request: web.Request) -> web.Response:
        base = base_of(request, self._cloud.quirks)
        rows = [plain_group_row(device, base) for device in self._cloud.devices.values()]
        if "latestSession" in (last(pairs_of(request), "expand") or "") and not self._cloud.quirks.no_expand:
            newest = latest_sessions(self._cloud.sessions)
            for row in rows:
                session = newest.get(row["id_group"])
                row["latestSession"] = session and session_row(self._cloud, session, base, ())
        return self._listed(request, rows, _GROUP_FIELDS)

    async def view_group(self, request: web.Request) -> web.Response:
        device = self._cloud.devices.get(last(pairs_of(request), "id") or "")
        if device is None:
            raise ApiError(404, "Object not found")
        row = plain_group_row(device, base_of(request, self._cloud.quirks))
        return reply(request, changed(row, self._cloud.quirks))

    async def list_devices(self, request: web.Request) -> web.Response:
        base = base_of(request, self._cloud.quirks)
        rows = [row for device in self._cloud.devices.values() for row in physical_device_rows(device, base)]
        return self._listed(request, rows, _DEVICE_FIELDS)

    async def user(self, request: web.Request) -> web.Response:
        name = self._cloud.credentials.username
        identifier = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        return reply(request, {"user": {"id_user": identifier, "username": name, "email": name}})

    async def list_events(self, request: web.Request) -> web.Response:
        return self._listed(request, [], _EVENT_FIELDS)

    def _listed(self, request: web.Request, rows: list[dict[str, Any]], kinds: dict[str, Kind]) -> web.Response:
        quirks, pairs = self._cloud.quirks, pairs_of(request)
        condition = as_understood(filters.parse(php.nested(pairs, "filter"), kinds), kinds, quirks)
        test = filters.holds(condition, itemgetter)
        kept = [row for row in rows if test(row) and not self._cloud.is_in_maintenance]
        by = order_of(pairs, kinds, _BY_LABEL, quirks)
        if quirks.unstable_order:
            self._cloud.random.shuffle(kept)
        if by is not None and rows:
            kept.sort(key=sort_key(by, itemgetter), reverse=by.descending)
        return collection(
            request,
            kept,
            lambda row: changed(row, quirks),
            quirks=quirks,
            page_rules=rules(quirks, default=20, maximum=100),
        )
