from datetime import UTC, datetime

import msgspec

EARLIEST, LATEST = -62_000_000_000.0, 253_000_000_000.0
"""Epoch seconds of the years 5 and 9987: what lies beyond, and NaN, is no time that a calendar holds."""


def iso_utc(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with `Z`.

    Whole seconds have no fraction; others have milliseconds, or microseconds where milliseconds would lose digits.
    """
    # msgspec writes a time in a tenth of the time that isoformat takes, and each delivery has one.
    text = msgspec.json.encode(datetime.fromtimestamp(seconds, UTC))[1:-1].decode()
    return f"{text[:-4]}Z" if "." in text and text.endswith("000Z") else text
