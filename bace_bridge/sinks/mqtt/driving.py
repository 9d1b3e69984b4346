"""Reads and writes a paho client's socket from the asyncio loop."""

import asyncio
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client

_TICK = 1.0


class Driver:
    """`failed` is told what paho could not read or write; `tick` is called about once a second."""

    def __init__(self, client: Client, *, failed: Callable[[Exception], None], tick: Callable[[float], None]) -> None:
        sock: Any = client.socket()
        if sock is None:
            raise RuntimeError("the client has no socket")
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._failed = failed
        self._tick = tick
        self._fd = sock.fileno()
        self._buffered: Callable[[], int] = sock.pending
        self._driving = True
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_wants_to_write
        client.on_socket_unregister_write = self._on_has_written
        self._loop.add_reader(self._fd, self._read)
        if client.want_write():
            self._loop.add_writer(self._fd, self._write)
        self._timer = self._loop.call_later(_TICK, self._look_after)

    def stop(self) -> None:
        """Closes the socket; harmless when it is closed already."""
        self._let_go()
        if (sock := self._client.socket()) is not None:
            sock.close()

    def _read(self) -> None:
        if not self._driving:
            return
        try:
            self._client.loop_read()
            # What was read or decrypted already does not make the socket readable again. Others have a turn before it:
            # requests would come faster than they are answered.
            if self._buffered():
                self._loop.call_soon(self._read)
        except Exception as error:  # noqa: BLE001  # our callbacks keep theirs: this is what the broker sent
            self._failed(error)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)

    def _look_after(self) -> None:
        self._timer = self._loop.call_later(_TICK, self._look_after)
        try:
            self._client.loop_misc()
        except Exception as error:  # noqa: BLE001  # as above
            self._failed(error)
        self._tick(self._loop.time())

    def _on_wants_to_write(self, *_: Any) -> None:
        if self._driving:
            self._loop.add_writer(self._fd, self._write)

    def _on_has_written(self, *_: Any) -> None:
        if self._driving:
            self._loop.remove_writer(self._fd)

    def _on_socket_close(self, *_: Any) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """The loop must forget the file descriptor before it is closed and given to somebody else."""
        if self._driving:
            self._driving = False
            self._timer.cancel()
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
