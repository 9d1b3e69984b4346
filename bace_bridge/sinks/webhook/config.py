"""The keys of a webhook endpoint."""

import base64
import binascii
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, WithJsonSchema

from bace_bridge.config.files import filled_lines
from bace_bridge.config.sections import MaxInFlight, is_private, split_url, web_url
from bace_bridge.config.values import Duration, FromFile, checked, mistake
from bace_bridge.formats import (
    PER_CONNECTION,
    header_name_problem,
    header_value_problem,
    request_target,
    target_problem,
)
from bace_bridge.sinks.api import Built
from bace_bridge.sinks.kind import SinkConfig, SinkContext

_SECRET_PREFIX = "whsec_"  # noqa: S105  # the prefix of Standard Webhooks, not a secret
_SECRET_BYTES = range(24, 65)
_MAKE_ONE = 'make one with: echo "whsec_$(openssl rand -base64 32)"'
_SLOWEST = 0.001
"""Requests a second. A much smaller rate would mean that nothing is ever sent."""

_MAKE_ONE_OR_NONE = f"{_MAKE_ONE}; or leave the key out: then nothing is signed"


def _secrets(value: object) -> object:
    """One secret, a list of them, or several lines, as a file may hold while secrets are rotated."""
    if isinstance(value, str):
        value = filled_lines(value)
    if not isinstance(value, list | tuple):
        raise mistake("must be a secret, or a list of secrets", _MAKE_ONE_OR_NONE)
    if not value:
        raise mistake("holds no secret", _MAKE_ONE_OR_NONE)
    return [one.strip() if isinstance(one, str) else one for one in value]


def _signing_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text.strip():
        raise mistake("is empty", _MAKE_ONE_OR_NONE)
    # `validate`: without it b64decode skips what is no base64, and a mistyped secret would sign with another key.
    try:
        key = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(_SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise mistake("must be whsec_ followed by 24 to 64 bytes in base64", _MAKE_ONE)
    return secret


def _webhook_url(url: SecretStr) -> SecretStr:
    parts = web_url(url.get_secret_value())
    # Not encoded here: which of UTF-8 and Latin-1 the receiver expects only its people know.
    if problem := target_problem(request_target(url.get_secret_value())):
        raise mistake(problem, "percent-encode it as the receiver expects it: \u00fc is %C3%BC in UTF-8")
    if ":" in unquote(parts.username or ""):
        raise mistake("contains a username with a colon, which HTTP Basic authentication does not allow")
    return url


def _header_name(name: str) -> str:
    if problem := header_name_problem(name):
        raise mistake(problem)
    lowered = name.lower()
    if lowered == "content-type" or lowered.startswith("webhook-"):
        raise mistake("is a header that bace-bridge sets itself", "leave it out")
    if lowered in PER_CONNECTION:
        raise mistake("is a header of the connection, which bace-bridge sets itself where it is needed", "leave it out")
    return name


def _rate(per_second: float) -> float:
    if 0 < per_second < _SLOWEST:
        raise mistake(f"must be 0 for no limit, or at least {_SLOWEST}")
    return per_second


def _each_once(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    names = [name.lower() for name in headers]
    if twice := next((name for name in headers if names.count(name.lower()) > 1), None):
        raise mistake(f"holds {twice} twice: upper and lower case are the same to HTTP", "keep one of them")
    return headers


HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[SecretStr, AfterValidator(partial(checked, header_value_problem, ""))]
SigningSecrets = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_signing_secret)], ...],
    BeforeValidator(_secrets),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class WebhookConfig(SinkConfig):
    kind = "webhook"
    section = "webhooks"
    about = "Webhook endpoints"

    url: Annotated[SecretStr, AfterValidator(_webhook_url), FromFile()] = Field(
        description="http:// or https://; treated as a credential"
    )
    secret: Annotated[SigningSecrets | None, FromFile(several=True)] = Field(
        default=None, description="whsec_...; a list of them while secrets rotate; left out: nothing is signed"
    )
    headers: Annotated[dict[HeaderName, HeaderValue], AfterValidator(_each_once)] = Field(
        default={}, description="Sent with every request"
    )
    timeout: Duration = Field(default=15.0, description="Response timeout")
    max_in_flight: MaxInFlight = Field(
        default=10, ge=1, le=1000, description="Concurrent requests allowed, one per data session"
    )
    rate_limit: Annotated[float, AfterValidator(_rate)] = Field(
        default=0, ge=0, allow_inf_nan=False, description="Requests per second; 0 = no limit"
    )

    @property
    def host(self) -> str:
        """Host and, where the URL names one, port: all of the URL that logs may show."""
        parts = urlsplit(self.url.get_secret_value())
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        return host if parts.port is None else f"{host}:{parts.port}"

    @property
    def target(self) -> str:
        return self.url.get_secret_value()

    def describe(self) -> str:
        secrets = len(self.secret or ())
        signed = {0: "unsigned", 1: "signed"}.get(secrets, f"signed with {secrets} secrets")
        return f"{self.host} (the rest of the URL is a secret), {signed}"

    def build(self, context: SinkContext) -> Built:
        from bace_bridge.sinks.webhook.sink import WebhookSink  # noqa: PLC0415  # only where one is configured

        sink = WebhookSink(
            self, source=context.source, version=context.version, redaction=context.redaction, clock=context.clock
        )
        return Built(sink)

    def warnings(self) -> Iterator[str]:
        parts = split_url(self.url.get_secret_value(), ("https", "http"))
        if parts.scheme == "http" and not is_private(parts.hostname or ""):
            yield "url: health data goes over the internet in the clear (use https://)"
        if parts.fragment:
            yield "url: the part after # is never sent (write %23 for a # in the path or query)"
        if self.secret is None:
            yield "secret: is not set: requests are not signed, so the receiver cannot verify the sender"


KIND: Final = WebhookConfig
