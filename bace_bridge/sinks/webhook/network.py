"""What went wrong below HTTP, in words for people that hold no credential."""

import os
import ssl

import aiohttp

from bace_bridge.errors import DeliveryFailed
from bace_bridge.sinks.webhook.reply import NotHttp

_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, "no answer within {timeout:g} s"),
    (aiohttp.ClientConnectorDNSError, "the host's name cannot be resolved"),
    (NotHttp, "the answer is not HTTP"),
    (UnicodeError, "the host's name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "the TLS certificate is refused: {reason}"),
    (ssl.SSLError, "TLS failed: {reason}"),
    (aiohttp.ClientConnectorError, "cannot connect: {reason}"),
    (aiohttp.ServerDisconnectedError, "the connection was closed without an answer"),
    (OSError, "the connection broke: {reason}"),
    (ValueError, "the host cannot be used"),
    (Exception, "the connection broke: {reason}"),
)
"""The first class that fits counts. aiohttp's own texts may hold the URL, which is a credential."""


def what_went_wrong(error: Exception, *, timeout: float) -> DeliveryFailed:
    words = next(words for kind, words in _WORDS if isinstance(error, kind))
    return DeliveryFailed(words.format(timeout=timeout, reason=_reason(error)))


def _reason(error: Exception) -> str:
    cause = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.replace("_", " ").lower()
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    return type(cause).__name__
