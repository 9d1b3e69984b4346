"""What was emitted of a window, in compressed slices; large events are compressed, too."""

import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Collection

import msgspec

from bace_bridge.polling.rules.datapoints import Emitted
from bace_bridge.polling.rules.windows import Window

PACKED_FROM = 2048
"""Bytes from which on it is compressed: session events stay readable for people."""

_MARK = b"\0z"
"""Neither JSON nor a map of MessagePack begins so."""

_LEVEL = 1


def pack(data: bytes) -> bytes:
    return _MARK + zlib.compress(data, _LEVEL) if len(data) >= PACKED_FROM else data


def unpack(data: bytes) -> bytes:
    return zlib.decompress(data[len(_MARK) :]) if data.startswith(_MARK) else data


SLICE = 60
"""Seconds: some hundred points of a few series at one a second, which is a page or two of SQLite's."""


def read_emitted(connection: sqlite3.Connection, window: Window, session_ids: Collection[str]) -> dict[str, Emitted]:
    """What was emitted of this window, by data session; empty for those of which it was never read."""
    marks = ",".join("?" * len(session_ids))
    found: dict[str, Emitted] = {one: {} for one in session_ids}
    for table, points, place in (("windows", "emitted", "start"), ("slices", "points", "minute")):
        query = f"""select session_id, {points} from {table} where session_id in ({marks}) and start = ? and "end" = ?
            order by session_id, {place}"""  # noqa: S608  # our own names, and marks
        for session_id, blob in connection.execute(query, (*session_ids, window.start, window.end)):
            for series, stamps in msgspec.msgpack.decode(unpack(blob), type=Emitted).items() if blob else ():
                found[session_id].setdefault(series, {}).update(stamps)
    return found


def write_emitted(connection: sqlite3.Connection, session_id: str, window: Window, emitted: Emitted) -> None:
    """Writes the slices that changed; what an earlier version kept in the window's own row becomes slices."""
    place = (session_id, window.start, window.end)
    where = 'session_id = ? and start = ? and "end" = ?'
    stored = dict(connection.execute(f"select minute, points from slices where {where}", place))  # noqa: S608  # our own text
    after = {minute: pack(msgspec.msgpack.encode(points)) for minute, points in _sliced(emitted).items()}
    connection.execute(f"update windows set emitted = null where {where} and emitted is not null", place)  # noqa: S608  # our own text
    connection.executemany(
        'delete from slices where session_id = ? and start = ? and "end" = ? and minute = ?',
        [(*place, minute) for minute in stored.keys() - after.keys()],
    )
    connection.executemany(
        """insert into slices (session_id, start, "end", minute, points) values (?, ?, ?, ?, ?)
        on conflict (session_id, start, "end", minute) do update set points = excluded.points""",
        [(*place, minute, points) for minute, points in after.items() if stored.get(minute) != points],
    )


def _sliced(emitted: Emitted) -> dict[int, Emitted]:
    slices: dict[int, Emitted] = defaultdict(dict)
    for series, points in emitted.items():
        for stamp, point in points.items():
            slices[int(stamp // SLICE)].setdefault(series, {})[stamp] = point
    return slices
