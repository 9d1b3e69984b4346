"""How a connection, or an attempt at one, ended; and in which manner the next attempt speaks to the broker. Pure.

MQTT 3.1.1, and brokers that do not know 5, can refuse what they are sent only by closing the connection, which has
other reasons too. So manners are tried one after the other, and a lesser one is taken only where those above it fail
again once it has worked. What has worked is kept: silence is an outage then. A lesser manner is given up now and
then, after an hour at first, for another try from the top.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

from bace_bridge.errors import DeliveryFailed, DeliveryRejected, SinkError
from bace_bridge.sinks.mqtt.config import Version

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
_MAY_BE_ABOUT_A_MESSAGE = {UNSPECIFIED, 0x81, 0x82, 0x83, 0x87, 0x90, 0x95, 0x99}
"""How a broker may close the connection on a message; a shutdown, a quota or a missed keep-alive is about none."""

_MAY_BE_ABOUT_A_SUBSCRIPTION = _MAY_BE_ABOUT_A_MESSAGE | {0x8F, 0x97, 0x98, 0x9E, 0xA1, 0xA2}
"""Also a filter, a quota, an administrator's rule, and kinds of subscriptions that are not there."""

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


def ending_of(
    broker: str, code: int, reason: str, *, said_by_broker: bool, during: During, socket_error: str
) -> Ending:
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


def publish_refused(topic: str, code: int, reason: str) -> SinkError:
    """What an error code in a PUBACK (PUBREC, PUBCOMP) means for the event."""
    message = f"the broker refused a message on {topic}: {reason.lower()} (0x{code:02x})"
    return DeliveryRejected(message) if code in _NEVER_TAKEN else DeliveryFailed(message)


_FIRST_AGAIN = 3600.0
_LAST_AGAIN = 86_400.0
_CLOSED_ON_SUBSCRIBE = 3
"""Endings in a row while the subscription waited for its answer, before the bridge does without it."""

_EXACTLY_ONCE = 2
_IN_FLIGHT_AT_QOS_2 = 20
"""With 3.1.1, which has no word for it: Mosquitto 2.0 acknowledges more than its limit, which is 20, and loses it."""


class Manner(msgspec.Struct, frozen=True):
    """`qos` and `retain` bound what is sent, the last will too; without `requests` nothing is subscribed to."""

    protocol: Version
    qos: int = 1
    retain: bool = True
    requests: bool = True


class Limits(msgspec.Struct, frozen=True):
    """What the broker allows. Without an announcement there is no limit but the protocol's own."""

    in_flight: int = 65535
    packet_size: int | None = None
    qos: int = 2
    retain: bool = True


def limits(connack_properties: object, manner: Manner) -> Limits:
    """What was announced, within the manner; paho's `Properties` has an attribute only for what was announced."""
    # What CONNACK leaves out is not limited (MQTT 5, section 3.2.2.3): 65,535 in flight, any size, QoS 2, retained.
    in_flight = getattr(connack_properties, "ReceiveMaximum", 65535)
    if manner.protocol == "3.1.1" and manner.qos == _EXACTLY_ONCE:
        in_flight = min(in_flight, _IN_FLIGHT_AT_QOS_2)
    return Limits(
        in_flight=in_flight,
        packet_size=getattr(connack_properties, "MaximumPacketSize", None),
        qos=min(getattr(connack_properties, "MaximumQoS", 2), manner.qos),
        retain=bool(getattr(connack_properties, "RetainAvailable", 1)) and manner.retain,
    )


class Course(msgspec.Struct, frozen=True):
    """What is known of a broker's manners. Times are seconds of a monotonic clock."""

    wanted: tuple[Manner, ...]
    """From the one that is wanted down to the least."""
    ladder: tuple[Manner, ...]
    """`wanted` as far as the broker has not refused it in words."""
    at: int = 0
    worked: Manner | None = None
    """Has worked once, after others above it had failed in silence; those are tried again before it is settled."""
    settled: Manner | None = None
    before: Manner | None = None
    """Was settled before everything was tried again, and needs no second proof."""
    heard_at: float = 0.0
    """When the broker was last seen to take the settled manner."""
    again_at: float | None = None
    """When to begin from the top again; None where nothing is lacking."""
    pause: float = _FIRST_AGAIN
    requests: bool = True
    closed_on_subscribe: int = 0
    closed_on_probe: int = 0
    probing: bool = True
    """False where the broker closes the connection on the probe in every manner: it is the topic it does not take."""

    @property
    def manner(self) -> Manner:
        rung = self.ladder[self.at]
        return rung if self.requests else replace(rung, requests=False)

    @property
    def probes(self) -> bool:
        """Whether the broker is sent a first message to see how it takes it: 5 has words for what it does not allow."""
        rung = self.ladder[self.at]
        return self.probing and rung.protocol != "5" and rung != self.settled


