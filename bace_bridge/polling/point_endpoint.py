"""What the cloud's datapoints are seen to be like, whichever data session they are asked for."""

import asyncio
from collections.abc import Callable

import structlog

from bace_bridge.domain.retry import backoff
from bace_bridge.errors import CloudError, CloudLoginFailed, CloudRefused, CloudUnavailable
from bace_bridge.polling.needs import PointCloud
from bace_bridge.polling.reading import BREAKS
from bace_bridge.polling.rules.point_pages import PointQuery
from bace_bridge.polling.rules.ranges import NOBODY
from bace_bridge.polling.rules.seen import Urgency

log = structlog.get_logger()

FIRST_REST, LONGEST_REST = 600.0, 21_600.0
"""Seconds after which datapoints that the account may not read are asked for again, at first and at last."""

MOST_NAMED = 1000
"""Rows that are named in the log, so that remembering which were has a bound."""


class PointsForbidden(CloudError):
    """The account may not read any datapoints. Try again, rarely."""


class PointEndpoint:
    """One for all fetches of a process, so that what one of them has learned costs the others no request."""

    def __init__(self, cloud: PointCloud, *, clock: Callable[[], float]) -> None:
        self._cloud = cloud
        self._clock = clock
        self._checking = asyncio.Lock()
        self._refusal: str | None = None
        self._refusals = 0
        self._refused_at = 0.0
        self._keeps_to_sessions: bool | None = None
        self._asked_at = 0.0
        self._named: set[tuple[str, str]] = set()

    @property
    def problem(self) -> str | None:
        if self._refusal is not None:
            return f"this account may not read datapoints: {self._refusal}"
        if self._keeps_to_sessions is False:
            return (
                "the cloud ignores filter[id_data_session] of datapoints: "
                "only those of a data session's own device and time are published"
            )
        return None

    @property
    def rest(self) -> float:
        """Seconds for which datapoints are not asked for, because the account may not read them."""
        if self._refusal is None:
            return 0.0
        rest = backoff(self._refusals, jitter=0.0, first=FIRST_REST, longest=LONGEST_REST)
        waited = self._clock() - self._refused_at
        return rest - waited if 0 <= waited < rest else 0.0

    async def ensure_allowed(self) -> None:
        """Raises PointsForbidden while the account may not read any datapoints."""
        if self._refusal is not None:
            await self.check()

    async def check(self) -> None:
        """The canary request: returns where the datapoints of no data session can be had, so that it is not the cloud.

        An outage looks like a broken data session: a 500, a hotel's HTML with 200, a 401 by a login service that is
        away. Where also the session list is refused it is one; where it is not, the account lacks the permission.
        """
        async with self._checking:
            if self.rest > 0:
                raise PointsForbidden(str(self._refusal))
            try:
                await self._cloud.point_page(PointQuery(NOBODY, 0, 60).params, 1, urgency=Urgency.LIVE)
            except CloudRefused as refusal:
                await self._ask_session_list(refusal)
                self._note_refusal(str(refusal))
                raise PointsForbidden(str(refusal)) from None
            if self._refusal is not None:
                log.info("datapoints.allowed_again")
            self._refusal, self._refusals = None, 0

    async def _ask_session_list(self, refusal: CloudRefused) -> None:
        try:
            await self._cloud.session_page((), 1, per_page=1)
        except (CloudRefused, CloudLoginFailed, *BREAKS):
            raise CloudUnavailable(f"the cloud answers nothing: {refusal}") from None

    def _note_refusal(self, reason: str) -> None:
        if self._refusal is None:
            log.warning("datapoints.forbidden", reason=reason, then="asking again in 10 min, then ever more rarely")
        self._refusal, self._refused_at = reason, self._clock()
        self._refusals += 1

    async def keeps_to_sessions(self, query: PointQuery, *, doubt: bool, urgency: Urgency) -> bool:
        """Whether rows that came for `query` are its data session's; `doubt` where some are of another group.

        The same query for no data session must show nothing. That is asked once, and again where there is a doubt.
        """
        kept = self._keeps_to_sessions
        if kept is None or (kept and doubt) or not (kept or 0 <= self._clock() - self._asked_at < LONGEST_REST):
            try:
                page = await self._cloud.point_page(query._replace(session_id=NOBODY).params, 1, urgency=urgency)
            except CloudRefused:
                kept = True
            except BREAKS:
                return kept is not False and not doubt
            else:
                kept = not page.count
            if not kept and self._keeps_to_sessions is not False:
                log.error("cloud.session_filter_not_honoured", then="only the device's own datapoints are published")
            self._keeps_to_sessions, self._asked_at = kept, self._clock()
        return kept

    def name_unreadable(self, session_id: str, rows: tuple[str, ...]) -> None:
        """Names each row that cannot be read once."""
        for row in rows:
            if (session_id, row) not in self._named and len(self._named) < MOST_NAMED:
                self._named.add((session_id, row))
                log.warning("cloud.datapoint_unreadable", session=session_id, row=row)
