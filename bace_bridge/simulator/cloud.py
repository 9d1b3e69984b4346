"""The simulated cloud as a whole: what people and devices do to it."""

import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bace_bridge.simulator.facts import Credentials, Device, Series, Session, TokenDesk
from bace_bridge.simulator.quirks import Quirks
from bace_bridge.simulator.samples import Resolution, Samples
from bace_bridge.simulator.shelf import Replica, Shelf

_CREATED_AFTER = 4  # seconds, as in BACE's documented example: the device reports its session a little late
_UPDATED_AFTER = 317  # seconds after the end in the same example: ingestion goes on that long

# Devices keep their ids from one run to the next, so that automations built on them keep working.
_NAMES = uuid.UUID("5f0c1d52-7a0e-4d0b-9d3c-6f1f5d3f2b10")


class SimulatedCloud:
    """What the cloud knows, and what people and devices do to it. Times are epoch seconds."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        quirks: Quirks | None = None,
        seed: int = 1,
        credentials: Credentials | None = None,
        resolution: Resolution | None = None,
    ) -> None:
        self.clock = clock
        self.quirks = quirks or Quirks()
        self.credentials = credentials or Credentials()
        self.resolution = resolution or Resolution()
        self.random = random.Random(seed)  # noqa: S311 - repeatable ids and shuffles, no secrets
        self.began = clock()
        lags = [lag.seconds for lag in (self.quirks.replica_lag, self.quirks.stale_rows) if lag is not None]
        self._replica = Replica(clock=clock, remembers=max(lags), seed=seed) if lags else None
        self.sessions = Shelf(self._replica.session_changes) if self._replica else Shelf()
        self.samples = Samples(self._replica.points_change) if self._replica else Samples()
        self.devices: dict[str, Device] = {}
        self.series: dict[str, Series] = {}
        self.tokens = TokenDesk(
            self.credentials,
            clock=clock,
            refresh=self.quirks.refresh,
            lifetime=self.quirks.token_lifetime,
            expires_in=self.quirks.expires_in,
        )

    def add_device(self, label: str, *, datatypes: Sequence[int] = (6000,), sources: int = 1) -> Device:
        """A device with one series for each of its sources and datatypes.

        Raises:
            ValueError: there is a device of this label.
        """
        id_group = _name(label)
        if id_group in self.devices:
            raise ValueError(f"there is already a device {label!r}")
        physical = tuple(_name(f"{label}/{number}") for number in range(sources))
        series = tuple(
            Series(_name(f"{source}/{datatype}"), id_group, source, datatype)
            for source in physical
            for datatype in datatypes
        )
        device = Device(len(self.devices) + 1, id_group, label, physical, series, self._now())
        self.devices[id_group] = device
        self.series |= {one.id_container_data_latest: one for one in series}
        return device

    def rename_device(self, id_group: str, label: str) -> None:
        self.devices[id_group] = replace(self.devices[id_group], label=label)

    def open_session(
        self,
        id_group: str,
        *,
        label: str | None = None,
        start: float | None = None,
        created_at: float | None = None,
    ) -> str:
        """The new session's id."""
        device = self.devices[id_group]
        started = self._now() if start is None else int(start)
        created = self._now() if created_at is None else int(created_at)
        session = Session(
            id_data_session=self._new_id(),
            id_group=id_group,
            label=_default_label(device, started) if label is None else label,
            start=started,
            created_at=created,
            updated_at=None if self.quirks.no_updated_at else created,
        )
        self.sessions.put(session)
        return session.id_data_session

    def add_points(
        self, session: str, series: str, points: Iterable[tuple[float, float]], *, touch: bool = True
    ) -> None:
        """Raw samples `(timestamp, value)`; with `touch=False` the session's `updated_at` stays."""
        if series not in self.series:
            raise KeyError(series)
        before = self.session(session)
        new = self.samples.add(session, series, points)
        # Whether BACE touches a session when samples arrive is not documented: a client must live with both.
        updated_at = self._now() if touch else before.updated_at
        self.sessions.put(replace(before, datapoint_count=before.datapoint_count + new, updated_at=updated_at))

    def end_session(self, session: str, *, end: float | None = None) -> None:
        self.change(session, end=self._now() if end is None else int(end))

    def finish_ingestion(self, session: str) -> None:
        self.change(session, is_ingestion_finished=True)

    def move_session(self, session: str, id_group: str) -> None:
        """Into another group; its data stays that of the series that measured it."""
        self.change(session, id_group=self.devices[id_group].id_group)

    def change(self, session: str, **facts: Any) -> None:
        """Gives fields of `Session` other values, now. Raises KeyError: there is no such session."""
        self.sessions.put(replace(self.session(session), updated_at=self._now(), **facts))

    def remove_session(self, session: str) -> None:
        self.session(session)
        self.sessions.remove(session)
        self.samples.forget(session)

    def add_history(
        self,
        count: int,
        *,
        groups: Sequence[str] = (),
        first_start: float,
        spacing: float,
        duration: float,
        points: int = 0,
    ) -> list[str]:
        """`count` finished sessions, in turn for each of `groups` (none given: of all devices).

        Each has `points` samples of its device's first series. Returns their ids, the oldest first.
        """
        devices = [self.devices[group] for group in groups or self.devices]
        if not devices:
            raise ValueError("there is no device yet that could have a history")
        sessions = []
        for number in range(count):
            device, start = devices[number % len(devices)], first_start + number * spacing
            end = int(start + duration)
            finished = Session(
                id_data_session=self._new_id(),
                id_group=device.id_group,
                label=_default_label(device, int(start)),
                start=int(start),
                created_at=int(start) + _CREATED_AFTER,
                updated_at=end + _UPDATED_AFTER,
                end=end,
                datapoint_count=points,
                is_ingestion_finished=True,
            )
            sessions.append(finished)
            if points:
                series = device.series[0].id_container_data_latest
                # Plain numbers: a history of a million samples must not take minutes to make.
                made = [(start + one * duration / points, 60.0 + one % 20) for one in range(points)]
                self.samples.add(finished.id_data_session, series, made)
        self.sessions.put_new(sessions)
        return [session.id_data_session for session in sessions]

    def session(self, identifier: str) -> Session:
        """The session as it is now.

        Raises:
            KeyError: there is none (any more).
        """
        return self.sessions.by_id[identifier]

    def as_listed(self) -> "SimulatedCloud":
        """As a list finds it: as it is or, where a replica answers, as it was a little earlier."""
        replica, lag, stale = self._replica, self.quirks.replica_lag, self.quirks.stale_rows
        # A shallow copy: a reader of lists, which shares everything but what lags.
        read = copy(self)
        if replica and lag and replica.lags_now(lag):
            read.sessions, read.samples = replica.as_it_was(lag, self.sessions, self.samples)
        elif replica and stale and replica.lags_now(stale):
            read.sessions = replica.with_stamps_of_now(stale, self.sessions, self.samples)
        return read

    @property
    def is_in_maintenance(self) -> bool:
        maintenance, age = self.quirks.maintenance, self.clock() - self.began
        return maintenance is not None and age % maintenance.every >= maintenance.every - maintenance.lasts

    def series_of(self, session: Session) -> Iterator[Series]:
        """Those that have samples in it, or, when none has, those of its device."""
        measured = self.samples.of(session.id_data_session)
        # By its samples first: a session that was moved to another device keeps the series that measured it.
        if measured:
            yield from (self.series[identifier] for identifier in measured)
        else:
            yield from self.devices[session.id_group].series

    def _now(self) -> int:
        return int(self.clock())

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))


def _default_label(device: Device, start: int) -> str:
    return f"{device.label} {datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M}"


def _name(text: str) -> str:
    return str(uuid.uuid5(_NAMES, text))
