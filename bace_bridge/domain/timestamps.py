from datetime import UTC, datetime


def iso_utc(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with `Z`.

    Whole seconds have no fraction; others have milliseconds, or microseconds where milliseconds would lose digits.
    """
    text = datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]  # without "+00:00"
    return f"{text.removesuffix('000')}Z" if "." in text else f"{text}Z"
