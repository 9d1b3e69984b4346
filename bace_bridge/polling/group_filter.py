"""Asks for the data sessions of the watched devices alone, where the server honours that."""

from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from bace_bridge.errors import CloudRefused
from bace_bridge.polling.reading import Reader, Unreadable
from bace_bridge.polling.rules.changes import PollState
from bace_bridge.polling.rules.ranges import NOBODY, is_recent
from bace_bridge.polling.rules.selection import are_ids
from bace_bridge.polling.rules.session_list import NEWEST_FIRST, of_groups

log = structlog.get_logger()

CHECK_EVERY = 3600.0
"""Seconds after which it is checked again whether the filter is honoured."""

MOST_GROUPS = 10
"""Groups in a filter: the answer's `Link` header repeats their ids three to five times."""


async def with_group_filter(state: PollState, reader: Reader, groups: Sequence[str], *, now: float) -> PollState:
    """Sets `reader.of_groups`, if the groups are ids: a label may become another device's at any time.

    The filter is believed where it shows rows, all of these devices, and none for a device that does not exist.
    """
    if not 0 < len(groups) <= MOST_GROUPS or not are_ids(groups):
        return state
    if not is_recent(state.groups_checked_at, now, CHECK_EVERY):
        try:
            shown = await _groups_shown(reader, groups)
            honoured = bool(shown) and shown <= {*groups} and not await _groups_shown(reader, [NOBODY])
        except (CloudRefused, Unreadable):
            honoured = False
        log.debug("cloud.group_filter", honoured=honoured)
        state = replace(state, groups_checked_at=now, groups_honoured=honoured)
    reader.of_groups = of_groups(groups) if state.groups_honoured else ()
    return state


async def _groups_shown(reader: Reader, groups: Sequence[str]) -> set[str]:
    page = await reader.plain_page((*NEWEST_FIRST, *of_groups(groups)), 1, 1)
    return {row.session.group_id for row in page.items}
