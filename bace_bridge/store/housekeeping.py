"""What keeps the store small: the cap, pruning of what was delivered, forgetting of sessions that are over."""

import math
import sqlite3
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial

import msgspec
import structlog

from bace_bridge.errors import StoreAtCap
from bace_bridge.polling.rules.sessions import KnownSession
from bace_bridge.polling.rules.windows import may_be_forgotten
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.sqlite import JOURNAL_SIZE_LIMIT, SqliteFile

PRUNE_FROM = 0.95
"""The part of the cap from which on delivered events go earlier than `retention`."""

PRUNE_TO = 0.90
"""The part of the cap down to which they go, so that it does not begin again at once."""

PAUSE_UNTIL = 0.95
"""At the cap the cloud is not asked any more, until no more than this part of it is used."""


class Room(msgspec.Struct, frozen=True):
    """`surplus` is how many bytes delivered events have to give back; while `paused` the cloud is not asked."""

    surplus: int = 0
    paused: bool = False


def room_left(before: Room, *, used: int, cap: int) -> Room:
    """What follows from `used` of `cap` bytes, after what followed `before`."""
    # With two thresholds each: at a single one the store would be full, not full, full with each event.
    crowded = used >= PRUNE_FROM * cap or (before.surplus > 0 and used > PRUNE_TO * cap)
    paused = used >= cap or (before.paused and used > PAUSE_UNTIL * cap)
    return Room(surplus=used - int(PRUNE_TO * cap) if crowded else 0, paused=paused)


log = structlog.get_logger()

EVERY = 3600.0
"""Seconds between two rounds where nothing calls for one."""

AGAIN = 0.05
"""Seconds to the next piece while there is more to do: short transactions let others in between."""

CROWDED = 2.0
"""Seconds to the next piece while the store is near its cap and nothing can go."""

FORGOTTEN_AT_CAP = 86400.0
"""Seconds without a change after which a finished session's windows may go where nothing else makes room."""

SESSIONS_A_PIECE = 100
WINDOWS_A_PIECE = 200


Position = tuple[float, str]
"""How far a walk through the sessions has come: the last change of the last one (by ids: 0), and its id."""

BEFORE_ALL: Position = (-math.inf, "")


@dataclass(eq=False)
class Cap:
    """The store's size against `max_size` (bytes).

    `crowded` is called by who takes something in, once when delivered events begin to have to go early. Upkeep, which
    checks the size itself, is not woken by its own check.
    """

    file: SqliteFile
    max_size: int
    crowded: Callable[[], None] = lambda: None
    room: Room = field(default_factory=Room)

    @property
    def problem(self) -> str | None:
        if not self.room.paused:
            return None
        return (
            f"it has reached store.max_size ({self.max_size / 2**20:.0f} MiB) and nothing in it can be deleted: "
            "polling pauses until deliveries make room"
        )

    def judge(self) -> Room:
        """Judges the size after the last write; costs nothing, so it is made before each commit."""
        before = self.room
        self.room = room_left(before, used=self.file.used, cap=self.max_size)
        if self.room.paused and not before.paused:
            log.warning("store.at_its_cap", used=self.file.used, max_size=self.max_size, then="polling pauses")
        elif before.paused and not self.room.paused:
            log.info("store.has_room_again", used=self.file.used, max_size=self.max_size)
        return self.room

    def ensure_room(self) -> None:
        """Raises StoreAtCap while nothing more may be taken in."""
        before, room = self.room, self.judge()
        if room.surplus and not before.surplus:
            self.crowded()
        if room.paused:
            raise StoreAtCap(self.problem or "")


