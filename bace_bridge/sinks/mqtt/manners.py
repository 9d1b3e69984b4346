"""In which manner the next attempt speaks to the broker, given how the ones before ended. Pure.

MQTT 3.1.1, and brokers that do not know 5, can refuse what they are sent only by closing the connection, which has
other reasons too. So manners are tried one after the other, and a lesser one is taken only where those above it fail
again once it has worked. What has worked is kept: silence is an outage then. A lesser manner is given up now and
then, after an hour at first, for another try from the top.
"""

import msgspec
from msgspec.structs import replace

from bace_bridge.sinks.mqtt.config import Version
from bace_bridge.sinks.mqtt.endings import (
    NO_RETAIN,
    QOS_TOO_HIGH,
    Ending,
    may_be_about_a_message,
    may_be_about_a_subscription,
)

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

    def within(self, manner: Manner) -> "Limits":
        window = _IN_FLIGHT_AT_QOS_2 if manner.protocol == "3.1.1" and manner.qos == _EXACTLY_ONCE else self.in_flight
        return replace(
            self,
            in_flight=min(self.in_flight, window),
            qos=min(self.qos, manner.qos),
            retain=self.retain and manner.retain,
        )


def announced(connack_properties: object) -> Limits:
    """`connack_properties` is paho's `Properties`, which has an attribute only for what was announced."""
    return Limits(
        in_flight=getattr(connack_properties, "ReceiveMaximum", 65535),
        packet_size=getattr(connack_properties, "MaximumPacketSize", None),
        qos=getattr(connack_properties, "MaximumQoS", 2),
        retain=bool(getattr(connack_properties, "RetainAvailable", 1)),
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
    return (settled if course.again_at is not None else _lacking(settled, now)), True


def ended(course: Course, ending: Ending, *, now: float) -> tuple[Course, bool]:
    """True: the next attempt is another one, and may be made at once."""
    rung = course.ladder[course.at]
    if ending.kind == "version_refused" and rung.protocol == "5":
        return replace(course, ladder=tuple(one for one in course.ladder if one.protocol != "5"), at=0), True
    corrected = replace(
        rung,
        retain=rung.retain and ending.code != NO_RETAIN,
        qos=0 if ending.code == QOS_TOO_HIGH else rung.qos,
    )
    if corrected != rung:
        return replace(course, ladder=(*course.ladder[: course.at], corrected, *course.ladder[course.at + 1 :])), True
    if may_be_about_a_subscription(ending):
        return _closed_on_subscribe(course, now)
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


def _closed_on_subscribe(course: Course, now: float) -> tuple[Course, bool]:
    closed = course.closed_on_subscribe + 1
    counted = replace(course, closed_on_subscribe=closed)
    if closed < _CLOSED_ON_SUBSCRIBE:
        return counted, False
    return _lacking(replace(counted, requests=False), now), True


def _lacking(course: Course, now: float) -> Course:
    return replace(course, again_at=now + course.pause)
