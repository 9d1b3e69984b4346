from collections.abc import Iterator
from datetime import UTC, datetime
from heapq import merge

from bace_bridge.simulator.cloud import SimulatedCloud
from bace_bridge.simulator.facts import Series, Session

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
