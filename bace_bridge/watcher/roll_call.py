"""Asks for known data sessions by their ids: a removed one shows up in no list of updates."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from bace_bridge.domain import session_list
from bace_bridge.domain.changes import WatchState
from bace_bridge.domain.narrowing import PageAsk
from bace_bridge.domain.sessions import KnownSession
from bace_bridge.watcher.list_walk import BREAKS, FaultBudget
from bace_bridge.watcher.needs import SessionJournal
from bace_bridge.watcher.recording import SessionRecorder, place_of

ROLL_CALL = 50
RARE_ROLL_CALL = 10
"""With no unfinished session, only every so many-th roll call is made."""


class RollCall:
    """A call that breaks is halved, down to the one session on which the cloud breaks."""

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

    async def made(self, state: WatchState, budget: FaultBudget) -> WatchState:
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
        if unfinished or finished:
            await self._call([*unfinished, *finished], state.start_from, budget)
        return replace(
            state,
            roll_called_at=now,
            roll_call_after=unfinished[-1].session.id if not room else "",
            roll_call_finished_after=finished[-1].session.id if len(finished) == room and finished else "",
        )

    async def _call(self, called: Sequence[KnownSession], start_from: float, budget: FaultBudget) -> None:
        called = [known for known in called if not self._recorder.unread.rests(place_of(known))]
        ids = [known.session.id for known in called]
        if not ids:
            return
        params = session_list.by_ids(ids)
        try:
            page = await budget.asked(params, PageAsk(1, ROLL_CALL))
        except BREAKS:
            for part in (called[: len(called) // 2], called[len(called) // 2 :]) if len(called) > 1 else ():
                await self._call(part, start_from, budget)
            if len(called) == 1:
                await self._recorder.check(called, start_from=start_from)
            return
        answered = {row.session.id for row in page.items}
        if answered <= set(ids):
            await self._recorder.record(page.items, start_from=start_from)
            called = [known for known in called if known.session.id not in answered]
        await self._recorder.check(called, start_from=start_from)
