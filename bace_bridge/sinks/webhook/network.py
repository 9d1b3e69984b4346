"""What went wrong below HTTP, in words for people that hold no credential."""

import os
import ssl
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from urllib.parse import quote, quote_plus, unquote, urlsplit

import aiohttp

from bace_bridge.config.models import WebhookConfig
from bace_bridge.errors import DeliveryFailed
from bace_bridge.sinks.webhook.reply import NotHttp
from bace_bridge.sinks.webhook.request import basic_login

_SHORTEST_PART = 8
"""Characters of a part of a path or query: shorter ones are words such as `hook`, and help to read messages."""

_SHORTEST_SECRET = 4
"""Characters of a login, a header's value or a signing secret: a shorter text occurs by chance."""

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


def private_texts(config: WebhookConfig) -> tuple[str, ...]:
    """What an answer may echo and no message may show, the longest first.

    Parts of the URL, header values and signing secrets, each also as a server may write it down.
    """
    parts = urlsplit(config.url.get_secret_value())
    values = [pair.partition("=")[2] for pair in parts.query.split("&")]
    told = {text for text in (parts.path, parts.query, *parts.path.split("/"), *values) if len(text) >= _SHORTEST_PART}
    told.update(_login(unquote(parts.username or ""), unquote(parts.password or "")))
    told.add(basic_login(config.url.get_secret_value()).removeprefix("Basic ").rstrip("="))
    for value in config.headers.values():
        told.update(_header(value.get_secret_value()))
    for key in config.secret or ():
        told.update((key.get_secret_value(), key.get_secret_value().removeprefix("whsec_")))
    forms = {form for text in told for form in _forms(text) if len(form) >= _SHORTEST_SECRET}
    return tuple(sorted(forms, key=len, reverse=True))


def _login(user: str, password: str) -> Iterator[str]:
    """A login, and as the header of HTTP Basic has it, whose base64 hides nothing."""
    if user or password:
        yield user
        yield password
        pair = f"{user}:{password}"
        for encoding in ("latin-1", "utf-8"):
            yield b64encode(pair.encode(encoding, "replace")).decode().rstrip("=")


def _header(value: str) -> Iterator[str]:
    """A header's value; what follows its scheme (`Bearer`, `Basic`); and the login in it."""
    yield value
    scheme, _, credentials = value.partition(" ")
    yield credentials
    if scheme.lower() == "basic":
        with suppress(ValueError):
            user, _, password = b64decode(credentials).decode("latin-1").partition(":")
            yield from _login(user, password)


def _forms(text: str) -> Iterator[str]:
    """As it is, and as URLs and HTML pages have it."""
    for plain in {text, unquote(text)}:
        yield plain
        yield quote(plain)
        yield quote(plain, safe="")
        yield quote_plus(plain)
        yield escape(plain, quote=False)
        yield escape(plain)
        yield escape(plain).replace("&#x27;", "&#039;")
