"""Facts -> the JSON of the API, and what the quirks do to it."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from heapq import merge
from http import HTTPStatus
from typing import Any

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.datapoints import Row
from bace_bridge.simulator.facts import Device, Series, Session
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
    place = f"{base}/api/v2/data-session"
    row = {field: read(session) for field, read in _READERS.items()}
    row["_links"] = {
        "self": {"href": f"{place}/view?id={session.id_data_session}"},
        "index": {"href": f"{place}/index"},
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
    shapes = {
        "datatypes": [{"datatype": datatype, "label": name_of(datatype)} for datatype in datatypes],
        "datatypesFilter": {str(datatype): name_of(datatype) for datatype in datatypes},
        "creator": None,
        "updater": None,
        "physicalDevicesFilter": dict.fromkeys(sorted(sources), device.label),
        "physicalDevices": [row for row in physical_device_rows(device, base) if row["id_physical_device"] in sources],
        "fromDevice": session.created_by is None,
        "group": plain_group_row(device, base),
        "dataIds": [one.id_container_data_latest for one in series],
    }
    if cloud.quirks.unknown_fields:
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


def physical_device_rows(device: Device, base: str) -> list[dict[str, Any]]:
    """The first source is the BACE Go itself, the others are what reports through it."""
    return [
        {
            "id_physical_device": source,
            "id_device_type": "sensor" if number else "bace-go",
            "id_group": device.id_group,
            "label": f"{device.label} sensor {number}" if number else device.label,
            "created_at": device.created_at,
            "_links": {"self": {"href": f"{base}/api/v2/physical-device/view?id={source}"}},
        }
        for number, source in enumerate(device.sources)
    ]


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
    if quirks.numbers_as_strings:
        row = {
            name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for name, value in row.items()
        }
    if quirks.booleans_as_ints:
        row = {name: int(value) if isinstance(value, bool) else value for name, value in row.items()}
    return row


def error_body(status: int, message: str) -> Mapping[str, Any]:
    return {"name": HTTPStatus(status).phrase, "message": message, "code": 0, "status": status}


BROKEN_OFF = "An internal server error occurred."
_LINES_A_CHUNK = 500


def chunks(cloud: SimulatedCloud, session: Session) -> Iterator[str]:
    """Every raw sample of the session by time. The real columns are not known; these are ours."""
    lines = _lines(cloud, session)
    if cloud.quirks.csv_truncated:
        whole = list(lines)
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
    streams = [_of_series(cloud.series[identifier], track.times, track.values) for identifier, track in tracks.items()]
    for at, series, value in merge(*streams, key=lambda sample: sample[0]):
        moment = datetime.fromtimestamp(round(at, 3), UTC)
        time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        yield (
            f"{at:.3f},{time},{series.id_container_data_latest},{series.source_device},{series.datatype},{value:g}\n"
        )


def _of_series(series: Series, times: list[float], values: list[float]) -> Iterator[tuple[float, Series, float]]:
    for at, value in zip(tuple(times), tuple(values), strict=True):
        yield at, series, value
