"""Every side of the one store, the state of devices made of it, and the name of this installation."""

import asyncio
import hashlib
import secrets
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from bace_bridge.app.running import Signals
from bace_bridge.cloud.api import csv_url
from bace_bridge.config.models import Config
from bace_bridge.csv.links import KEY_BYTES, Links
from bace_bridge.events.types import DeviceState
from bace_bridge.store.device_states import DeviceStates
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import Facts, Schedules
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.sqlite import SqliteFile

_MACHINE = Path("/etc/machine-id")


def installation_name(config: Config) -> str:
    """Eight hex digits: the same for the same store's path, machine, host name and account.

    So a store that was lost gets its name again, and finds its own retained topics; in a container as long as its host
    name stays the same.
    """
    # From facts and not from chance: chance would be kept in the store, and be lost with it.
    machine = ""
    with suppress(OSError, UnicodeDecodeError):
        machine = _MACHINE.read_text("utf-8").strip()
    cloud = config.cloud
    parts = (machine, socket.gethostname(), str(config.store.path.resolve()), cloud.username or cloud.client_id or "")
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


class Devices:
    """Reads devices' states. `changed` is called with those that look different now (None: all of them).

    What becomes different with an event is not its business; this is about what turns old. `period` returns another
    value where all of them may look different by nothing but time.
    """

    def __init__(
        self,
        views: DeviceStates,
        *,
        changed: Callable[[Collection[str] | None], None],
        period: Callable[[], object] = lambda: None,
    ) -> None:
        self.views = views
        self._period = period
        self._last_period = period()
        self._changed = changed
        self._stale: frozenset[str] = frozenset()
        # Of the last poll, None before the first: while an account begins anew by another configuration, it stays.
        self.is_current: bool | None = None
        self.oldest_view = 0.0

    async def states(self, ids: Collection[str] | None) -> list[DeviceState]:
        """Of these devices; of all of them for None. Raises StoreError."""
        return await self.views.devices(ids, available=bool(self.is_current))

    def polled(self, go_well: bool) -> None:
        """A session list was polled: with the cloud or the store away no view is current any more."""
        if go_well != self.is_current:
            self.is_current = go_well
            self._changed(None)

    async def refresh(self) -> None:
        """A device becomes unavailable by nothing but time. Raises StoreError."""
        if (period := self._period()) != self._last_period:
            self._last_period = period
            self._changed(None)
        stale, self.oldest_view = await self.views.stale()
        # Both directions: those that turned stale, and those that were fetched again.
        if turned := stale ^ self._stale:
            self._stale = stale
            self._changed(turned)


class Storage:
    """Every side of one file; `upkeep_due` is set where a round of upkeep is to be made before its time."""

    def __init__(
        self,
        file: SqliteFile,
        config: Config,
        signals: Signals,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        store = config.store
        self.links = Links(config.csv.link_base, config.csv.link_expires, clock=wall)
        self.upkeep_due = asyncio.Event()
        self.file = file
        self.facts = Facts(file)
        self.schedules = Schedules(file)
        self.event_log = EventLog(file)
        self.cap = Cap(file, store.max_size, crowded=self.upkeep_due.set)
        self.upkeep = Upkeep(
            file, self.event_log, self.cap, retention=store.retention, session_retention=store.session_retention
        )
        self.journal = Journal(
            file, grew=signals.log_grew, changed=signals.devices_changed, ensure_room=self.cap.ensure_room
        )
        self._devices_changed = signals.devices_changed
        self.device_states = DeviceStates(
            file,
            groups=frozenset(config.cloud.groups),
            csv_url=partial(csv_url, config.cloud.url),
            csv_link=partial(self.links.link, steady=True),
            fetch_interval=config.watch.datapoint_interval,
            clock=clock,
        )

    async def load_signing_keys(self) -> None:
        """Where there are links: at the start, and when a command may have rotated them. Raises StoreError."""
        if self.links.base:
            self.links.keys = await self.facts.signing_keys(secrets.token_bytes(KEY_BYTES))

    def adjust(self, config: Config) -> None:
        """To another configuration over the same file, and with the same cloud."""
        self.cap.max_size = config.store.max_size
        self.upkeep.retention = config.store.retention
        self.upkeep.session_retention = config.store.session_retention
        self.links.base, self.links.life = config.csv.link_base, config.csv.link_expires
        self.device_states.fetch_interval = config.watch.datapoint_interval
        if (groups := frozenset(config.cloud.groups)) != self.device_states.groups:
            self.device_states.groups = groups
            self._devices_changed(None)
        # A smaller retention or size takes effect now, and not at the next round.
        self.upkeep_due.set()
