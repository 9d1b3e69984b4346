"""Asks for the data sessions of the watched devices alone, where the server honours that."""

from collections.abc import Callable, Sequence

import structlog

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.reading import BREAKS, Reader
from bace_bridge.polling.rules import session_list
from bace_bridge.polling.rules.ranges import NOBODY
from bace_bridge.polling.rules.selection import are_ids

log = structlog.get_logger()

CHECK_EVERY = 3600.0
"""Seconds after which it is checked again whether the filter is honoured."""

MOST_GROUPS = 10
"""Groups in a filter: the answer's `Link` header repeats their ids three to five times."""


class GroupFilter:
    """`filter[id_group]` for `cloud.groups`, if these are ids. A label may become another device's at any time.

    The list must show rows with the filter, all of them of these devices, and none for a device that does not exist.
    Else everything is asked for, and what is not watched is left out here.
    """

    def __init__(self, groups: Sequence[str], *, clock: Callable[[], float]) -> None:
        self._groups = tuple(sorted(groups))
        self._possible = 0 < len(groups) <= MOST_GROUPS and are_ids(groups)
        self._clock = clock
        self._checked_at: float | None = None
        self._honoured = False

    @property
    def params(self) -> session_list.Params:
        return session_list.of_groups(self._groups) if self._honoured else ()

    async def check_due(self, reader: Reader) -> None:
        """Raises CloudErrors that are about the cloud as a whole."""
        if not self._possible or (self._checked_at is not None and 0 <= self._clock() - self._checked_at < CHECK_EVERY):
            return
        try:
            shown = await self._groups_shown(reader, self._groups)
            self._honoured = bool(shown) and shown <= {*self._groups} and not await self._groups_shown(reader, [NOBODY])
        except (CloudRefused, *BREAKS):
            self._honoured = False
        self._checked_at = self._clock()
        log.debug("cloud.group_filter", honoured=self._honoured)

    async def _groups_shown(self, reader: Reader, groups: Sequence[str]) -> set[str]:
        page = await reader.single_row((*session_list.NEWEST_FIRST, *session_list.of_groups(groups)))
        return {row.session.group_id for row in page.items}
