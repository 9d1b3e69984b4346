"""Rows that come twice: what a join in the server's query leads to.

A session's two rows are on one page, for a client that sees only the wrong one cannot know it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from zlib import crc32

from bace_bridge.simulator.datapoints import Row
from bace_bridge.simulator.facts import Session

OTHER_VALUE = 0.5
"""By how much the average of a conflicting datapoint differs."""

_POINTS = 20
_SESSIONS = 2


def sessions(rows: Iterable[Session]) -> Iterator[Session]:
    """About each second session is followed by itself, active and with another label, but equally new."""
    for session in rows:
        yield session
        if _is_chosen(session.id_data_session, _SESSIONS):
            yield replace(session, label=f"{session.label} (copy)", end=None, is_ingestion_finished=False)


def points(rows: Iterable[Row], *, conflicting: bool) -> Iterator[Row]:
    """About each twentieth datapoint is followed by itself, or by one with other values."""
    for row in rows:
        yield row
        if _is_chosen(f"{row.series.id_container_data_latest} {row.timestamp_seconds}", _POINTS):
            low, high, average = row.min_val - 1, row.max_val + 1, row.avg_val + OTHER_VALUE
            yield row._replace(min_val=low, max_val=high, avg_val=average) if conflicting else row


def _is_chosen(name: str, one_in: int) -> bool:
    """The same rows at each request, in each process."""
    return crc32(name.encode()) % one_in == 0
