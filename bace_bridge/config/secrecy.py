"""Which values of a configuration must never be shown."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from bace_bridge.config.models import Config

_SHORTEST = 4
"""A shorter text occurs by chance: masking it would make logs unreadable and hide nothing."""

_SHORTEST_PATH = 16
"""The path of a webhook's URL may be the credential; a shorter one, such as /hook, is none."""


def secrets_of(config: Config) -> frozenset[str]:
    """All secrets, webhook URLs among them, also in the forms in which a library may log them."""
    return frozenset(form for secret in _secrets_in(config) for form in _forms(secret) if len(form) >= _SHORTEST)


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


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield secret.removeprefix("whsec_")
    if secret.startswith(("http://", "https://")):
        parts = urlsplit(secret)
        yield parts.password or ""
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        if len(path) >= _SHORTEST_PATH:
            yield path
