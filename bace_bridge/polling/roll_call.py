"""Asks for known data sessions by their ids: a removed one shows up in no list of updates."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from bace_bridge.polling.list_walk import BREAKS, FaultBudget
from bace_bridge.polling.needs import SessionJournal
from bace_bridge.polling.recording import MOST_CHECKS, SessionRecorder, place_of
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.narrowing import PageAsk
from bace_bridge.polling.rules.sessions import KnownSession

ROLL_CALL = 50
RARE_ROLL_CALL = 10
"""With no unfinished session, only every so many-th roll call is made."""


class RollCall:
    """A call that breaks is halved, down to the one session on which the cloud breaks.

    Who is not in the answer is asked for alone, a few in a call: the cursor stops at the first who has to wait.
    """

    def __init__(
        self,
        journal: SessionJournal,
        recorder: SessionRecorder,
        *,
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._recorder = recorder
        self._interval = interval
        self._clock = clock

    async def made(self, state: PollState, budget: FaultBudget) -> PollState:
        """The state after a roll call, where it is time for one."""
        now = self._clock()
        waited = now - state.roll_called_at
        if 0 <= waited < self._interval:
            return state
        unfinished = await self._journal.unfinished_after(state.roll_call_after, ROLL_CALL)
        if not unfinished and 0 <= waited < RARE_ROLL_CALL * self._interval:
            return state
        room = ROLL_CALL - len(unfinished)
        finished = await self._journal.finished_after(state.roll_call_finished_after, room)
        call = _Call(self._recorder, state.start_from, budget)
        if unfinished or finished:
            await call.make([*unfinished, *finished])
        return replace(
            state,
            roll_called_at=now,
            roll_call_after=call.cursor(unfinished, state.roll_call_after, more=not room),
            roll_call_finished_after=call.cursor(
                finished, state.roll_call_finished_after, more=bool(finished) and len(finished) == room
            ),
        )


class _Call:
    """One roll call. `done` are the sessions that were answered for; the others are called again the next time."""

    def __init__(self, recorder: SessionRecorder, start_from: float, budget: FaultBudget) -> None:
        self._recorder = recorder
        self._start_from = start_from
        self._budget = budget
        self._checks_left = MOST_CHECKS
        self.done: set[str] = set()

    def cursor(self, called: Sequence[KnownSession], before: str, *, more: bool) -> str:
        """The id up to which sessions were answered for; empty where the next call begins anew."""
        for known in called:
            if known.session.id not in self.done:
                return before
            before = known.session.id
        return before if more else ""

    async def make(self, called: Sequence[KnownSession]) -> None:
        resting = {one.session.id for one in called if self._recorder.unread.rests(place_of(one))}
        self.done |= resting
        called = [one for one in called if one.session.id not in resting]
        if not called:
            return
        try:
            await self._read_pages([one.session.id for one in called])
        except BREAKS:
            called = self._not_done(called)
            for part in (called[: len(called) // 2], called[len(called) // 2 :]) if len(called) > 1 else ():
                await self.make(part)
            if len(called) > 1:
                return
        called = self._not_done(called)[: self._checks_left]
        self._checks_left -= len(called)
        await self._recorder.check(called, start_from=self._start_from)
        self.done.update(one.session.id for one in called)

    def _not_done(self, called: Sequence[KnownSession]) -> list[KnownSession]:
        return [one for one in called if one.session.id not in self.done]

    async def _read_pages(self, ids: Sequence[str]) -> None:
        """All pages, unless the filter is seen to be ignored: then nothing that they show answers for anyone."""
        params = session_list.by_ids(ids)
        for number in range(1, len(ids) + 1):
            page = await self._budget.asked(params, PageAsk(number, ROLL_CALL))
            answered = {row.session.id for row in page.items}
            if not answered <= set(ids) or (page.page or number) != number:
                return
            await self._recorder.record(page.items, start_from=self._start_from)
            self.done |= answered
            if number >= (page.page_count or 1):
                return
