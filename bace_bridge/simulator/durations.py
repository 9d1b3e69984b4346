import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")

LONGEST = 18_250 * 86_400.0
"""Seconds: half a century, so that the simulated cloud's times are times."""


def seconds(written: object) -> float:
    """`10s`, `1.5m`, `2h`, `500ms` or a plain number of seconds.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(written, int | float) and not isinstance(written, bool):
        amount = float(written)
    else:
        match = _WRITTEN.fullmatch(written.strip()) if isinstance(written, str) else None
        if match is None:
            raise ValueError(f"{written!r} is no duration, write such as 500ms, 10s, 5m, 2h or 1d")
        amount = float(match[1]) * _UNITS[match[2] or "s"]
    if not math.isfinite(amount) or amount < 0:
        raise ValueError(f"{written!r} is no duration, it must be finite and not negative")
    if amount > LONGEST:
        raise ValueError("a duration is at most 18250d")
    return amount
