"""Facts -> the JSON and the responses of the API, and what the quirks do to them."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from heapq import merge
from http import HTTPStatus
from itertools import repeat
from typing import Any

import msgspec
from aiohttp import web

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.datapoints import Row
from bace_bridge.simulator.facts import Device, Session
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.samples import name_of
from bace_bridge.simulator.shelf import FIELDS, reader

SESSION_EXPANDS = (
    "datatypes", "datatypesFilter", "creator", "updater", "physicalDevicesFilter",
    "physicalDevices", "fromDevice", "group", "dataIds",
)  # fmt: skip
_READERS = {field: reader(field) for field in FIELDS}
SESSION_LABELS = {
    "group.label": "Group",
    "person.label": "Person",
    "person.objectLink": "Person",
    "sourceDevicesString": "Source Devices",
    "datatypesString": "Datatypes",
    "ingestionStatusString": "Ingestion",
    "archivingStatusString": "Archived",
}


def session_row(cloud: SimulatedCloud, session: Session, base: str, expand: Iterable[str]) -> dict[str, Any]:
    address = f"{base}{API}data-session"
    row = {field: read(session) for field, read in _READERS.items()}
    row["_links"] = {
        "self": {"href": f"{address}/view?id={session.id_data_session}"},
        "index": {"href": f"{address}/index"},
    }
    wanted = [name for name in expand if name in SESSION_EXPANDS]
    if wanted:
        expanded = _expanded(cloud, session, base)
        row |= {name: expanded[name] for name in wanted}
    return changed(row, cloud.quirks)


def _expanded(cloud: SimulatedCloud, session: Session, base: str) -> dict[str, Any]:
    series = list(cloud.series_of(session))
    datatypes = sorted({one.datatype for one in series})
    sources = {one.source_device for one in series}
    device = cloud.devices[session.id_group]
    shapes: dict[str, Any] = {
        "datatypes": [{"datatype": datatype, "label": name_of(datatype)} for datatype in datatypes],
        "datatypesFilter": {str(datatype): name_of(datatype) for datatype in datatypes},
        "creator": None,
        "updater": None,
        "physicalDevicesFilter": dict.fromkeys(sorted(sources), device.label),
        "physicalDevices": [
            {
                # The first source is the BACE Go itself, the others are what reports through it.
                "id_physical_device": source,
                "id_device_type": "sensor" if number else "bace-go",
                "id_group": device.id_group,
                "label": f"{device.label} sensor {number}" if number else device.label,
                "created_at": device.created_at,
                "_links": {"self": {"href": f"{base}{API}physical-device/view?id={source}"}},
            }
            for number, source in enumerate(device.sources)
            if source in sources
        ],
        "fromDevice": session.created_by is None,
        "group": plain_group_row(device, base),
        "dataIds": [one.id_container_data_latest for one in series],
    }
    if cloud.quirks.unknown_fields:
        # BACE does not document the shapes of what `expand` adds, so a client must live with others.
        shapes["group"] = [{"id": device.id_group, "attributes": {"label": device.label}}]
        shapes["datatypes"] = {str(datatype): None for datatype in datatypes}
    return shapes


def plain_group_row(device: Device, base: str) -> dict[str, Any]:
    return {
        "id": device.id,
        "id_group": device.id_group,
        "label": device.label,
        "type": "device",
        "type_label": "Device",
        "subtype": None,
        "created_at": device.created_at,
        "deleted_at": None,
        "_links": {"self": {"href": f"{base}/api/v2/group/view?id={device.id_group}"}},
    }


def point_row(row: Row, quirks: Quirks) -> dict[str, Any]:
    at, series, low, high, average, count = row

    def decimal(number: float) -> float | str:
        if quirks.decimals_as_strings:  # as a numeric(..., 6) of PostgreSQL arrives in PHP
            return f"{number:.6f}"
        return int(number) if number.is_integer() else number  # PHP writes 5.0 as 5

    made = {
        "id_container_data_latest": series.id_container_data_latest,
        "id_group": series.id_group,
        "datatype": series.datatype,
        "source_device": series.source_device,
        "timestamp_seconds": decimal(at),
        "min_val": decimal(low),
        "max_val": decimal(high),
        "avg_val": decimal(average),
        "count_val": count,
    }
    return changed(made, quirks)


def changed(row: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    """The row as a cloud with these quirks writes it."""
    if quirks.unknown_fields:
        row |= {"x_tenant": "simulator", "x_flags": [1, {"deep": None}], "x_score": 0.5}
    if quirks.numbers_as_strings:  # as PDO gives everything where it emulates prepared statements
        row = {
            name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for name, value in row.items()
        }
    if quirks.booleans_as_ints:  # as PDO of PHP gives them, where its driver has no booleans
        row = {name: int(value) if isinstance(value, bool) else value for name, value in row.items()}
    return row


API = "/api/v2/"
TOKEN = "/oauth2/token"  # noqa: S105 - a path, no secret


class ApiError(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    sent = {"Content-Type": "application/json; charset=UTF-8", "X-Powered-By": "PHP/8.3.6", "Vary": "Accept"}
    return web.Response(status=status, body=msgspec.json.encode(body), headers={**sent, **(headers or {})})


def refusal(error: ApiError) -> web.Response:
    # `code` is PHP's own, of the exception, and 0 unless it was set.
    body = {"name": HTTPStatus(error.status).phrase, "message": error.message, "code": 0, "status": error.status}
    return reply(body, status=error.status, headers=error.headers)


NO_SUCH_ROUTE = (
    "<!DOCTYPE html>\n<html><head><title>Not Found (#404)</title></head><body><h1>Not Found (#404)</h1></body></html>\n"
)
"""An unknown route is answered by the web site, not by the API."""

BAD_GATEWAY = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    "<hr><center>nginx/1.24.0</center>\r\n</body>\r\n</html>\r\n"
)
"""What nginx answers when it cannot take the answer of the PHP behind it."""


def header_bytes(headers: Mapping[str, str]) -> int:
    """The size of these headers as they are sent."""
    return sum(len(f"{name}: {value}\r\n") for name, value in headers.items())


BROKEN_OFF = "An internal server error occurred."
_LINES_A_CHUNK = 500


def chunks(cloud: SimulatedCloud, session: Session) -> Iterator[str]:
    """Every raw sample of the session by time. The real columns are not known; these are ours."""
    lines = _lines(cloud, session)
    quirks = cloud.quirks
    if quirks.csv_truncated or quirks.csv_cut or quirks.csv_short:
        whole = list(lines)
        if not quirks.csv_truncated:
            yield "".join(whole[: 1 + len(whole) // 2])
            return
        # Half a line, then the error: what PHP sends when a query fails in the middle of the output.
        yield "".join(whole[: 1 + len(whole) // 2]) + "1648642"
        yield f"\n{BROKEN_OFF}"
        return
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == _LINES_A_CHUNK:
            yield "".join(batch)
            batch.clear()
    yield "".join(batch)


def _lines(cloud: SimulatedCloud, session: Session) -> Iterator[str]:
    yield "timestamp_seconds,time,id_container_data_latest,source_device,datatype,value\n"
    tracks = cloud.samples.of(session.id_data_session)
    # Copies: more samples may arrive while a slow client is still reading.
    streams = [
        [*zip(track.times, repeat(cloud.series[identifier]), track.values, strict=False)]
        for identifier, track in tracks.items()
    ]
    for at, series, value in merge(*streams, key=lambda sample: sample[0]):
        moment = datetime.fromtimestamp(round(at, 3), UTC)
        time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        yield (
            f"{at:.3f},{time},{series.id_container_data_latest},{series.source_device},{series.datatype},{value:g}\n"
        )
