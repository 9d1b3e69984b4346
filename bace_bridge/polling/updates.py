"""Polls the list of what was updated since the last poll."""

from collections.abc import Callable

from msgspec.structs import replace

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.reading import MOST_NARROWING, NOT_SUPPORTED, Reader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import LostRow, Page, SeenSession

NAME = "the updated data sessions"

MOST_BETWEEN = 30.0
"""Seconds between two lists that count as time in which nothing new came."""


class NotHonoured(Exception):  # control flow: the other strategy is taken
    """The server ignored or refused what this strategy rests on."""


class Updates:
    """Every row that was updated since the watermark, however many pages they are.

    Reading around a record on which the cloud breaks costs some dozen requests, so the list then rests for a while, and
    the polls in between do without it.
    """

    def __init__(
        self, recorder: SessionRecorder, *, clock: Callable[[], float], cloud_now: Callable[[], float]
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._cloud_now = cloud_now
        self._read_at = clock()
        self._quiet_for = 0.0
        self._broke_at: float | None = None

    @property
    def rests(self) -> bool:
        """True for a while after the cloud broke on a record."""
        return self._broke_at is not None and 0 <= self._clock() - self._broke_at < RETRY_UNREADABLE

    async def poll(self, state: PollState, reader: Reader) -> PollState:
        """The state after a poll. Raises NotHonoured and CloudErrors."""
        bound = session_list.bound_of(state, quiet_for=self._quiet_for)
        newest, new = None, False
        lost: list[LostRow] = []
        try:
            async for page in reader.pages((*session_list.updated_since(bound), *reader.of_groups)):
                self._ensure_honoured(page, bound)
                new = bool(await self._recorder.record(page, state)) or new
                lost += page.lost
                newest = session_list.newest_update(page, newest)
                if page.lost and page.total is None:
                    break  # not one of its rows can be read
        except CloudRefused as refusal:
            if refusal.status in NOT_SUPPORTED:
                raise NotHonoured(str(refusal)) from None
            raise
        after = session_list.with_watermark(state, newest, cloud_now=self._cloud_now())
        self._note_quiet(news=new or after.watermark > state.watermark)
        broke = self._recorder.unreadable.name_rows(lost, NAME) is not None
        self._broke_at = self._clock() if broke else None
        return self._with_backfill(after, reader) if lost else after

    def _note_quiet(self, *, news: bool) -> None:
        """Nothing is known of a time in which no list was read, and a clock that was set is no time that passed."""
        passed = min(max(0.0, self._clock() - self._read_at), MOST_BETWEEN)
        self._read_at = self._clock()
        self._quiet_for = 0.0 if news else self._quiet_for + passed

    def _with_backfill(self, state: PollState, reader: Reader) -> PollState:
        """The watermark passes what cannot be read: the backfill finds it when it can be, and soon."""
        soon = min(state.backfill_at, self._clock() + RETRY_UNREADABLE)
        return replace(state, backfill_at=soon, catching_up=state.catching_up or reader.breaks >= MOST_NARROWING)

    def _ensure_honoured(self, page: Page[SeenSession], bound: float) -> None:
        """Raises NotHonoured where the rows of a page are not what was asked for.

        The order is that within a page: rows that are updated meanwhile move others to the next one.
        """
        if not session_list.updates_held(page, bound):
            raise NotHonoured("filter[updated_at] is ignored")
        if (page.page_count or 1) > 1 and not session_list.ids_ascend([row.session for row in page.items]):
            raise NotHonoured("sort=id_data_session is ignored")