@dataclass(eq=False)
class Upkeep:
    """Does what is due in short pieces. `retention` and `session_retention` are in seconds."""

    file: SqliteFile
    event_log: EventLog
    cap: Cap
    _: KW_ONLY
    retention: float
    session_retention: float
    pruned_early: int = 0
    forgotten_early: int = 0
    _forgotten_through: Position = BEFORE_ALL
    _early_through: Position = BEFORE_ALL
    _pruned_unlogged: int = 0
    _forgotten_unlogged: int = 0
    _wal_is_held: bool = False

    @property
    def problem(self) -> str | None:
        if (problem := self.cap.problem) is None:
            return self.file.failures.reason
        held = "; another process keeps a read transaction open, perhaps an open sqlite3 shell"
        return f"{problem}{held}" if self._wal_is_held else problem

    @property
    def is_due(self) -> bool:
        """True where a round is to be made before its time."""
        # The WAL as well: SQLite makes its file small again only in a checkpoint that no reader hinders.
        room = self.cap.judge()
        return bool(room.surplus or room.paused or self.file.failures.failing) or (
            self.file.wal_bytes > JOURNAL_SIZE_LIMIT
        )

    def figures(self) -> dict[str, int]:
        return {
            "used": self.file.used,
            "max_size": self.cap.max_size,
            "events_pruned_early": self.pruned_early,
            "windows_forgotten_early": self.forgotten_early,
        }

    async def piece(self, now: float) -> float:
        """Does one piece; returns the seconds to the next one. Raises StoreError."""
        if self.cap.judge().surplus:
            return await self._make_room(now)
        self._log_pruned()
        if await self.event_log.prune(observed_before=now - self.retention):
            return AGAIN
        # On with the walk through the sessions that have windows.
        since = now - self.session_retention
        work = partial(forget_windows, order=BY_ID, after=self._forgotten_through, unchanged_since=since)
        through, _ = await self.file.write(work, side="upkeep")
        self._forgotten_through = through or BEFORE_ALL
        if through is not None:
            return AGAIN
        # By itself SQLite never makes the WAL's file smaller, and goes on writing behind its end while anybody reads.
        await self.file.checkpoint()
        return EVERY

    async def _make_room(self, now: float) -> float:
        """The WAL first, then delivered events, then old sessions' windows; what is not delivered stays.

        While somebody's reading holds the WAL nothing is deleted: that would only make it larger.
        """
        self._wal_is_held = not await self.file.checkpoint()
        if self._wal_is_held:
            return CROWDED
        if surplus := self.cap.judge().surplus:
            pruned = await self.event_log.prune(observed_before=math.inf, most_bytes=surplus)
            self.pruned_early += pruned
            self._pruned_unlogged += pruned
            forgotten = 0
            if not pruned:
                # Or what is remembered of sessions that are over would stop the watching of those that are not.
                since = now - min(self.session_retention, FORGOTTEN_AT_CAP)
                work = partial(forget_windows, order=BY_CHANGE, after=self._early_through, unchanged_since=since)
                through, forgotten = await self.file.write(work, side="upkeep")
                # At the end the walk begins anew: a session that had to stay may go the next time.
                self._early_through = through or BEFORE_ALL
                self._forgotten_unlogged += forgotten
                self.forgotten_early += forgotten
            if not pruned and not forgotten:
                self._log_pruned()
                return CROWDED
        return AGAIN

    def _log_pruned(self) -> None:
        if self._pruned_unlogged or self._forgotten_unlogged:
            pruned = {"events": self._pruned_unlogged, "windows": self._forgotten_unlogged}
            log.warning("store.pruned_early", **pruned, because="store.max_size")
            self._pruned_unlogged = self._forgotten_unlogged = 0


BY_ID = """with recursive next (id) as (
      select min(session_id) from windows where session_id > :id
      union all select (select min(session_id) from windows where session_id > next.id) from next
      where next.id is not null limit :limit)
    select 0.0, sessions.id, known from next join sessions on sessions.id = next.id"""

BY_CHANGE = """select updated_at, id, known from sessions
    where (updated_at, id) > (:at, :id) and updated_at < :unchanged_since
    and exists (select 1 from windows where session_id = id) order by updated_at, id limit :limit"""


def forget_windows(
    connection: sqlite3.Connection, *, order: str, after: Position, unchanged_since: float
) -> tuple[Position | None, int]:
    """Deletes windows of sessions that are over and have not changed since.

    Returns the position to go on after, None at the end, and how many windows went.
    """
    given = {"at": after[0], "id": after[1], "unchanged_since": unchanged_since, "limit": SESSIONS_A_PIECE}
    sessions = connection.execute(order, given).fetchall()
    # Both bounds: a hundred sessions without a window to go, or one with thousands, must not be a long transaction.
    left = WINDOWS_A_PIECE
    for at, session_id, text in sessions:
        if may_be_forgotten(msgspec.json.decode(text, type=KnownSession), unchanged_since=unchanged_since):
            left -= connection.execute(
                """delete from windows where (session_id, start, "end") in (
                select session_id, start, "end" from windows where session_id = ? limit ?)""",
                (session_id, left),
            ).rowcount
            if left <= 0:
                return after, WINDOWS_A_PIECE
        after = (at, session_id)
    return after if len(sessions) == SESSIONS_A_PIECE else None, WINDOWS_A_PIECE - left
