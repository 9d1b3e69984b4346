"""A database replica that lags: some reads find the cloud as it was some seconds ago."""

import random
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias

from bace_bridge.simulator.durations import seconds
from bace_bridge.simulator.facts import Session
from bace_bridge.simulator.samples import Samples
from bace_bridge.simulator.shelf import Shelf

_SHARE = re.compile(r"([1-9]\d?|100)%")
_Undo: TypeAlias = Callable[[Shelf, Samples], None]


@dataclass(frozen=True, slots=True)
class Lag:
    """`share`: of all reads, those that find what was `seconds` ago."""

    seconds: float
    share: float

    @staticmethod
    def parse(written: str) -> "Lag":
        """`5s 30%`. Raises ValueError."""
        behind, _space, share = written.partition(" ")
        match = _SHARE.fullmatch(share)
        if match is None:
            raise ValueError(f"{share!r} is no share from 1% to 100%")
        return Lag(seconds(behind), int(match[1]) / 100)


class Replica:
    """What happened in the last few seconds, so that a read can be answered as if it had not happened yet."""

    def __init__(self, *, clock: Callable[[], float], remembers: float, seed: int) -> None:
        self._clock = clock
        self._remembers = remembers
        # Of its own, so that ids do not depend on how often the cloud is read.
        self._random = random.Random(seed)  # noqa: S311 - repeatable, no secrets
        self._undos: deque[tuple[float, _Undo]] = deque()
        self._versions = count(-1, -1)

    def session_changes(self, identifier: str, before: Session | None) -> None:
        self._note(lambda shelf, _: shelf.restore(identifier, before))

    def points_change(self, session: str, series: str, before: Mapping[float, float | None]) -> None:
        self._note(lambda _, samples: samples.restore(session, series, before))

    def lags_now(self, lag: Lag) -> bool:
        return self._random.random() < lag.share

    def as_it_was(self, lag: Lag, shelf: Shelf, samples: Samples) -> tuple[Shelf, Samples]:
        """Copies, as of so many seconds ago."""
        version = next(self._versions)
        old_shelf, old_samples = shelf.copy(version), samples.copy(version)
        moment = self._clock() - lag.seconds
        for at, undo in reversed(self._undos):
            if at <= moment:
                break
            undo(old_shelf, old_samples)
        return old_shelf, old_samples

    def with_stamps_of_now(self, lag: Lag, shelf: Shelf, samples: Samples) -> Shelf:
        """The sessions as of so many seconds ago, those of then and now, with the `updated_at` of now."""
        then, _ = self.as_it_was(lag, shelf, samples)
        mixed = shelf.copy(next(self._versions))
        for session in shelf.all():
            old = then.get(session.id_data_session)
            if old is not None and old is not session:
                mixed.restore(session.id_data_session, replace(old, updated_at=session.updated_at))
        return mixed

    def _note(self, undo: _Undo) -> None:
        now = self._clock()
        while self._undos and self._undos[0][0] < now - self._remembers:
            self._undos.popleft()
        self._undos.append((now, undo))
