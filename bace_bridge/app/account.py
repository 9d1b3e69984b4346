"""The login of one BACE account: the HTTP session with its cloud, and where its tokens come from and go."""

import hashlib
import time
from collections.abc import Callable

from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.cloud.http import CloudHttp, TokenSource
from bace_bridge.cloud.tokens import Credentials, FixedToken, Tokens, TokenStore
from bace_bridge.config.models import CloudConfig


def cloud_http(
    cloud: CloudConfig,
    store: TokenStore,
    *,
    version: str,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> CloudHttp:
    budget = RequestBudget(cloud.requests_per_minute, clock=monotonic)
    http = CloudHttp(cloud.url, budget, timeout=cloud.timeout, version=version, clock=clock, monotonic=monotonic)
    http.use_tokens(_tokens(cloud, store, http, clock=clock, monotonic=monotonic))
    return http


def _tokens(
    cloud: CloudConfig,
    store: TokenStore,
    http: CloudHttp,
    *,
    clock: Callable[[], float],
    monotonic: Callable[[], float],
) -> TokenSource:
    if cloud.access_token is not None:
        return FixedToken(cloud.access_token.get_secret_value())
    assert cloud.client_id is not None
    assert cloud.client_secret is not None
    assert cloud.username is not None
    assert cloud.password is not None
    given = Credentials(
        cloud.client_id,
        cloud.client_secret.get_secret_value(),
        cloud.username,
        cloud.password.get_secret_value(),
    )
    name = fingerprint(cloud.url, given.client_id, given.username)
    return Tokens(name, given, store, http.ask_token, clock=clock, monotonic=monotonic)


def fingerprint(*parts: str) -> str:
    """Tells targets and accounts apart in the store without holding the credential that a URL may be."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
