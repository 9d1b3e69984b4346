"""Walks over the whole session list, slowly: some rows are shown by no filter."""

from collections.abc import Callable

from msgspec.structs import replace

from bace_bridge.polling.reading import MOST_NARROWING, Reader, is_last
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE

SHARE = 0.05
"""The part of the request budget that the backfill takes at most."""

LONGEST_WAIT = 3600.0
"""Seconds: a longer wait is that of a clock which was set back."""

PAGES_AT_ONCE = 5
"""Pages in one poll where the backfill does not wait."""


class Backfill:
    """A page now and then, a pass every `interval` seconds; by id, since ids stay where they are while rows change.

    After a first start and for devices that were added it does not wait, nor where new sessions may be on any page.
    """

    def __init__(
        self,
        recorder: SessionRecorder,
        *,
        interval: float,
        requests_per_minute: int,
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self.interval = interval
        self._pace = 60.0 / (requests_per_minute * SHARE)
        self._clock = clock
        self._lost = False

    async def step(
        self, state: PollState, reader: Reader, *, only_way: bool = False, steady: bool = False
    ) -> PollState:
        """The state after the pages that are due.

        `only_way` says that nothing else finds new sessions, `steady` that a pass is to follow the one before.
        """
        at_once = only_way or state.catching_up
        if not at_once and 0 < state.backfill_at - self._clock() <= max(self.interval, LONGEST_WAIT):
            return state
        number, before, begun_with = state.backfill_page, reader.requests, reader.breaks
        for _ in range(PAGES_AT_ONCE if at_once else 1):
            page = await reader.page(session_list.BY_ID, number)
            if reader.breaks >= MOST_NARROWING and (begun_with or number > state.backfill_page):
                break  # some of it was left unread: a poll that begins with it reads more
            self._recorder.unreadable.name_rows(page.lost, f"data sessions, page {number}")
            self._lost = self._lost or bool(page.lost)
            if page.page in {None, number}:
                await self._recorder.record(page, state)
            if is_last(page, number):
                return self._after_pass(state, steady=steady, paid=self._pace * (reader.requests - before))
            number += 1
        paid = self._pace * (reader.requests - before)
        return replace(state, backfill_page=number, backfill_at=self._clock() + paid)

    def _after_pass(self, state: PollState, *, steady: bool, paid: float) -> PollState:
        """A pass in which a record could not be read is repeated earlier, but not before `paid` seconds."""
        wait = 0.0 if steady else min(self.interval, RETRY_UNREADABLE) if self._lost else self.interval
        self._lost = False
        return replace(state, backfill_page=1, backfill_at=self._clock() + max(wait, paid), catching_up=False)
