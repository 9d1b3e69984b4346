from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MINUTE = 60.0
HOUR = 3600.0
DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Resolution:
    """Up to which requested interval (seconds) the answer is raw, and up to which a row a minute.

    BACE does not tell its own thresholds, so they can be set; `raw=0` never answers raw samples.
    """

    raw: float = HOUR
    minute: float = DAY

    def width(self, interval: float | None) -> float:
        """The seconds in one bucket, 0 for raw samples; `interval` None: the request names none."""
        if interval is None:
            return DAY
        if interval <= self.raw and self.raw > 0:
            return 0.0
        return MINUTE if interval <= self.minute else HOUR


class Bucket(NamedTuple):
    timestamp: float
    min_val: float
    max_val: float
    avg_val: float
    count_val: int


def buckets(
    times: Sequence[float], values: Sequence[float], width: float, *, lone_at_start: bool = False
) -> list[Bucket]:
    """Samples in ascending order -> what the cloud tells of them.

    A bucket of one sample keeps that sample's own time, unless `lone_at_start`; any other has that at which it begins.
    """
    if width <= 0:
        return [Bucket(at, value, value, value, 1) for at, value in zip(times, values, strict=True)]
    found = []
    first = 0
    while first < len(times):
        begins = times[first] // width * width
        behind = bisect_left(times, begins + width, first)
        # Guards against rounding: a bucket always holds at least the sample that opened it.
        behind = max(behind, first + 1)
        inside = values[first:behind]
        count = len(inside)
        average = inside[0] if count == 1 else round(sum(inside) / count, 6)
        at = times[first] if count == 1 and not lone_at_start else begins
        found.append(Bucket(at, min(inside), max(inside), average, count))
        first = behind
    return found
