"""How things stand: the state that retained topics show, read from what is known."""

import sqlite3
from collections.abc import Callable, Collection

import msgspec

from bace_bridge.domain.state import DeviceState, LatestPoint
from bace_bridge.polling.rules.sessions import KnownSession, view
from bace_bridge.store.sqlite import SqliteFile


class Standing:
    """Reads devices' states. `csv_url` makes a session id into its CSV's URL."""

    def __init__(self, file: SqliteFile, *, csv_url: Callable[[str], str]) -> None:
        self._file = file
        self._csv_url = csv_url

    async def devices(self, ids: Collection[str] | None, *, available: bool) -> list[DeviceState]:
        """The states of these devices; of all, where `ids` is None."""

        def work(connection: sqlite3.Connection) -> list[DeviceState]:
            wanted = _all_devices(connection) if ids is None else ids
            return [self._state(connection, device, available) for device in wanted]

        return await self._file.read(work)

    async def sessions(self, *, state: str | None, limit: int) -> list[KnownSession]:
        """Known sessions for people, newest first."""
        query = "select known from sessions order by start desc"

        def work(connection: sqlite3.Connection) -> list[KnownSession]:
            found: list[KnownSession] = []
            for (text,) in connection.execute(query):
                known = msgspec.json.decode(text, type=KnownSession)
                if state in {None, known.session.state} and len(found) < limit:
                    found.append(known)
            return found

        return await self._file.read(work)

    def _state(self, connection: sqlite3.Connection, device: str, available: bool) -> DeviceState:
        row = connection.execute(
            "select known from sessions where group_id = ? and not removed order by active desc, start desc limit 1",
            (device,),
        ).fetchone()
        points = connection.execute(
            "select source_device, datatype, payload from latest where device_id = ?", (device,)
        )
        return DeviceState(
            device_id=device,
            available=available,
            session=None if row is None else self._session(msgspec.json.decode(row[0], type=KnownSession)),
            latest=tuple(LatestPoint(*point) for point in points),
        )

    def _session(self, known: KnownSession) -> bytes:
        shown = msgspec.to_builtins(view(known.session))
        if known.csv_revision is not None:
            shown["csv_url"] = self._csv_url(known.session.id)
        return msgspec.json.encode(shown)


def _all_devices(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("select group_id from sessions union select device_id from latest")
    return [str(row[0]) for row in rows]
