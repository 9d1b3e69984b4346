import asyncio

import msgspec

from bace_bridge.errors import DeliveryFailed, SinkError
from bace_bridge.events.types import Attempt, Event
from bace_bridge.sinks.api import Done

from .config import FileConfig


class FileSink:
    pipelined = True
    window = 100

    def __init__(self, config: FileConfig, source: str) -> None:
        self.name = config.name
        self._path = config.path
        self._seal = "" if config.seal is None else config.seal.get_secret_value()
        self._source = source

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing is in flight after `send`."""

    async def ready(self) -> None:
        """A file always is."""

    @staticmethod
    def where(event: Event) -> str:
        del event
        return ""

    def send(self, attempt: Attempt, done: Done) -> None:
        event, error = attempt.logged.event, None
        line = {"id": event.id, "type": event.type, "source": self._source, "data": msgspec.Raw(event.data)}
        try:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode({**line, "seal": self._seal}) + b"\n")
        except OSError as found:
            error = DeliveryFailed(f"cannot write: {found.strerror}")
        self._done(done, error)

    @staticmethod
    def _done(done: Done, error: SinkError | None) -> None:
        asyncio.get_running_loop().call_soon(done, error)
