"""A kind of sink that the product does not have: the folder that `test_new_sink.py` adds to a copy of it."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from pydantic import Field

from bace_bridge.config.values import OptionalSecret
from bace_bridge.errors import Mistake
from bace_bridge.sinks.api import Built
from bace_bridge.sinks.kind import Entry, SinkConfig, SinkContext


class FileConfig(SinkConfig):
    kind = "file"
    section = "files"
    about = "Files that events are appended to"

    path: Path = Field(description="The file, relative to this one's folder")
    seal: OptionalSecret = Field(default=None, description="A word at the end of each line")

    @property
    def target(self) -> str:
        return str(self.path)

    def describe(self) -> str:
        return f"lines of JSON in {self.path.name}"

    def build(self, context: SinkContext) -> Built:
        from .sink import FileSink  # noqa: PLC0415  # only where one is configured

        return Built(FileSink(self, context.source))

    def warnings(self) -> Iterator[str]:
        if self.seal is None:
            yield "seal: is left out: anybody may have written the lines"

    @classmethod
    def mistakes_between(cls, entries: Collection[Entry]) -> Iterator[Mistake]:
        first: dict[str, str] = {}
        for at, entry in entries:
            path = str(entry.get("path"))
            if first.setdefault(path, at) != at:
                yield Mistake(f"{at}.path", f"{first[path]} has the same path", "choose another")


KIND: Final = FileConfig