def begin(protocol: Version, *, qos: int, requests: bool = True) -> Course:
    """`qos` is that of events; state goes out with 1 at least."""
    highest = max(1, qos)
    # Retain goes before QoS: without it state is missing, without PUBACK an event may be lost unseen.
    older = tuple(Manner("3.1.1", one, retain) for one in range(highest, -1, -1) for retain in (True, False))
    ladder = older if protocol == "3.1.1" else (Manner("5", highest), *older)
    wanted = ladder if requests else tuple(replace(one, requests=False) for one in ladder)
    return Course(wanted, wanted)


def accepted(course: Course, *, now: float) -> tuple[Course, bool]:
    """After CONNACK, and the probe where there is one. False: end this connection, and try again at once."""
    rung = course.ladder[course.at]
    if course.at and rung not in {course.settled, course.before} and course.worked is None:
        return replace(course, at=0, worked=rung, closed_on_probe=0), False
    settled = replace(course, worked=None, settled=rung, before=None, heard_at=now)
    if rung == course.wanted[0] and course.requests:
        return replace(settled, again_at=None, pause=_FIRST_AGAIN), True
    return replace(settled, again_at=now + course.pause if course.again_at is None else course.again_at), True


def ended(course: Course, ending: Ending, *, now: float) -> tuple[Course, bool]:
    """True: the next attempt is another one, and may be made at once."""
    rung = course.ladder[course.at]
    # A 3.1.1 broker answers CONNECT of 5 with return code 1, if at all: the least costly way to learn it.
    if ending.kind == "version_refused" and rung.protocol == "5":
        return replace(course, ladder=tuple(one for one in course.ladder if one.protocol != "5"), at=0), True
    lesser = replace(
        rung,
        retain=rung.retain and ending.code != NO_RETAIN,
        qos=0 if ending.code == QOS_TOO_HIGH else rung.qos,
    )
    if lesser != rung:
        return replace(course, ladder=(*course.ladder[: course.at], lesser, *course.ladder[course.at + 1 :])), True
    about_subscription = ending.kind == "lost" and ending.code in _MAY_BE_ABOUT_A_SUBSCRIPTION
    if ending.during == "subscribe" and about_subscription:
        closed = course.closed_on_subscribe + 1
        counted, gives_up = replace(course, closed_on_subscribe=closed), closed >= _CLOSED_ON_SUBSCRIBE
        return replace(counted, requests=False, again_at=now + course.pause) if gives_up else counted, gives_up
    # It has worked: a lost connection is an outage, and falling back would give up acknowledgements or retained state
    # for a restart. Only after an hour without CONNACK may it be another broker, or another version of it.
    if rung == course.settled and ending.during != "connect":
        return replace(course, heard_at=now), False
    if rung == course.settled:
        return (from_the_top(course) if now - course.heard_at >= _FIRST_AGAIN else course), False
    return _next_rung(course, ending)


def subscribed(course: Course) -> Course:
    """The broker has answered the subscription, be it with no."""
    return replace(course, closed_on_subscribe=0) if course.closed_on_subscribe else course


def from_the_top(course: Course) -> Course:
    """Everything is tried again; what had been settled needs no second proof."""
    return replace(
        course,
        ladder=course.wanted,
        at=0,
        worked=None,
        settled=None,
        before=course.settled,
        again_at=None,
        pause=min(_LAST_AGAIN, 2 * course.pause),
        requests=True,
        closed_on_subscribe=0 if course.requests else _CLOSED_ON_SUBSCRIBE - 1,
        closed_on_probe=0,
        probing=True,
    )


def _next_rung(course: Course, ending: Ending) -> tuple[Course, bool]:
    probed = ending.during == "probe" and may_be_about_a_message(ending)
    tried = replace(course, closed_on_probe=course.closed_on_probe + probed)
    says_no = ending.kind == "silent" or probed
    at_a_loss = ending.kind == "mute" and course.manner.protocol == "5"  # as amqtt is with what it cannot read
    if (says_no or at_a_loss) and course.at + 1 < len(course.ladder):
        return replace(tried, at=course.at + 1), True
    everywhere = tried.closed_on_probe >= sum(one.protocol != "5" for one in course.ladder)
    probing = course.probing and not everywhere
    return replace(tried, ladder=course.wanted, at=0, worked=None, closed_on_probe=0, probing=probing), False
