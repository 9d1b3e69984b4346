"""Ends the process at a chosen step of the line, so that a test can kill it where it hurts.

The parts are wrapped in `app`, and only where `BACE_BRIDGE_FAILPOINT` is set: none of them knows of this.
"""

import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from bace_bridge.errors import ConfigError, Mistake, SinkError
from bace_bridge.events.types import Attempt, Progress, Recorded
from bace_bridge.polling.rules.changes import Changes, Page, SeenSession

VARIABLE = "BACE_BRIDGE_FAILPOINT"

FETCHED = "fetched"
"""A page came from the cloud; nothing has been decided on it."""
COMMITTED = "committed"
"""`Journal.commit` has written; no dispatcher has read it."""
SENT = "sent"
"""An event was handed to a sink."""
ACKNOWLEDGED = "acknowledged"
"""The other side has confirmed an event; the dispatcher does not know yet."""
ADVANCED = "advanced"
"""`EventLog.record` has written a sink's progress."""

STEPS = (FETCHED, COMMITTED, SENT, ACKNOWLEDGED, ADVANCED)

Done = Callable[[SinkError | None], None]


class Cloud(Protocol):
    async def session_page(self, params: Any, page: int, *, per_page: int = ...) -> Page[SeenSession]: ...


class Commits(Protocol):
    async def commit(self, changes: Changes) -> None: ...


class Records(Protocol):
    async def record(self, sink: str, progress: Callable[[], Progress], *, now: float) -> tuple[Progress, Recorded]: ...


class Sends(Protocol):
    def send(self, attempt: Attempt, done: Done) -> None: ...


CloudT = TypeVar("CloudT", bound=Cloud)
CommitsT = TypeVar("CommitsT", bound=Commits)
RecordsT = TypeVar("RecordsT", bound=Records)
SendsT = TypeVar("SendsT", bound=Sends)


def asked_for(environment: Mapping[str, str]) -> "Failpoint | None":
    """The failpoint of the environment, such as `committed:37`. Raises ConfigError where it cannot be read."""
    written = environment.get(VARIABLE, "")
    if not written:
        return None
    step, _, number = written.partition(":")
    if step not in STEPS or not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        hint = f"write it as committed:37, with one of {', '.join(STEPS)} and a number from 1 on; or unset it"
        raise ConfigError([Mistake(VARIABLE, f"{written!r} is no failpoint", hint)])
    return Failpoint(step, int(number))


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Failpoint:
    """Ends the process at the `number`-th pass of `step`, counted over all parts and all reloads.

    `around_...` gives a part that behaves as the given one, up to there.
    """

    def __init__(self, step: str, number: int, *, end: Callable[[], None] = _kill_this_process) -> None:
        self._step = step
        self._left = number
        self._end = end

    def around_cloud(self, cloud: CloudT) -> CloudT:
        return cast("CloudT", _CloudUpTo(cloud, self._pass))

    def around_journal(self, journal: CommitsT) -> CommitsT:
        return cast("CommitsT", _JournalUpTo(journal, self._pass))

    def around_log(self, log: RecordsT) -> RecordsT:
        return cast("RecordsT", _LogUpTo(log, self._pass))

    def around_sink(self, sink: SendsT) -> SendsT:
        return cast("SendsT", _SinkUpTo(sink, self._pass))

    def _pass(self, step: str) -> None:
        if step != self._step:
            return
        self._left -= 1
        if self._left == 0:
            self._end()


class Untouched:
    """In place of a Failpoint where none is asked for."""

    def around_cloud(self, cloud: CloudT) -> CloudT:
        return cloud

    def around_journal(self, journal: CommitsT) -> CommitsT:
        return journal

    def around_log(self, log: RecordsT) -> RecordsT:
        return log

    def around_sink(self, sink: SendsT) -> SendsT:
        return sink


class _UpTo:
    """All that is not written out below is the part's own; whatever is given goes on to it as it is."""

    def __init__(self, part: Any, passed: Callable[[str], None]) -> None:
        self._part = part
        self._passed = passed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _CloudUpTo(_UpTo):
    async def session_page(self, *given: Any, **named: Any) -> Any:
        return self._fetched(await self._part.session_page(*given, **named))

    async def session(self, *given: Any, **named: Any) -> Any:
        return self._fetched(await self._part.session(*given, **named))

    async def group_page(self, *given: Any, **named: Any) -> Any:
        return self._fetched(await self._part.group_page(*given, **named))

    async def point_page(self, *given: Any, **named: Any) -> Any:
        return self._fetched(await self._part.point_page(*given, **named))

    def _fetched(self, answer: Any) -> Any:
        self._passed(FETCHED)
        return answer


class _JournalUpTo(_UpTo):
    async def commit(self, changes: Changes) -> None:
        await self._part.commit(changes)
        self._passed(COMMITTED)


class _LogUpTo(_UpTo):
    async def record(self, *given: Any, **named: Any) -> Any:
        recorded = await self._part.record(*given, **named)
        self._passed(ADVANCED)
        return recorded


class _SinkUpTo(_UpTo):
    def send(self, attempt: Attempt, done: Done) -> None:
        def acknowledged(error: SinkError | None) -> None:
            if error is None:
                self._passed(ACKNOWLEDGED)
            done(error)

        self._part.send(attempt, acknowledged)
        self._passed(SENT)
