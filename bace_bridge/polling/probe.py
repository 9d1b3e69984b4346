"""Finds with few requests where a long data session has datapoints, and reads those of a day at once."""

import structlog

from bace_bridge.polling.points import PointReader
from bace_bridge.polling.reading import Unreadable
from bace_bridge.polling.rules.datapoints import Datapoint, samples_per_hour
from bace_bridge.polling.rules.ranges import LATEST_FILTER
from bace_bridge.polling.rules.readings import shown_by_day
from bace_bridge.polling.rules.windows import EARLIEST_WINDOW, Window

log = structlog.get_logger()

MOST_OF_A_DAY = 500
"""Samples on a day up to which its windows are read with one request: they fit a page of BACE's."""


class Probe:
    """One for a fetch. It only saves requests, and decides nothing: where it shows nothing, windows are read alone."""

    def __init__(self, points: PointReader, session_id: str) -> None:
        self._points = points
        self._session_id = session_id
        self._same_by_day: bool | None = None
        self.samples: dict[int, int] | None = None

    async def hours(self) -> dict[int, int] | None:
        """The samples in each hour, from one request: of more than a day even a long session comes in few rows.

        None where that cannot be had.
        """
        if self.samples is None:
            try:
                read = await self._points.read(EARLIEST_WINDOW, LATEST_FILTER)
            except Unreadable as fault:
                log.debug("datapoints.not_probed", session=self._session_id, reason=str(fault))
                return None
            if read.own:
                self.samples = samples_per_hour(read.points)
        return self.samples

    async def read_day(self, day: Window, windows: list[Window]) -> dict[Window, list[Datapoint]]:
        """What one request shows of the windows of a day in which few samples were found.

        Lone samples come as they are, however long the interval. That this cloud does so is seen on one of the windows.
        """
        samples = sum((self.samples or {}).get(window.start, 0) for window in windows)
        if len(windows) == 1 or not 0 < samples <= MOST_OF_A_DAY or self._same_by_day is False:
            return {}
        try:
            shown = shown_by_day((await self._points.read(*day)).points, windows, self.samples or {})
            if shown and self._same_by_day is None:
                fullest = max(shown, key=lambda window: len(shown[window]))
                own = await self._points.read(*fullest)
                self._same_by_day = {*own.points} == {*shown[fullest]}
        except Unreadable:
            return {}
        return shown if self._same_by_day else {}
