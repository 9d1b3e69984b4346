"""Polls the list of what was updated since the last poll."""

from collections.abc import Callable

from msgspec.structs import replace

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.reading import MOST_NARROWING, Reader
from bace_bridge.polling.recording import SessionRecorder
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import RETRY_UNREADABLE
from bace_bridge.polling.rules.seen import LostRow, Page, SeenSession

NAME = "the updated data sessions"

NOT_SUPPORTED = {400, 404, 422}
"""HTTP statuses of a server that does not know a filter or a sort."""


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
        self._news_at: float | None = clock()
        self._broke_at: float | None = None

    @property
    def rests(self) -> bool:
        """True for a while after the cloud broke on a record."""
        return self._broke_at is not None and 0 <= self._clock() - self._broke_at < RETRY_UNREADABLE

    def expect_no_news(self) -> None:
        """What is there was all known before: only what is updated from now on has to be read."""
        self._news_at = None

    async def poll(self, state: PollState, reader: Reader) -> PollState:
        """The state after a poll. Raises NotHonoured and CloudErrors."""
        quiet_for = None if self._news_at is None else self._clock() - self._news_at
        bound = session_list.bound_of(state, quiet_for=quiet_for)
        newest, new, last_id = None, False, ""
        lost: list[LostRow] = []
        try:
            async for page in reader.pages((*session_list.updated_since(bound), *reader.of_groups)):
                last_id = self._ensure_honoured(page, bound, last_id)
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
        if new or after.watermark > state.watermark:
            self._news_at = self._clock()
        broke = self._recorder.unreadable.name_rows(lost, NAME) is not None
        self._broke_at = self._clock() if broke else None
        return self._with_backfill(after, reader) if lost else after

    def _with_backfill(self, state: PollState, reader: Reader) -> PollState:
        """The watermark passes what cannot be read: the backfill finds it when it can be, and soon."""
        soon = min(state.backfill_at, self._clock() + RETRY_UNREADABLE)
        return replace(state, backfill_at=soon, catching_up=state.catching_up or reader.breaks >= MOST_NARROWING)

    def _ensure_honoured(self, page: Page[SeenSession], bound: float, last_id: str) -> str:
        """The last id of the page. Raises NotHonoured where its rows are not what was asked for."""
        rows = [row.session for row in page.items]
        if not session_list.updates_held(page, bound):
            raise NotHonoured("filter[updated_at] is ignored")
        if (page.page_count or 1) > 1 and not session_list.ids_ascend(rows, last_id):
            raise NotHonoured("sort=id_data_session is ignored")
        return rows[-1].id.lower() if rows else last_id
