"""Datapoints, where it is made sure what a failure is about: this data session, or the cloud."""

from bace_bridge.errors import CloudError, CloudFault, CloudLoginFailed, CloudRefused, CloudUnavailable, UnexpectedReply
from bace_bridge.polling.needs import PointCloud
from bace_bridge.polling.rules.ranges import NOBODY
from bace_bridge.polling.rules.seen import PointsRead, Urgency

OWN = (CloudRefused, CloudFault, UnexpectedReply)
"""What may be about this very request. Everything else is the cloud being away."""


class SurePoints:
    """Raises one of OWN only where the cloud fails at this data session before and after it answered a witness.

    An outage looks like a broken data session: a 500, a hotel's HTML with 200, a 401 by a login service that is away.
    """

    def __init__(self, cloud: PointCloud, session_id: str, urgency: Urgency) -> None:
        self._cloud = cloud
        self._session_id = session_id
        self._urgency = urgency

    async def read(self, start: int | None, end: int | None) -> PointsRead:
        try:
            return await self._cloud.datapoints(self._session_id, start, end, urgency=self._urgency)
        except OWN as fault:
            await self._ask_witness(fault)
        return await self._cloud.datapoints(self._session_id, start, end, urgency=self._urgency)

    async def _ask_witness(self, fault: CloudError) -> None:
        """The datapoints of nobody; where these are refused, the endpoint may be forbidden: then the session list."""
        try:
            await self._cloud.datapoints(NOBODY, 0, 60, urgency=self._urgency)
        except CloudRefused:
            pass
        except (CloudFault, UnexpectedReply):
            raise CloudUnavailable(f"the cloud answers no datapoints at all: {fault}") from None
        else:
            return
        try:
            await self._cloud.session_page((), 1, per_page=1)
        except (CloudRefused, CloudFault, UnexpectedReply, CloudLoginFailed):
            raise CloudUnavailable(f"the cloud answers nothing: {fault}") from None
