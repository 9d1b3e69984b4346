"""What delivery and a sink know of each other, and what a sink may ask the bridge for: Protocols only."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from bace_bridge.errors import SinkError
from bace_bridge.events.types import Announced, Attempt, DeviceState, Event, KnownDevice

Done = Callable[[SinkError | None], None]

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""From the payload of a request to what is answered; raises BridgeError."""


class Receiver(Protocol):
    """The other side. `send` never blocks and calls `done` exactly once: None, or why it was not delivered.

    Where one event cannot be delivered, others of the same `where` (a topic) can probably not either.
    """

    name: str
    window: int
    """Deliveries in flight at once."""

    pipelined: bool
    """True only where the transport keeps the order of what is in flight."""

    async def ready(self) -> object:
        """Returns when something can be sent; what it returns means nothing."""

    def where(self, event: Event) -> str: ...
    def send(self, attempt: Attempt, done: Done) -> None: ...


class Sink(Receiver, Protocol):
    async def run(self) -> None:
        """Until it is closed or cancelled; what it raises ends the process."""

    async def close(self) -> None:
        """Gives what is in flight a short while."""


class Broker(Protocol):
    """What a sink is beside deliveries where it keeps a connection and shows retained state on it."""

    problem: str | None

    @property
    def state_problem(self) -> str | None: ...
    def refresh(self, ids: Collection[str] | None = ()) -> None:
        """How the bridge and these devices stand may have changed; None: all of them."""


class Built(NamedTuple):
    """`broker` is the same sink once more, where it is one."""

    sink: Sink
    broker: Broker | None = None


class StateSource(Protocol):
    async def devices(self, ids: Collection[str] | None) -> list[DeviceState]:
        """How these devices stand now; all of them for None."""

    async def known_devices(self, ids: Collection[str] | None) -> list[KnownDevice]:
        """What is known of these devices; of all of them for None."""

    def is_current(self) -> bool:
        """True while the last poll went well: what is not known then is not there."""

    def info(self) -> bytes: ...

    def health(self) -> bytes: ...


class Ledger(Protocol):
    """The topics that the broker may keep of this sink. All methods raise StoreError."""

    async def topics(self) -> set[str]: ...
    async def note(self, topics: Iterable[str]) -> None: ...
    async def forget(self, topics: Iterable[str]) -> None: ...
    async def announced(self) -> dict[str, Announced]:
        """What was announced on each discovery topic."""

    async def note_announced(self, announced: Mapping[str, Announced]) -> None: ...
