"""The state of devices and data sessions, for retained topics and commands."""

import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass

import msgspec

from bace_bridge.events.types import DeviceState, KnownDevice, LatestPoint, Series
from bace_bridge.polling.rules.fetches import is_current
from bace_bridge.polling.rules.session_list import decides_by_label, is_selected
from bace_bridge.polling.rules.sessions import DeviceView, KnownSession, view
from bace_bridge.store.sqlite import SqliteFile, unpack


# SQLite has no skip scan: `select distinct` would read each row of an index. This takes one step a device.
def _distinct(name: str, column: str, table: str) -> str:
    return f"""{name} (device) as (
      select min({column}) from {table}
      union all
      select (select min({column}) from {table} where {column} > device) from {name} where device is not null
    )"""  # noqa: S608  # our own names


WITH_DEVICES = f"with recursive {_distinct('devices', 'group_id', 'sessions')}"
"""The table `devices` for a query, those of the sessions. It ends with a null."""

ALL_DEVICES = f"""{WITH_DEVICES}, {_distinct("seen", "device_id", "latest")}
    select device from devices where device is not null union select device from seen
    where device is not null"""  # noqa: S608  # our own text
"""Those of which datapoints are known, too."""


class SeenDatatype(msgspec.Struct, frozen=True):
    """A datatype of which datapoints were published; `last_value` is the average of the newest, at `last_at`.

    `last_at` is in epoch seconds.
    """

    datatype: int
    devices: int
    sources: int
    last_at: float
    last_value: float | None


@dataclass(eq=False)
class DeviceStates:
    """Reads devices' states. `csv_url` makes a session id into its CSV's URL; `fetch_interval` is in seconds.

    `csv_link` makes a session id and the CSV's revision into a link that opens without BACE's token, None without one.

    `groups` are the devices that are watched, by id or label, as in `cloud.groups`: of others there is no state.
    """

    file: SqliteFile
    _: KW_ONLY
    csv_url: Callable[[str], str]
    csv_link: Callable[[str, int], str | None] = lambda *_: None
    groups: Collection[str] = ()
    fetch_interval: float = 15.0
    clock: Callable[[], float] = time.time

    async def devices(self, ids: Collection[str] | None, *, available: bool) -> list[DeviceState]:
        """The states of these devices; of all, where `ids` is None."""
        return await self.file.read(
            lambda connection: [self._state(connection, one, available) for one in self._watched(connection, ids)]
        )

    async def known_devices(self, ids: Collection[str] | None = None) -> list[KnownDevice]:
        """These devices, or all of them, those that were seen last first."""
        found = await self.file.read(
            lambda connection: [_known_device(connection, one) for one in self._watched(connection, ids)]
        )
        return sorted(found, key=lambda one: one.last_seen_at or 0.0, reverse=True)

    async def datatypes(self) -> list[SeenDatatype]:
        """Those of all devices, by their numbers; without those that only removed data sessions had."""
        return await self.file.read(
            lambda connection: [
                SeenDatatype(number, devices, sources, at, msgspec.json.decode(payload, type=_Value).avg)
                for number, devices, sources, at, payload in connection.execute(_DATATYPES)
            ]
        )

    async def sessions(self, *, state: str | None, limit: int) -> list[KnownSession]:
        """Known sessions for people, newest first."""
        query = "select known from sessions order by start desc"

        def work(connection: sqlite3.Connection) -> list[KnownSession]:
            found: list[KnownSession] = []
            # All of them are decoded even for a few: whether one is active is in its JSON, and people ask rarely.
            for (text,) in connection.execute(query):
                known = msgspec.json.decode(text, type=KnownSession)
                if state in {None, known.session.state} and len(found) < limit:
                    found.append(known)
            return found

        return await self.file.read(work)

    def _state(self, connection: sqlite3.Connection, device: str, available: bool) -> DeviceState:
        known = _last_session(connection, device)
        session = None
        if known is not None:
            shown = msgspec.to_builtins(view(known.session))
            shown["device"] = msgspec.to_builtins(DeviceView(id=known.session.group_id, label=known.device_label))
            # Only once it exists: a link that answers 404 until then would be followed at once.
            if known.csv_revision is not None:
                shown["csv_url"] = self.csv_url(known.session.id)
                if link := self.csv_link(known.session.id, known.csv_revision):
                    shown["csv_link"] = link
            summary = connection.execute("select summary from summaries where session_id = ?", (known.session.id,))
            if known.end_emitted is not None and (row := summary.fetchone()) is not None:
                shown["summary"] = msgspec.Raw(unpack(row[0]))
            session = msgspec.json.encode(shown)
        shown_now = (None, None) if known is None else (known.session.id, known.session.start)
        rows = connection.execute(_POINTS, {"device": device, "shown": shown_now[0], "start": shown_now[1]}).fetchall()
        names = [(one.name, one.unit) for one in (msgspec.json.decode(row[2], type=_Named) for row in rows)]
        return DeviceState(
            device_id=device,
            # Two things make it unavailable: a failed poll of the list (`available`), or datapoints that stay away.
            available=available
            and (known is None or is_current(known, interval=self.fetch_interval, now=self.clock())),
            session=session,
            latest=tuple(LatestPoint(*row[:3]) for row in rows if row[3]),
            active_session_id=known.session.id if known is not None and known.session.end is None else None,
            last_session_id=None if known is None else known.session.id,
            label=_label(connection, device) if known is None or known.device_label is None else known.device_label,
            series=tuple(Series(row[0], row[1], *named) for row, named in zip(rows, names, strict=True)),
        )

    def _watched(self, connection: sqlite3.Connection, ids: Collection[str] | None) -> list[str]:
        """Those of these devices, or of all, that `groups` select."""
        watched = []
        for device in [row[0] for row in connection.execute(ALL_DEVICES)] if ids is None else ids:
            by_label = decides_by_label(self.groups, device)
            label = _label(connection, device) if by_label else None
            # Where only a label decides and none is known, it was recorded because it was watched.
            if (by_label and label is None) or is_selected(self.groups, device, label):
                watched.append(device)
        return watched

    async def stale(self) -> tuple[frozenset[str], float]:
        """The devices of which the datapoints of the active data session that is shown were read too long ago.

        And the seconds since those of the active data session that waits longest were read; 0 where none is active. One
        whose datapoints cannot be had does not count there.
        """
        # Sorted here: by `start` SQLite would go through the index of all sessions.
        query = "select known from sessions where unfinished and active"
        active = await self.file.read(
            lambda connection: [msgspec.json.decode(text, type=KnownSession) for (text,) in connection.execute(query)]
        )
        shown = {one.session.group_id: one for one in sorted(active, key=lambda one: one.session.start)}
        interval, now = self.fetch_interval, self.clock()
        stale = frozenset(group for group, one in shown.items() if not is_current(one, interval=interval, now=now))
        return stale, max([0.0, *(now - one.fetched_at for one in active if one.fetched_at is not None)])


