"""Tells once that the broker is away and once that it is back, and how long to wait in between."""

from structlog.typing import FilteringBoundLogger

from bace_bridge.domain.retry import backoff
from bace_bridge.sinks.mqtt.endings import Ending, Kind

_LONGEST = 60.0
_LONGEST_FOR_LOGIN = 300.0
_FIRST_FOR_LOGIN = 30.0
_STABLE_AFTER = 30.0
_PEACE_AFTER = 600.0
"""Seconds that a connection must have held for the next loss of the client id to be news again."""
_SHORT_CONNECTIONS_BEFORE_WARNING = 3

_ANNOUNCEMENTS: dict[Kind, str] = {
    "login_refused": "mqtt.login_refused",
    "taken_over": "mqtt.taken_over",
}
_HINTS: dict[Kind, str] = {
    "login_refused": "check username, password and client id; the broker is asked again every few minutes",
    "taken_over": "give every bridge a client_id of its own, or stop the other one",
}
_HINT_FOR_SHORT_CONNECTIONS = (
    "another client may be using the same client id, or the broker closes the connection on an event"
)


class Outage:
    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._failures = 0
        self._short_connections = 0
        self._told = ""
        self._fought = False

    def over(self, **facts: object) -> None:
        self._log.info("mqtt.connected", **facts)
        self._told = ""

    def explained(self) -> None:
        """The connections were lost for a reason that waiting does not mend, and that will not end the next one."""
        self._failures = 0

    def goes_on(self, ending: Ending, *, lasted: float, jitter: float) -> float:
        """Seconds to wait; `lasted` is how long the connection was of use, 0 if it never was."""
        if lasted >= _STABLE_AFTER:
            self._failures = self._short_connections = 0
        self._failures += 1
        announcement = _ANNOUNCEMENTS.get(ending.kind, "mqtt.unreachable")
        if lasted >= _PEACE_AFTER:
            self._fought = False
        if announcement != self._told and not (ending.kind == "taken_over" and self._fought):
            level = self._log.error if ending.kind == "login_refused" else self._log.warning
            hint = {"hint": _HINTS[ending.kind]} if ending.kind in _HINTS else {}
            level(announcement, problem=ending.problem, **hint)
            self._told = announcement
            self._fought = self._fought or ending.kind == "taken_over"
        if ending.kind == "lost" and 0 < lasted < _STABLE_AFTER:
            self._warn_of_short_connections()
        return _wait(ending.kind, self._failures, jitter)

    def _warn_of_short_connections(self) -> None:
        self._short_connections += 1
        if self._short_connections == _SHORT_CONNECTIONS_BEFORE_WARNING:
            self._log.warning("mqtt.connection_keeps_breaking", hint=_HINT_FOR_SHORT_CONNECTIONS)


def _wait(kind: Kind, failures: int, jitter: float) -> float:
    if kind == "login_refused":
        return backoff(failures, jitter=jitter, first=_FIRST_FOR_LOGIN, longest=_LONGEST_FOR_LOGIN)
    if kind == "taken_over":
        return backoff(1, jitter=jitter, first=_LONGEST)
    return backoff(failures, jitter=jitter, first=1.0, longest=_LONGEST)
