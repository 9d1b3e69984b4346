"""What somebody asked for of a sink: lanes to go back to. Functions over a connection, within a transaction.

The running bridge has its sinks' places in memory, so nobody else may move them: what is asked for waits here until the
sink's dispatcher takes it.
"""

import sqlite3
from collections.abc import Iterable

from msgspec.structs import replace

from bace_bridge.domain.lanes import BRIDGE_LANE, Parked, letter_place

ASKED_FOR = "asked for"


def ask(connection: sqlite3.Connection, sink: str, lanes: Iterable[Parked]) -> None:
    connection.executemany(
        """insert into asked (sink, key, seq) values (?, ?, ?)
        on conflict (sink, key) do update set seq = min(seq, excluded.seq)""",
        [(sink, lane.key, lane.seq) for lane in lanes],
    )


def asked(connection: sqlite3.Connection, sink: str) -> list[Parked]:
    """What was asked for and is not seen to yet."""
    rows = connection.execute("select key, seq from asked where sink = ?", (sink,))
    return [Parked(key, seq, 0, 0.0, ASKED_FOR) for key, seq in rows]


def seen_to(connection: sqlite3.Connection, sink: str, lanes: Iterable[Parked]) -> None:
    """Forgets what was asked for; what was meanwhile asked for from an earlier place on stays."""
    connection.executemany(
        "delete from asked where sink = ? and key = ? and seq >= ?", [(sink, lane.key, lane.seq) for lane in lanes]
    )


def take(connection: sqlite3.Connection, sink: str) -> None:
    """Makes parked lanes of what was asked for while the bridge was not running.

    What the sink has not come to yet comes anyway; what waits at that place or before it is tried at once.
    """
    lanes = asked(connection, sink)
    if not lanes:
        return
    (cursor,) = connection.execute("select cursor from sinks where name = ?", (sink,)).fetchone()
    query = "select key, seq, attempts, at, reason, replay_upto from parked where sink = ?"
    parked = {one.key: one for one in (Parked(*row) for row in connection.execute(query, (sink,)))}
    park(
        connection,
        sink,
        [_from(lane, parked.get(lane.key), cursor) for lane in lanes if lane.seq <= cursor or letter_place(lane.key)],
    )
    seen_to(connection, sink, lanes)


def _from(lane: Parked, parked: Parked | None, cursor: int) -> Parked:
    if parked is not None and parked.seq <= lane.seq:
        return replace(parked, at=0.0)
    if letter_place(lane.key) is not None:
        return lane
    return replace(lane, replay_upto=cursor if parked is None else parked.seq - 1)


def park(connection: sqlite3.Connection, sink: str, lanes: Iterable[Parked]) -> None:
    connection.executemany(
        """insert or replace into parked (sink, key, seq, attempts, at, reason, replay_upto)
        values (?, ?, ?, ?, ?, ?, ?)""",
        [(sink, one.key, one.seq, one.attempts, one.at, one.reason, one.replay_upto) for one in lanes],
    )


def lanes_for_replay(
    connection: sqlite3.Connection, *, session: str | None, since: float | None
) -> tuple[list[Parked], int]:
    """Where the recorded events of a data session, or those observed since a time, begin; and how many there are."""
    rows = connection.execute(
        """select coalesce(session_id, :bridge), min(seq), count(*) from events
        where (:session is null or session_id = :session) and (:since is null or observed_at >= :since)
        group by session_id""",
        {"bridge": BRIDGE_LANE, "session": session, "since": since},
    ).fetchall()
    return [Parked(key, seq, 0, 0.0, ASKED_FOR) for key, seq, _ in rows], sum(row[2] for row in rows)
