"""What somebody asked for of a sink: lanes to go back to. Functions over a connection, within a transaction.

The running bridge has its sinks' places in memory, so nobody else may move them: what is asked for waits here until the
sink's dispatcher takes it.
"""

import sqlite3
from collections.abc import Iterable

from bace_bridge.domain.delivery import BRIDGE_LANE, Parked, letter_place


def ask(connection: sqlite3.Connection, sink: str, lanes: Iterable[Parked]) -> None:
    connection.executemany(
        """insert into asked (sink, key, seq) values (?, ?, ?)
        on conflict (sink, key) do update set seq = min(seq, excluded.seq)""",
        [(sink, lane.key, lane.seq) for lane in lanes],
    )


def take(connection: sqlite3.Connection, sink: str) -> list[Parked]:
    """Makes parked lanes of what was asked for; one that is parked at an earlier place already stays as it is."""
    asked = connection.execute("select key, seq from asked where sink = ?", (sink,)).fetchall()
    if not asked:
        return []
    parked = dict(connection.execute("select key, seq from parked where sink = ?", (sink,)).fetchall())
    row = connection.execute("select cursor from sinks where name = ?", (sink,)).fetchone()
    cursor = row[0] if row is not None else 0
    lanes = [
        Parked(key, seq, 0, 0.0, "asked for", 0 if letter_place(key) is not None else parked.get(key, cursor + 1) - 1)
        for key, seq in asked
        if seq < parked.get(key, seq + 1)
    ]
    connection.executemany(
        """insert or replace into parked (sink, key, seq, attempts, at, reason, replay_upto)
        values (?, ?, ?, ?, ?, ?, ?)""",
        [(sink, one.key, one.seq, one.attempts, one.at, one.reason, one.replay_upto) for one in lanes],
    )
    connection.execute("delete from asked where sink = ?", (sink,))
    return lanes


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
    return [Parked(key, seq, 0, 0.0, "asked for") for key, seq, _ in rows], sum(row[2] for row in rows)
