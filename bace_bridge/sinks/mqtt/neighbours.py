"""Whether another bridge uses the same base topic: by what the retained topics of bridges say."""

import msgspec

from bace_bridge.domain.foreign_json import decoded
from bace_bridge.domain.mqtt_text import made_sendable
from bace_bridge.domain.redaction import Quote, quoted_as_it_is

_LONGEST_NAME = 64
_NAMED = 3


class _Info(msgspec.Struct):
    installation: str | None = None


class Neighbours:
    """`bridge/info` names whose a base topic is; any other bridge leaves a `bridge/guest/<installation>` there."""

    def __init__(self, installation: str, *, quote: Quote = quoted_as_it_is) -> None:
        self._own = installation
        self._quote = quote
        self._named: dict[str, str] = {}
        self._guests: dict[str, set[str]] = {}

    def heard_info(self, base: str, payload: bytes) -> None:
        """An empty one, and one that names nobody, is no bridge's."""
        named = self._named_as(_installation_in(payload))
        if not named:
            self._named.pop(base, None)
        else:
            self._named[base] = named

    def heard_guest(self, base: str, installation: str, payload: bytes) -> None:
        guests = self._guests.setdefault(base, set())
        name = self._named_as(installation)
        if payload and name != self._own:
            guests.add(name)
        else:
            guests.discard(name)

    def _named_as(self, installation: str) -> str:
        """Anybody may have written it."""
        return made_sendable(self._quote(installation, _LONGEST_NAME)) if installation != self._own else self._own

    def owner(self, base: str) -> str | None:
        """The other installation that `bridge/info` names."""
        named = self._named.get(base)
        return named if named != self._own else None

    def others(self, base: str) -> list[str]:
        """The installations beside this one."""
        owner = self.owner(base)
        return sorted(self._guests.get(base, set()) | ({owner} if owner is not None else set()))

    def described(self, base: str) -> str | None:
        """Some of the others, for people; None where there are none."""
        others = self.others(base)
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        return ", ".join(others[:_NAMED]) + more or None


def _installation_in(payload: bytes) -> str:
    try:
        return decoded(payload, _Info).installation or ""
    except msgspec.DecodeError:
        return ""
