from datetime import UTC, datetime


def iso_utc(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with `Z`.

    Whole seconds have no fraction; others have milliseconds, or microseconds where milliseconds would lose digits.
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    micros = moment.microsecond
    if not micros:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    precision = "microseconds" if micros % 1000 else "milliseconds"
    return moment.isoformat(timespec=precision).removesuffix("+00:00") + "Z"
