"""What a webhook's answer says about the delivery: pure."""

from collections.abc import Mapping

from bace_bridge.domain.redaction import Redaction
from bace_bridge.domain.retry_after import retry_after
from bace_bridge.errors import DeliveryFailed, SinkDisabled, SinkError

LONGEST_QUOTE = 200
"""Characters of the answer's body that a message quotes."""

LONGEST_ANSWER = 2048
"""Bytes of the answer's body that are read, and characters of it that are kept with the attempt."""

_GONE = 410
_ASKS_FOR_SILENCE = (429, 503)


def judge(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, redaction: Redaction
) -> SinkError | None:
    """None where the event was delivered, else what went wrong.

    `headers` finds its keys whatever their case. No message shows what the `redaction` knows.
    """
    if headers.get("webhook-delivery", "").strip().lower() == "disable":
        return SinkDisabled(f"HTTP {status}: the endpoint asks for no more (webhook-delivery: disable)", status=status)
    if status == _GONE:
        return SinkDisabled("HTTP 410: the endpoint is gone", status=status)
    if 200 <= status < 300:  # noqa: PLR2004  # the class of status codes
        return None
    if 300 <= status < 400:  # noqa: PLR2004  # the class of status codes
        return DeliveryFailed(f"HTTP {status}: redirects are not followed; configure the final address", status=status)
    answer = excerpt(body, redaction)
    quote = shortened(answer, LONGEST_QUOTE)
    message = f"HTTP {status}: {quote}" if quote else f"HTTP {status}"
    wait = retry_after(headers, now=now) if status in _ASKS_FOR_SILENCE else 0.0
    return DeliveryFailed(message, retry_after=wait, status=status, answer=shortened(answer, LONGEST_ANSWER))


def excerpt(body: bytes, redaction: Redaction) -> str:
    """A body as one printable line. One that is as long as what is read may have been cut off within a secret."""
    text = redaction(body.decode("utf-8", "replace"), cut_off=len(body) >= LONGEST_ANSWER)
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())


def shortened(line: str, longest: int) -> str:
    return line if len(line) <= longest else line[: longest - 1] + "…"
