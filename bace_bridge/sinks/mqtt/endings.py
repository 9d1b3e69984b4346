"""Why a connection, or an attempt at one, ended; and what a broker's reason codes mean for an event."""

import ssl
from typing import Literal

import msgspec

from bace_bridge.errors import DeliveryFailed, DeliveryRejected, SinkError

FIRST_FAILURE = 0x80
"""In MQTT 5 all reason codes from here on are failures; 0x10 (nobody subscribes) is not one."""

_UNSPECIFIED = 0x80
UNSUPPORTED_VERSION = 0x84
NO_RETAIN = 0x9A
QOS_TOO_HIGH = 0x9B
TAKEN_OVER = 0x8E

_LOGIN_REFUSALS = {0x85, 0x86, 0x87, 0x8A, 0x8C}
_NEVER_TAKEN = {0x87, 0x90, 0x95, 0x99}
_MAY_BE_ABOUT_A_MESSAGE = {_UNSPECIFIED, 0x81, 0x82, 0x83, 0x87, 0x90, 0x95, 0x99}
"""How a broker may close the connection on a message; a shutdown, a quota or a missed keep-alive is about none."""

Kind = Literal["lost", "unreachable", "silent", "mute", "version_refused", "login_refused", "taken_over"]


class Ending(msgspec.Struct, frozen=True):
    """`problem` is a sentence for people, without secrets."""

    kind: Kind
    problem: str
    code: int = 0


def not_reached(broker: str, error: Exception) -> Ending:
    """For an attempt that did not get as far as MQTT: DNS, TCP, TLS or WebSocket."""
    match error:
        case ssl.SSLCertVerificationError():
            why = f"its certificate is not trusted: {error.verify_message}"
        case TimeoutError():
            why = "no answer in time"
        case OSError(strerror=str(strerror)):
            why = strerror.lower()
        case _:
            why = str(error) or type(error).__name__
    return Ending("unreachable", f"the broker at {broker} cannot be reached: {why}")


def refused(broker: str, code: int, reason: str) -> Ending:
    """For a CONNACK that says no."""
    if code == UNSUPPORTED_VERSION:
        return Ending("version_refused", f"the broker at {broker} does not speak this version of MQTT", code)
    if code in _LOGIN_REFUSALS:
        return Ending(
            "login_refused",
            f"the broker at {broker} refuses the login: {reason.lower()} (0x{code:02x})",
            code,
        )
    return Ending(
        "unreachable", f"the broker at {broker} refuses the connection: {reason.lower()} (0x{code:02x})", code
    )


def ended(broker: str, code: int, reason: str, *, told_by_broker: bool, accepted: bool) -> Ending:
    """For a connection that came to its end after CONNECT was sent."""
    if told_by_broker and code == TAKEN_OVER:
        return Ending(
            "taken_over",
            f"another client uses the same client id at the broker {broker} and took it over",
            code,
        )
    if not accepted:
        return Ending("silent", f"the broker at {broker} closed the connection without a word")
    why = "" if code == _UNSPECIFIED else f": {reason.lower()}"
    return Ending("lost", f"the connection to the broker at {broker} was lost{why}", code)


def may_be_about_a_message(ending: Ending) -> bool:
    """Whether the broker may have closed the connection because of something that it was sent."""
    return ending.kind == "lost" and ending.code in _MAY_BE_ABOUT_A_MESSAGE


def publish_refused(topic: str, code: int, reason: str) -> SinkError:
    """What an error code in a PUBACK (PUBREC, PUBCOMP) means for the event."""
    message = f"the broker refused a message on {topic}: {reason.lower()} (0x{code:02x})"
    return DeliveryRejected(message) if code in _NEVER_TAKEN else DeliveryFailed(message)
