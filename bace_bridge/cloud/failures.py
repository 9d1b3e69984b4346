"""What an answer means that is not the one expected: BACE's errors, and what came in place of JSON. Pure."""

import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from aiohttp import http_exceptions

from bace_bridge.errors import (
    CloudBadGateway,
    CloudError,
    CloudFault,
    CloudGone,
    CloudRefused,
    CloudRequestTooLarge,
    CloudUnavailable,
    UnexpectedReply,
)
from bace_bridge.formats import decoded_leniently
from bace_bridge.redaction import Quote, quoted_as_it_is
from bace_bridge.retry import rate_limit, retry_after

LONGEST_MESSAGE = 120
"""Characters of an error's message that are quoted."""


class _Problem(msgspec.Struct):
    name: str | None = None
    message: str | None = None


_PROBLEM: Any = _Problem | list[Any]


def is_json(body: bytes) -> bool:
    try:
        decoded_leniently(body, msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


def parse_problem(body: bytes, quote: Quote = quoted_as_it_is) -> str | None:
    """The message of an error in BACE's own JSON, shortened; None where the body is something else (HTML)."""
    try:
        problem: _Problem | list[Any] = decoded_leniently(body, _PROBLEM, strict=False)
    except msgspec.DecodeError:
        return None
    if isinstance(problem, list):
        parts = [f"{one.get('field')}: {one.get('message')}" for one in problem if isinstance(one, dict)]
        return quote("; ".join(parts), LONGEST_MESSAGE)
    if problem.name is None and problem.message is None:
        return None
    return " ".join(quote(problem.message or problem.name or "", LONGEST_MESSAGE).split())


def instead_of_json(body: bytes) -> str:
    """What came in place of JSON, for people."""
    if not body.strip():
        return " (the answer was empty)"
    html = body.lstrip()[:1] == b"<"
    return " (HTML came: the login page of a network, a proxy, or a wrong cloud.url)" if html else ""


LARGEST_HEADER = 64 * 1024
"""Bytes of one header field, or of the status line. A `Link` header repeats the whole query up to five times."""

DEFAULT_SILENCE = 30.0
"""Seconds without a request after a 429 that does not say how long."""

LONGEST_SILENCE = 86400.0
"""Seconds: no answer can silence the bridge for longer."""


class Unauthorized(CloudRefused):
    """401: the token, or the permission for this endpoint, is missing."""


def of_answer(
    what: str, status: int, headers: Mapping[str, str], body: bytes, *, quote: Quote, now: float
) -> CloudError:
    """What an answer other than 2xx means. `quote` takes out the secrets that it repeats.

    `now` is the cloud's time, as far as it is known.
    """
    # The status alone decides: `code`, `status` and `type` of BACE's JSON may be missing, or texts.
    problem = parse_problem(body, quote)
    text = f"{what}: {status}" + (f" {problem}" if problem else "")
    wait = min(retry_after(headers, now=now), LONGEST_SILENCE)
    if status == 401:
        return Unauthorized(text, status=status)
    if status == 429:
        # Yii sends no Retry-After with a 429, but the seconds until its bucket is full again.
        reset = rate_limit(headers, now=now).reset or 0.0
        silence = max(wait, min(reset, LONGEST_SILENCE)) or DEFAULT_SILENCE
        return CloudUnavailable(f"{text} (rate limit)", retry_after=silence, status=status)
    if status == 500:
        # One bad row makes every page that holds it a 500, for ever: the caller narrows, and does not just wait.
        return CloudFault(text)
    if status == 502:
        # nginx says so where the answer's headers exceed 4 KB: our query was too long, or a gateway is down.
        return CloudBadGateway(text, retry_after=wait, status=status)
    if status in {413, 414, 431}:
        return CloudRequestTooLarge(text, status=status)
    if status > 500:
        return CloudUnavailable(text, retry_after=wait, status=status)
    if 300 <= status < 400:
        return UnexpectedReply(f"{text}: a redirect, which is not followed with the token: check cloud.url")
    # A proxy, or an unknown route, answers 404 in HTML: only BACE's own JSON says that a session is gone.
    if status in {404, 410} and problem is not None:
        return CloudGone(text, status=status)
    return CloudRefused(text, status=status)


def of_token_answer(failure: CloudError, status: int | None, body: bytes) -> CloudRefused | CloudUnavailable:
    """What a failure means at the token endpoint: CloudRefused, or that it cannot be used now.

    Nothing else that goes wrong here is about the request that needed the token.
    """
    # OAuth 2 refuses with 401, or with 400 and JSON. Any other 4xx is a proxy's or another server's, and a login for
    # the sake of that would be refused, too, and counted.
    if status == 401 or (status == 400 and is_json(body)):
        return CloudRefused(str(failure), status=status)
    if isinstance(failure, CloudUnavailable):
        return failure
    refused = isinstance(failure, CloudRefused | CloudRequestTooLarge)
    hint = ": it does not come from a token endpoint: check cloud.url" if refused else ""
    return CloudUnavailable(f"{failure}{hint}", status=status or 0)


def of_exception(what: str, error: Exception, *, timeout: float) -> CloudError:
    """What was raised below HTTP, in words without the URL, which aiohttp's own messages may hold."""
    if isinstance(error, TimeoutError):
        return CloudUnavailable(f"{what}: no answer within {timeout:g} s")
    # aiohttp wraps what its parser raises: the reason is somewhere down the chain of causes.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, http_exceptions.LineTooLong):
            return CloudRequestTooLarge(f"{what}: an answer with a header of more than {LARGEST_HEADER // 1024} KiB")
        cause = cause.__cause__
    return CloudUnavailable(f"{what}: {_why(error)}")


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.CertificateError):
        return "the server's TLS certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError):
        return "the connection was cut"
    if isinstance(error, aiohttp.InvalidURL):
        return "the URL cannot be used: check cloud.url"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the answer is not HTTP"
    return type(error).__name__
