"""Which values of a configuration must never be shown."""

from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

_SHORTEST_PART = 8
"""Characters of a part of a URL: shorter ones are words such as `hook`, and help to read messages."""

_CREDENTIALS = ("sig", "key", "token", "secret", "pass", "auth", "code")
"""What the names of parameters contain whose values are secret, however short they are."""


def secrets_of(config: BaseModel) -> frozenset[str]:
    """All secrets of a configuration, or of a part of it, and what of them other sides may repeat alone."""
    return frozenset(part for secret in _secrets_in(config) for part in _parts(secret) if part)


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _secrets_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _secrets_in(item)


def _parts(secret: str) -> Iterator[str]:
    yield secret
    yield secret.removeprefix("whsec_")
    if secret.startswith(("http://", "https://")):
        yield from _parts_of_url(secret)
    scheme, _, credentials = secret.partition(" ")
    if scheme.isalpha():
        yield credentials  # of a header: Bearer, Basic
    if scheme.lower() == "basic":
        with suppress(ValueError):
            yield from b64decode(credentials).decode("latin-1").split(":", 1)


def _parts_of_url(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    yield from (unquote(parts.username or ""), unquote(parts.password or ""))
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    yield from (part for part in (path, parts.query, *parts.path.split("/")) if len(part) >= _SHORTEST_PART)
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if len(value) >= _SHORTEST_PART or any(word in name.lower() for word in _CREDENTIALS):
            yield value
