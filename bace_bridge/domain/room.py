"""How much room the store has: when delivered events go before their time, and when nothing more is taken in."""

import msgspec

PRUNE_FROM = 0.95
"""The part of the cap from which on delivered events go earlier than `retention`."""

PRUNE_TO = 0.90
"""The part of the cap down to which they go, so that it does not begin again at once."""

PAUSE_UNTIL = 0.95
"""At the cap the cloud is not asked any more, until no more than this part of it is used."""


class Room(msgspec.Struct, frozen=True):
    """`surplus` is how many bytes delivered events have to give back; while `paused` the cloud is not asked."""

    surplus: int = 0
    paused: bool = False


def room_left(before: Room, *, used: int, cap: int) -> Room:
    """What follows from `used` of `cap` bytes, after what followed `before`."""
    crowded = used >= PRUNE_FROM * cap or (before.surplus > 0 and used > PRUNE_TO * cap)
    paused = used >= cap or (before.paused and used > PAUSE_UNTIL * cap)
    return Room(surplus=used - int(PRUNE_TO * cap) if crowded else 0, paused=paused)
