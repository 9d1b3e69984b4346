"""Which protocol version the next attempt speaks: 5 first, 3.1.1 where the broker refuses 5."""

from typing import Literal

from bace_bridge.sinks.mqtt.endings import Ending, Kind

Version = Literal["5", "3.1.1"]

_SAY_NO_TO_5: tuple[Kind, ...] = ("version_refused", "mute")
_SILENT_ENDINGS_BEFORE_FALLBACK = 2


class Versions:
    """Some brokers refuse version 5 by closing the connection or by silence, which has other reasons too.

    So 3.1.1 is kept only once the broker has accepted it.
    """

    def __init__(self, wanted: Version) -> None:
        self.next: Version = wanted
        self._settled = wanted == "3.1.1"
        self._silent_endings = 0

    def accepted(self) -> bool:
        """True when the broker accepted the older version for the first time."""
        news = self.next == "3.1.1" and not self._settled
        self._settled = self._settled or news
        self._silent_endings = 0
        return news

    def refused(self, ending: Ending) -> bool:
        """True when it is worth trying the other version at once."""
        if self._settled:
            return False
        if self.next == "3.1.1":
            self.next, self._silent_endings = "5", 0
            return False
        if ending.kind == "silent":
            self._silent_endings += 1
        else:
            self._silent_endings = 0
        if ending.kind in _SAY_NO_TO_5 or self._silent_endings >= _SILENT_ENDINGS_BEFORE_FALLBACK:
            self.next = "3.1.1"
            return True
        return False
