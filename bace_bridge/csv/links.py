"""Links of the bridge's own to a data session's CSV: signed, and good for a while. Pure, but for what `Links` holds.

Whoever has such a link can read that CSV, and nothing else, until it expires: it is a credential, and its query is
neither logged nor stored.
"""

import hmac
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec.structs import replace

from bace_bridge.events.types import SESSION_CSV_READY, Attempt

PATH = "/csv/"

KEY_BYTES = 32


class RetiredKey(msgspec.Struct, frozen=True):
    """`at` is when it was replaced, in epoch seconds: what it signed is honoured for as long as a link lives."""

    key: bytes
    at: float


class SigningKeys(msgspec.Struct, frozen=True):
    current: bytes
    retired: tuple[RetiredKey, ...] = ()


def rotated(keys: SigningKeys | None, new: bytes, *, now: float, life: float, revoke: bool = False) -> SigningKeys:
    """With a new key; the old ones are kept while a link of theirs may be good, or not at all (`revoke`)."""
    if keys is None or revoke:
        return SigningKeys(new)
    old = (*keys.retired, RetiredKey(keys.current, now))
    return SigningKeys(new, tuple(one for one in old if now < one.at + life))


class Link(msgspec.Struct, frozen=True):
    """What a link says; `expires` is in whole epoch seconds."""

    session_id: str
    revision: int
    expires: int


# In this order and this form alone: there is one link to each fact, and whatever is changed about it is refused.
_QUERY = re.compile(r"revision=(0|[1-9][0-9]{0,8})&expires=([1-9][0-9]{0,11})&signature=([A-Za-z0-9_-]{43})")


def signature(key: bytes, link: Link) -> str:
    """HMAC-SHA256 over all three, as unpadded base64url."""
    # As JSON: joined as texts, an id that ends in digits and another revision could be the same bytes.
    said = msgspec.json.encode(["csv", link.session_id, link.revision, link.expires])
    return urlsafe_b64encode(hmac.digest(key, said, "sha256")).rstrip(b"=").decode()


def path_of(session_id: str) -> str:
    return PATH + quote(session_id, safe="")


def minted(base: str, key: bytes, link: Link) -> str:
    query = f"revision={link.revision}&expires={link.expires}&signature={signature(key, link)}"
    return f"{base}{path_of(link.session_id)}?{query}"


def expiry(now: float, life: float, *, steady: bool) -> int:
    """When a link of now expires. A `steady` one is the same for half of its life, and has half of it left then."""
    # What is retained must not change at every reading of the state: it would be published again each time.
    half = life / 2
    return math.ceil((math.floor(now / half) + 2) * half if steady else now + life)


Refusal = Literal["unknown", "changed", "expired"]


def with_link(attempt: Attempt, link: Callable[[str, int], str | None]) -> Attempt:
    """The attempt as it is sent: a `session.csv_ready` gets a fresh link, which is no part of what is stored."""
    event = attempt.logged.event
    if event.type != SESSION_CSV_READY or event.session_id is None:
        return attempt
    try:
        data = msgspec.json.decode(event.data, type=dict[str, Any])
        made = link(event.session_id, data["csv"]["revision"])
    except (msgspec.DecodeError, KeyError, TypeError):  # the sink says that it cannot be sent
        return attempt
    if made is None:
        return attempt
    data["csv"]["link"] = made
    return replace(attempt, logged=replace(attempt.logged, event=replace(event, data=msgspec.json.encode(data))))


@dataclass(eq=False, repr=False)
class Links:
    """Makes and checks links by what is configured and the keys of the store. `clock` is in epoch seconds.

    `base` is the address under which others reach the bridge, "" for no links; `life` how long one is good, in seconds.
    """

    base: str
    life: float
    _: KW_ONLY
    clock: Callable[[], float]
    keys: SigningKeys | None = None

    @property
    def host(self) -> str:
        """As a Host header names it, without the port; "" without links."""
        return urlsplit(self.base).hostname or ""

    def period(self) -> object:
        """Another one whenever the steady links are others."""
        return self.base, self.life, self.keys, math.floor(self.clock() * 2 / self.life)

    def link(self, session_id: str, revision: int, *, steady: bool = False) -> str | None:
        """For a message that is sent now; a `steady` one for what is retained."""
        if not self.base or self.keys is None:
            return None
        expires = expiry(self.clock(), self.life, steady=steady)
        return minted(self.base, self.keys.current, Link(session_id, revision, expires))

    def below_base(self, path: str) -> str:
        """Without the path of the base: some proxies take it away, others do not."""
        base = urlsplit(self.base).path
        return path.removeprefix(base) if path.startswith(base + PATH) else path

    def verified(self, path: str, query: str) -> Link | Refusal:
        """The link of a request's path and query as they were sent; or why it is none."""
        path, now = self.below_base(path), self.clock()
        session_id = unquote(path.removeprefix(PATH), errors="replace")
        if self.keys is None or not self.base or not session_id or path != path_of(session_id):
            return "unknown"
        found = _QUERY.fullmatch(query)
        if found is None:
            return "changed"
        link = Link(session_id, int(found[1]), int(found[2]))
        good = [self.keys.current, *(one.key for one in self.keys.retired if now < one.at + self.life)]
        # Every key, and each in constant time: how long it takes shows neither which one fits nor how much of it.
        fits = [hmac.compare_digest(signature(key, link), found[3]) for key in good]
        if not any(fits):
            return "changed"
        return link if now < link.expires else "expired"
