"""Whether another bridge uses the same base topic: by what the retained topics of bridges say."""

import msgspec

from bace_bridge.domain.foreign_json import decoded


class _Info(msgspec.Struct):
    installation: str | None = None


class Neighbours:
    """`bridge/info` names whose a base topic is; any other bridge leaves a `bridge/guest/<installation>` there."""

    def __init__(self, installation: str) -> None:
        self._own = installation
        self._named: dict[str, str] = {}
        self._guests: dict[str, set[str]] = {}

    def heard_info(self, base: str, payload: bytes) -> None:
        """An empty one, and one that names nobody, is no bridge's."""
        named = _installation_in(payload)
        if named is None:
            self._named.pop(base, None)
        else:
            self._named[base] = named

    def heard_guest(self, base: str, installation: str, payload: bytes) -> None:
        guests = self._guests.setdefault(base, set())
        if payload and installation != self._own:
            guests.add(installation)
        else:
            guests.discard(installation)

    def owner(self, base: str) -> str | None:
        """The other installation that `bridge/info` names."""
        named = self._named.get(base)
        return named if named != self._own else None

    def others(self, base: str) -> list[str]:
        """The installations beside this one."""
        owner = self.owner(base)
        return sorted(self._guests.get(base, set()) | ({owner} if owner is not None else set()))


def _installation_in(payload: bytes) -> str | None:
    try:
        return decoded(payload, _Info).installation or None
    except msgspec.DecodeError:
        return None
