"""Why a connection, or an attempt at one, ended; and what a broker's reason codes mean for an event."""

from typing import Literal

import msgspec
from structlog.typing import FilteringBoundLogger

from bace_bridge.errors import DeliveryFailed, DeliveryRejected, SinkError
from bace_bridge.retry import backoff

FIRST_FAILURE = 0x80
"""In MQTT 5 all reason codes from here on are failures; 0x10 (no subscribers) is not one."""

# Reason codes: MQTT 5, section 2.4. paho gives those of 3.1.1 in the same numbers.
UNSPECIFIED = 0x80
UNSUPPORTED_VERSION = 0x84
NO_RETAIN = 0x9A
QOS_TOO_HIGH = 0x9B
TAKEN_OVER = 0x8E
_KEEP_ALIVE = 0x8D

# Client id not valid, bad user name or password, not authorized, banned, bad authentication method.
_LOGIN_REFUSALS = {0x85, 0x86, 0x87, 0x8A, 0x8C}
# Not authorized, topic name invalid, packet too large, payload format invalid: the same again fares no better.
_NEVER_TAKEN = {0x87, 0x90, 0x95, 0x99}
_MAY_BE_ABOUT_A_SUBSCRIPTION = {0x8F, 0x97, 0x98, 0x9E, 0xA1, 0xA2}
"""Beside those below: a filter, a quota, an administrator's rule, and kinds of subscriptions that are not there."""

_MAY_BE_ABOUT_A_MESSAGE = {UNSPECIFIED, 0x81, 0x82, 0x83, 0x87, 0x90, 0x95, 0x99}
"""How a broker may close the connection on a message; a shutdown, a quota or a missed keep-alive is about none."""

During = Literal["connect", "probe", "subscribe", "use"]
"""What the connection was at: CONNECT, the first message in a manner that is not known, SUBSCRIBE, or all the rest."""

Kind = Literal["lost", "unreachable", "silent", "mute", "version_refused", "login_refused", "taken_over", "given_up"]


class Ending(msgspec.Struct, frozen=True):
    """`problem` is a sentence for people, without secrets."""

    kind: Kind
    problem: str
    code: int = 0
    during: During = "connect"


def not_reached(broker: str, why: str) -> Ending:
    """For an attempt that did not get as far as MQTT: DNS, TCP, TLS or WebSocket."""
    return Ending("unreachable", f"the broker at {broker} cannot be reached: {why}")


def mute(broker: str) -> Ending:
    """For CONNECT without an answer in time."""
    return Ending("mute", f"the broker at {broker} does not answer")


def refused(broker: str, code: int, reason: str) -> Ending:
    """For a CONNACK that says no."""
    if code == UNSUPPORTED_VERSION:
        return Ending("version_refused", f"the broker at {broker} does not speak this version of MQTT", code)
    said = f"{reason.lower()} (0x{code:02x})"
    if code in _LOGIN_REFUSALS:
        return Ending("login_refused", f"the broker at {broker} refuses the login: {said}", code)
    return Ending("unreachable", f"the broker at {broker} refuses the connection: {said}", code)


def ended(broker: str, code: int, reason: str, *, said_by_broker: bool, during: During, socket_error: str) -> Ending:
    """For a connection that came to its end after CONNECT was sent; `socket_error` says what the socket failed with."""
    if said_by_broker and code == TAKEN_OVER:
        return Ending(
            "taken_over",
            f"another client uses the same client id at the broker {broker} and took it over",
            code,
            during,
        )
    if during == "connect":
        if socket_error:
            return not_reached(broker, socket_error)
        # paho's own code where no PINGRESP, and here no CONNACK, came in time.
        if code == _KEEP_ALIVE and not said_by_broker:
            return mute(broker)
        return Ending("silent", f"the broker at {broker} closed the connection before CONNACK")
    # paho's code for a socket that was cut, which says nothing.
    why = socket_error if code == UNSPECIFIED else reason.lower()
    return Ending("lost", f"the connection to the broker at {broker} was lost" + (why and f": {why}"), code, during)


def may_be_about_a_message(ending: Ending) -> bool:
    """Whether the broker may have closed the connection because of something that it was sent."""
    return ending.kind == "lost" and ending.code in _MAY_BE_ABOUT_A_MESSAGE


def may_be_about_a_subscription(ending: Ending) -> bool:
    """Whether the broker may have closed the connection because of the SUBSCRIBE that it was sent."""
    about_it = may_be_about_a_message(ending) or (ending.kind == "lost" and ending.code in _MAY_BE_ABOUT_A_SUBSCRIPTION)
    return ending.during == "subscribe" and about_it


def publish_refused(topic: str, code: int, reason: str) -> SinkError:
    """What an error code in a PUBACK (PUBREC, PUBCOMP) means for the event."""
    message = f"the broker refused a message on {topic}: {reason.lower()} (0x{code:02x})"
    return DeliveryRejected(message) if code in _NEVER_TAKEN else DeliveryFailed(message)


_LONGEST = 60.0
_LONGEST_FOR_LOGIN = 300.0
_FIRST_FOR_LOGIN = 30.0
_STABLE_AFTER = 30.0
_TAKEOVER_IS_NEWS_AFTER = 600.0
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
    """When to connect again, and what of it is news: each kind of ending once, until there is a connection."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._failures = 0
        self._short_connections = 0
        self._announced = ""
        self._takeover_warned = False

    def connected(self, **facts: object) -> None:
        self._log.info("mqtt.connected", **facts)
        self._announced = ""

    def explained(self) -> None:
        """The connections were lost for a reason that waiting does not fix, and that will not end the next one."""
        self._failures = 0

    def failed(self, ending: Ending, *, lasted: float, jitter: float) -> float:
        """Seconds to wait; `lasted` is how long the connection was of use, 0 if it never was."""
        if lasted >= _STABLE_AFTER:
            self._failures = self._short_connections = 0
        self._failures += 1
        announcement = _ANNOUNCEMENTS.get(ending.kind, "mqtt.unreachable")
        if lasted >= _TAKEOVER_IS_NEWS_AFTER:
            self._takeover_warned = False
        if announcement != self._announced and not (ending.kind == "taken_over" and self._takeover_warned):
            level = self._log.error if ending.kind == "login_refused" else self._log.warning
            hint = {"hint": _HINTS[ending.kind]} if ending.kind in _HINTS else {}
            level(announcement, problem=ending.problem, **hint)
            self._announced = announcement
            self._takeover_warned = self._takeover_warned or ending.kind == "taken_over"
        if ending.kind == "lost" and 0 < lasted < _STABLE_AFTER:
            self._short_connections += 1
            if self._short_connections == _SHORT_CONNECTIONS_BEFORE_WARNING:
                self._log.warning("mqtt.connection_keeps_breaking", hint=_HINT_FOR_SHORT_CONNECTIONS)
        if ending.kind == "login_refused":
            # Some brokers and firewalls ban an address after a few failed logins.
            return backoff(self._failures, jitter=jitter, first=_FIRST_FOR_LOGIN, longest=_LONGEST_FOR_LOGIN)
        if ending.kind == "taken_over":
            # Two clients with one id end each other's connections, as fast as they connect.
            return backoff(1, jitter=jitter, first=_LONGEST)
        return backoff(self._failures, jitter=jitter, first=1.0, longest=_LONGEST)
