"""BACE's resources: data sessions, downsampled datapoints and groups. Endpoints, page sizes and filters live here."""

from contextlib import AbstractAsyncContextManager

from bace_bridge.cloud.http import CloudHttp, Download, Params
from bace_bridge.cloud.replies import parse_datapoints, parse_groups, parse_series_axes
from bace_bridge.cloud.session_rows import parse_session, parse_sessions
from bace_bridge.errors import UnexpectedReply
from bace_bridge.polling.rules.changes import Page, SeenSession, Urgency
from bace_bridge.polling.rules.datapoints import Datapoint

SESSIONS = "/api/v2/data-session"
ONE_SESSION = "/api/v2/data-session/view"
DATAPOINTS = "/api/v2/data-downsampled"
GROUPS = "/api/v2/group"

SESSIONS_PER_PAGE = 100
DATAPOINTS_PER_PAGE = 5000
"""What is requested; the server clamps both to its own limits and says so in `_meta`."""


def csv_url(base_url: str, session_id: str) -> str:
    return f"{base_url.rstrip('/')}{SESSIONS}/{session_id}/download-csv"


class BaceCloud:
    """What the bridge asks of the cloud. Every method raises CloudErrors only."""

    def __init__(self, http: CloudHttp) -> None:
        self._http = http

    @property
    def clock_ahead(self) -> float:
        """Seconds that the cloud's clock is ahead of ours, as far as its answers show."""
        return self._http.clock_ahead

    async def session_page(
        self, params: Params, page: int, *, per_page: int = SESSIONS_PER_PAGE, expand: bool = True
    ) -> Page[SeenSession]:
        """A page of the list; `expand` brings the labels of the groups along, where the server knows that."""
        more = [("expand", "group")] if expand else []
        # A page beyond the last one is answered with the last one (Yii's validatePage): see `polling.reading.pages`.
        query = [*params, *more, ("per-page", str(per_page)), ("page", str(page))]
        reply = await self._http.get(SESSIONS, query, urgency=Urgency.SESSIONS)
        return parse_sessions(reply.body, reply.headers)

    async def session(self, session_id: str) -> SeenSession:
        """One data session. Raises CloudGone where it cannot be seen any more."""
        query = [("id", session_id), ("expand", "group")]
        seen = parse_session((await self._http.get(ONE_SESSION, query, urgency=Urgency.SESSIONS)).body)
        # A server that ignores `id` shows some session or other: that says nothing of this one.
        if seen.session.id.lower() != session_id.lower():
            raise UnexpectedReply(f"got another data session instead of {session_id}")
        return seen

    def csv(self, session_id: str) -> AbstractAsyncContextManager[Download]:
        """The CSV of a data session, of any size. Nobody watches a download wait: it comes after all that is polled."""
        path = csv_url("", session_id)
        return self._http.download(path, endpoint=csv_url("", "*"), urgency=Urgency.BACKLOG)

    async def group_page(self, page: int) -> Page[tuple[str, str | None]]:
        """Ids and labels of groups, as urgent as the session list: a poll of it waits for them."""
        # Sorted, since pages of a list without an order need not be cut from the same one (PostgreSQL).
        query = [("sort", "id_group"), ("per-page", "100"), ("page", str(page))]
        reply = await self._http.get(GROUPS, query, urgency=Urgency.SESSIONS)
        return parse_groups(reply.body, reply.headers)

    async def point_page(self, params: Params, page: int, *, urgency: Urgency) -> Page[Datapoint]:
        query = [*params, ("per-page", str(DATAPOINTS_PER_PAGE)), ("page", str(page))]
        reply = await self._http.get(DATAPOINTS, query, urgency=urgency)
        return parse_datapoints(reply.body, reply.headers)

    async def series_axes(self, session_id: str, *, urgency: Urgency) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The datatypes and the source devices of a data session, as far as the cloud names them."""
        query = [("id", session_id), ("expand", "datatypes,physicalDevices")]
        return parse_series_axes((await self._http.get(ONE_SESSION, query, urgency=urgency)).body)
