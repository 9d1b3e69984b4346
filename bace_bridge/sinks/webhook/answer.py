"""What a webhook's answer says about the delivery: pure."""

from collections.abc import Mapping, Sequence

from bace_bridge.domain.retry_after import retry_after
from bace_bridge.errors import DeliveryFailed, SinkDisabled, SinkError

LONGEST_QUOTE = 200
"""Characters of the answer's body that a message quotes."""

LONGEST_ANSWER = 2048
"""Bytes of the answer's body that are read, and characters of it that are kept with the attempt."""

_GONE = 410
_ASKS_FOR_SILENCE = (429, 503)


def judge(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, private: Sequence[str] = ()
) -> SinkError | None:
    """None where the event was delivered, else what went wrong.

    `headers` finds its keys whatever their case. No message shows the `private` texts.
    """
    if headers.get("webhook-delivery", "").strip().lower() == "disable":
        return SinkDisabled(f"HTTP {status}: the endpoint asks for no more (webhook-delivery: disable)", status=status)
    if status == _GONE:
        return SinkDisabled("HTTP 410: the endpoint is gone", status=status)
    if 200 <= status < 300:  # noqa: PLR2004  # the class of status codes
        return None
    if 300 <= status < 400:  # noqa: PLR2004  # the class of status codes
        return DeliveryFailed(f"HTTP {status}: redirects are not followed; configure the final address", status=status)
    answer = excerpt(body, private)
    quote = shortened(answer, LONGEST_QUOTE)
    message = f"HTTP {status}: {quote}" if quote else f"HTTP {status}"
    wait = retry_after(headers, now=now) if status in _ASKS_FOR_SILENCE else 0.0
    return DeliveryFailed(message, retry_after=wait, status=status, answer=shortened(answer, LONGEST_ANSWER))


def excerpt(body: bytes, private: Sequence[str] = ()) -> str:
    """A body as one printable line."""
    text = body.decode("utf-8", "replace")
    for secret in private:
        text = text.replace(secret, "***")
    if len(body) >= LONGEST_ANSWER:
        text = _without_beginning_of_secret(text, private)
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())


def shortened(line: str, longest: int) -> str:
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _without_beginning_of_secret(text: str, private: Sequence[str]) -> str:
    """What was cut off may have been the rest of a secret whose beginning stands at the end."""
    longest = max(
        (length for secret in private for length in range(1, len(secret)) if text.endswith(secret[:length])), default=0
    )
    return text[: len(text) - longest]
