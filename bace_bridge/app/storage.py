"""The store as the parts see it."""

import asyncio
from collections.abc import Callable
from functools import partial

from bace_bridge.app.signals import Signals
from bace_bridge.cloud.api import csv_url
from bace_bridge.config.models import Config
from bace_bridge.failpoints import Failpoint, Untouched
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.facts import Facts
from bace_bridge.store.housekeeping import Cap, Upkeep
from bace_bridge.store.journal import Journal
from bace_bridge.store.ledger import RetainedLedger
from bace_bridge.store.schedules import Schedules
from bace_bridge.store.sqlite import SqliteFile
from bace_bridge.store.standing import Standing


class Storage:
    """Every side of one file; `upkeep_due` is set where a round of upkeep is to be made before its time."""

    def __init__(
        self,
        file: SqliteFile,
        config: Config,
        signals: Signals,
        failpoint: Failpoint | Untouched,
        *,
        clock: Callable[[], float],
    ) -> None:
        store = config.store
        self.upkeep_due = asyncio.Event()
        self._file = file
        self.facts = Facts(file)
        self.schedules = Schedules(file)
        self.event_log = failpoint.around_log(EventLog(file))
        self.cap = Cap(file, store.max_size, crowded=self.upkeep_due.set)
        self.upkeep = Upkeep(
            file, self.event_log, self.cap, retention=store.retention, session_retention=store.session_retention
        )
        journal = Journal(
            file, grew=signals.log_grew, changed=signals.devices_changed, ensure_room=self.cap.ensure_room
        )
        self.journal = failpoint.around_journal(journal)
        self._devices_changed = signals.devices_changed
        self.standing = Standing(
            file,
            groups=config.cloud.groups,
            csv_url=partial(csv_url, config.cloud.url),
            fetch_interval=config.watch.datapoint_interval,
            clock=clock,
        )

    def ledger(self, sink: str, broker: str) -> RetainedLedger:
        return RetainedLedger(self._file, sink=sink, broker=broker)

    def adjust(self, config: Config) -> None:
        """To another configuration over the same file, and with the same cloud."""
        self.cap.max_size = config.store.max_size
        self.upkeep.retention = config.store.retention
        self.upkeep.session_retention = config.store.session_retention
        self.standing.fetch_interval = config.watch.datapoint_interval
        if (groups := frozenset(config.cloud.groups)) != self.standing.groups:
            self.standing.groups = groups
            self._devices_changed(None)
        self.upkeep_due.set()
