"""Asks for the data sessions of the watched devices alone, where the server honours that."""

from collections.abc import Callable, Sequence

import structlog

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.needs import SessionCloud
from bace_bridge.polling.reading import BREAKS
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.ranges import NOBODY, is_recent
from bace_bridge.polling.rules.selection import are_ids

log = structlog.get_logger()

CHECK_EVERY = 3600.0
"""Seconds after which it is checked again whether the filter is honoured."""

MOST_GROUPS = 10
"""Groups in a filter: the answer's `Link` header repeats their ids three to five times."""


class GroupFilter:
    """`filter[id_group]` for `cloud.groups`, if these are ids. A label may become another device's at any time."""

    def __init__(self, cloud: SessionCloud, groups: Sequence[str], *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._groups = tuple(sorted(groups))
        self._possible = 0 < len(groups) <= MOST_GROUPS and are_ids(groups)
        self._clock = clock
        self._checked_at: float | None = None
        self._honoured = False

    async def params(self) -> session_list.Params:
        """The filter: believed where it shows rows, all of these devices, and none for a device that does not exist.

        Raises CloudErrors that are about the cloud as a whole.
        """
        if self._possible and not is_recent(self._checked_at, self._clock(), CHECK_EVERY):
            try:
                shown = await self._shown(self._groups)
                self._honoured = bool(shown) and shown <= {*self._groups} and not await self._shown([NOBODY])
            except (CloudRefused, *BREAKS):
                self._honoured = False
            self._checked_at = self._clock()
            log.debug("cloud.group_filter", honoured=self._honoured)
        return session_list.of_groups(self._groups) if self._honoured else ()

    async def _shown(self, groups: Sequence[str]) -> set[str]:
        params = (*session_list.NEWEST_FIRST, *session_list.of_groups(groups))
        page = await self._cloud.session_page(params, 1, per_page=1, expand=False)
        return {row.session.group_id for row in page.items}
