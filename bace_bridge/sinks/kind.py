"""A kind of sink: what the bridge asks each of them, whatever it delivers to."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field

from bace_bridge.config.datatypes import DatatypeConfig
from bace_bridge.config.sections import Events, Name, Section
from bace_bridge.config.values import Text
from bace_bridge.errors import Mistake
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.api import Answer, Built, Ledger, StateSource

Entry = tuple[str, dict[Any, Any]]
"""The path of a sink in the configuration, and what is written there, valid or not."""


class SinkConfig(Section):
    """The keys of one sink, and all that is particular to its kind.

    A kind is a folder with a subclass of this, and a line in `registry.py`. It names no module of its folder that is
    slow to import, or large, outside of `build`: the configuration is read without any sink.
    """

    kind: ClassVar[str]
    """In `check`, in the names of log events and in health: `mqtt`."""

    section: ClassVar[str]
    """The key of the list that holds the sinks of this kind: `webhooks`."""

    about: ClassVar[str]
    """What the list is, for the JSON Schema."""

    name: Name = Field(description="What logs, metrics and replay call this sink; unique among all sinks")
    events: Events = Field(default=("*",), description="Which events this sink gets: globs on the event type")
    groups: tuple[Text, ...] = Field(default=(), description="Only these devices (id_group); empty: all")

    @property
    @abstractmethod
    def target(self) -> str:
        """Where it delivers to. A sink that was disabled is used again when this is another text."""

    @abstractmethod
    def describe(self) -> str:
        """Where it delivers to and how, in a line for `check`; no secrets."""

    @abstractmethod
    def build(self, context: "SinkContext") -> Built:
        """Imports what the kind needs. It makes no network requests before `run`."""

    def warnings(self) -> Iterator[str]:
        """What is allowed, but worth a second thought, each with the key that it is about; no secrets."""
        yield from ()

    @classmethod
    def mistakes_between(cls, entries: Collection[Entry]) -> Iterator[Mistake]:
        """What is wrong between keys, or between sinks of this kind. A key that is wrong alone is known already."""
        del entries
        yield from ()

    @classmethod
    def warnings_between(cls, sinks: Collection[tuple[str, Self]]) -> Iterator[str]:
        """As `warnings`, between sinks of this kind, which come with their paths."""
        del sinks
        yield from ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the sink reads itself: it starts anew when one of them has changed."""
        return ()


class SinkContext(NamedTuple):
    """What a sink may use of the bridge that runs it.

    `source` is what CloudEvents call the cloud. `installation` keeps the client ids of two bridges apart. `running`
    gives all sinks that run at the time. `ledger` takes the address of a broker. `requests` are what others may ask
    for, by name. `datatypes` gives the configuration's, as it is at the time. `redaction` takes secrets out of what
    other sides answer. `clock` is the wall clock, in epoch seconds.
    """

    source: str
    version: str
    installation: str
    running: Callable[[], Iterable[SinkConfig]]
    state: StateSource
    ledger: Callable[[str], Ledger]
    requests: Mapping[str, Answer]
    datatypes: Callable[[], Mapping[int, DatatypeConfig]]
    redaction: Redaction
    clock: Callable[[], float]
