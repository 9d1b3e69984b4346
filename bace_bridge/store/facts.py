"""Small durable facts: the cloud's tokens and the name of this installation."""

import sqlite3

import msgspec

from bace_bridge.domain.tokens import Token
from bace_bridge.store.sqlite import SqliteFile


class Facts:
    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def load_token(self, account: str) -> Token | None:
        def work(connection: sqlite3.Connection) -> Token | None:
            value = read_fact(connection, f"token:{account}")
            return None if value is None else msgspec.json.decode(value, type=Token)

        return await self._file.read(work)

    async def save_token(self, account: str, token: Token) -> None:
        value = msgspec.json.encode(token).decode()
        await self._file.write(lambda connection: write_fact(connection, f"token:{account}", value), side="facts")

    async def installation(self, name: str) -> str:
        """The name of this installation: it was made once, and is `name` where the store has none yet."""

        def work(connection: sqlite3.Connection) -> str:
            found = read_fact(connection, "installation")
            if found is None:
                found = name
                write_fact(connection, "installation", found)
            return found

        return await self._file.write(work, side="facts")


def read_fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("select value from facts where name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def write_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("insert or replace into facts (name, value) values (?, ?)", (name, value))