def _last_session(connection: sqlite3.Connection, device: str) -> KnownSession | None:
    """The newest active data session of a device, else the newest one."""
    row = connection.execute(
        "select known from sessions where group_id = ? and removed = 0 order by active desc, start desc limit 1",
        (device,),
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=KnownSession)


def _label(connection: sqlite3.Connection, device: str) -> str | None:
    found = connection.execute(
        """select json_extract(known, '$.device_label') as label from sessions
        where group_id = ? and label is not null order by start desc limit 1""",
        (device,),
    ).fetchone()
    return None if found is None else str(found[0])


class _Named(msgspec.Struct):
    name: str | None = None
    unit: str | None = None


# The newest point of each series, and whether it is shown: of the data session that is shown, or another active one, so
# that no value of the last session comes to life with the next. Where an earlier version wrote it, its session is not
# known: then its time decides. A series stays as long as the device has a data session that can be seen; those of a
# session that belongs to another device now went with it.
_POINTS = """select source_device, datatype, payload, case
      when sessions.id is not null then not removed and (active or sessions.id = :shown)
      else :shown is null or timestamp >= :start end
    from latest left join sessions on sessions.id = latest.session_id
    where device_id = :device and (sessions.id is null or group_id = :device)
      and (:shown is not null or not exists (select 1 from sessions where group_id = :device))"""


class _Value(msgspec.Struct):
    avg: float | None = None


# A row a series, however many data sessions there are. `payload` is that of the row with the newest timestamp, which
# SQLite promises beside a lone max().
_DATATYPES = """select datatype, count(distinct device_id), count(distinct source_device), max(timestamp), payload
    from latest left join sessions on sessions.id = latest.session_id
    where sessions.id is null or (not removed and group_id = device_id)
    group by datatype order by datatype"""


def _known_device(connection: sqlite3.Connection, device: str) -> KnownDevice:
    last = _last_session(connection, device)
    # Of each kind of its data sessions the newest: a device has had thousands.
    (seen_at,) = connection.execute(
        """with kinds (gone, now) as (values (0, 0), (0, 1), (1, 0), (1, 1))
        select max(at) from (
          select max(start, coalesce(json_extract(known, '$.session.end'), start)) as at from sessions
            where id in (select (select id from sessions
              where group_id = :device and removed = gone and active = now order by start desc limit 1) from kinds)
          union all select timestamp from latest where device_id = :device)""",
        {"device": device},
    ).fetchone()
    label = None if last is None else last.device_label
    return KnownDevice(
        device,
        _label(connection, device) if label is None else label,
        last.session.id if last is not None and last.session.end is None else None,
        None if last is None else last.session.id,
        seen_at,
    )
