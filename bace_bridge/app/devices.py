"""What is shown of devices, and whether it is current."""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from bace_bridge.domain.state import DeviceState, KnownDevice


class Views(Protocol):
    async def devices(self, ids: Collection[str] | None, *, available: bool) -> list[DeviceState]: ...
    async def known_devices(self, ids: Collection[str] | None) -> list[KnownDevice]: ...
    async def stale(self) -> frozenset[str]: ...
    async def oldest_view(self) -> float: ...


class Account(Protocol):
    @property
    def view_is_current(self) -> bool: ...


class Devices:
    """Reads devices' states. `changed` is called with those that look different now (None: all of them).

    What becomes different with an event is not its business; this is about what turns old.
    """

    def __init__(
        self,
        views: Views,
        accounts: Iterable[Account],
        *,
        changed: Callable[[Collection[str] | None], None],
    ) -> None:
        self._views = views
        self._accounts = accounts
        self._changed = changed
        self._stale: frozenset[str] = frozenset()
        # Of the last poll: while an account begins anew by another configuration, it stays.
        self._polls_go_well: bool | None = None
        self.oldest_view = 0.0

    async def states(self, ids: Collection[str] | None) -> list[DeviceState]:
        """Of these devices; of all of them for None. Raises StoreError."""
        return await self._views.devices(ids, available=self.is_current)

    async def known(self, ids: Collection[str] | None) -> list[KnownDevice]:
        """What is known of these devices; of all of them for None. Raises StoreError."""
        return await self._views.known_devices(ids)

    @property
    def is_current(self) -> bool:
        """True while the session list can be polled."""
        return bool(self._polls_go_well)

    def polled(self) -> None:
        """A session list was polled: with the cloud or the store away no view is current any more."""
        go_well = all(one.view_is_current for one in self._accounts)
        if go_well != self._polls_go_well:
            self._polls_go_well = go_well
            self._changed(None)

    async def look(self) -> None:
        """A device becomes unavailable by nothing but time. Raises StoreError."""
        self.oldest_view = await self._views.oldest_view()
        stale = await self._views.stale()
        if turned := stale ^ self._stale:
            self._stale = stale
            self._changed(turned)
