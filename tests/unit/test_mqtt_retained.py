"""The retained picture: what is decided for a topic, and for the picture as a whole, without a broker."""

import itertools
from collections.abc import Collection

import pytest
import structlog
from structlog.testing import capture_logs

from bace_bridge.events.types import DeviceState, LatestPoint
from bace_bridge.sinks.mqtt.picture import Memory, Picture
from bace_bridge.sinks.mqtt.refusals import FIRST, FIRST_AFTER_CLOSING, LONGEST, Refusals, TopicSuspicion
from bace_bridge.sinks.mqtt.topics import (
    CLEARED,
    Neighbours,
    Topics,
    Views,
    base_of,
    decide,
    device_topics,
)

TOPICS = Topics("bace")


def no_discovery(_topic: str) -> bool:
    return False


ALL_VIEWS = [
    Views(meant, acknowledged, *flags)
    for meant in (None, b"new")
    for acknowledged in (None, CLEARED, b"old", b"new")
    for flags in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (Views(b"new"), "publish"),
        (Views(b"new", b"old"), "publish"),
        (Views(b"new", b"new"), "leave"),
        (Views(b"new", shared=True), "publish"),
        (Views(None), "leave"),
        (Views(None, b"old"), "clear"),
        (Views(None, b"old", shared=True), "clear"),
        (Views(None, CLEARED, noted=True), "leave"),
        (Views(None, noted=True), "clear"),
        (Views(None, noted=True, shared=True), "leave"),
        (Views(None, shown=True), "clear"),
        (Views(None, shown=True, shared=True), "leave"),
    ],
)
def test_what_follows_for_a_topic(views: Views, expected: str) -> None:
    assert decide(views) == expected


@pytest.mark.parametrize("views", ALL_VIEWS)
def test_what_is_meant_is_never_cleared_and_what_is_not_is_never_published(views: Views) -> None:
    action = decide(views)
    assert action != ("publish" if views.meant is None else "clear")
    if action == "clear":
        assert views.acknowledged or views.noted or views.shown, "something may be there"


def test_the_retained_topics_of_a_device() -> None:
    state = DeviceState("g1", available=True, session=b"{}", latest=(LatestPoint("src", 6000, b'{"avg":1}'),))

    assert device_topics(state, TOPICS) == {
        "bace/g1/availability": b"online",
        "bace/g1/session": b"{}",
        "bace/g1/latest/src/6000": b'{"avg":1}',
    }


def test_a_device_without_a_session_has_no_session_topic() -> None:
    assert device_topics(DeviceState("g1", available=False, session=None), TOPICS) == {
        "bace/g1/availability": b"offline"
    }


def test_former_base_topics_are_known_by_the_states_that_they_have_left() -> None:
    ledger = ["bace/bridge/state", "old/bridge/state", "old/nested/bridge/state", "old/g1/session", "x/bridge/info"]
    picture = Picture(TOPICS, memory(), no_discovery)
    picture.read_ledger(ledger)
    assert picture.bases == ["old", "old/nested"]
    assert base_of("old/nested/g1/session", ["bace", "old", "old/nested"]) == "old/nested"
    assert base_of("older/g1/session", ["bace", "old"]) is None


# --- whose a base topic is


def info(installation: object) -> bytes:
    return b'{"version":"1","installation":%s}' % str(installation).encode()


@pytest.mark.parametrize(
    ("payload", "owner"),
    [
        (info('"here"'), None),
        (info('"there"'), "there"),
        (info("null"), None),
        (info("7"), None),
        (b'{"version":"1"}', None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_a_base_topic_belongs_to_the_bridge_that_its_info_names(payload: bytes, owner: str | None) -> None:
    neighbours = Neighbours("here")
    neighbours.heard_info("bace", payload)

    assert neighbours.owner("bace") == owner
    assert neighbours.owner("other") is None


def test_guests_count_as_others_until_they_are_gone() -> None:
    neighbours = Neighbours("here")
    for guest in ("here", "there", "afar"):
        neighbours.heard_guest("bace", guest, b"{}")
    neighbours.heard_info("bace", info('"there"'))
    assert neighbours.others("bace") == ["afar", "there"]

    neighbours.heard_guest("bace", "afar", b"")
    neighbours.heard_guest("bace", "there", b"")
    neighbours.heard_info("bace", b"")
    assert neighbours.others("bace") == []


# --- the picture


class Now:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def memory(now: Now | None = None) -> Memory:
    log = structlog.get_logger()
    return Memory(
        "here",
        frozenset(),
        Refusals(log, clock=now or Now(), jitter=lambda: 0.0),
        TopicSuspicion(log, explained=lambda: None),
        Neighbours("here"),
        set(),
    )


def published(picture: Picture, *, alone: bool = False) -> dict[str, bytes]:
    """What goes to a broker that takes all of it."""
    changes = dict(picture.changes(alone=alone))
    picture.note([topic for topic, payload in changes.items() if payload != CLEARED])
    for topic, payload in changes.items():
        picture.taken(topic, payload)
    return changes


def compared(one: Memory, *, ledger: Collection[str] = (), tree: Collection[str] = (), meant: str = "g1") -> Picture:
    """The picture after everything that is meant was published, and the broker was read."""
    picture = Picture(TOPICS, one, no_discovery)
    picture.read_ledger(ledger)
    picture.mean_bridge(b"info", b"health", b"[]")
    picture.mean_devices({meant: {f"bace/{meant}/session": b"{}"}}, asked=None)
    picture.compare(is_current=True)
    assert set(published(picture)) == {"bace/bridge/state", "bace/bridge/health", f"bace/{meant}/session"}
    picture.read_tree(tree)
    picture.mean_bridge(b"info", b"health", b"[]")
    picture.compare(is_current=True)
    return picture


def test_what_the_ledger_holds_and_is_not_meant_is_cleared_and_forgotten() -> None:
    ledger = {"bace/bridge/state", "bace/g1/session", "bace/g2/session", "old/bridge/state", "old/g1/session"}
    picture = compared(memory(), ledger=ledger)

    gone = {"bace/g2/session": CLEARED, "old/bridge/state": CLEARED, "old/g1/session": CLEARED}
    assert published(picture) == {"bace/bridge/info": b"info", "bace/bridge/devices": b"[]", **gone}
    assert picture.forget() == gone.keys()
    assert published(picture) == {}


def test_what_only_the_broker_knows_waits_until_the_view_of_the_cloud_is_current() -> None:
    picture = Picture(TOPICS, memory(), no_discovery)
    picture.read_tree({"bace/g1/session", "bace/g2/session"})
    picture.mean_devices({}, asked=None)
    picture.compare(is_current=False)
    assert published(picture) == {}
    picture.mean_devices({"g1": {"bace/g1/session": b"{}"}}, asked=["g1"])
    picture.compare(is_current=True)
    assert published(picture) == {"bace/g1/session": b"{}", "bace/g2/session": CLEARED}


@pytest.mark.parametrize("sign", ["owner", "guest"])
def test_where_another_bridge_is_nothing_of_it_is_touched(sign: str) -> None:
    one = memory()
    if sign == "owner":
        one.neighbours.heard_info("bace", info('"there"'))
    else:
        one.neighbours.heard_guest("bace", "there", b"{}")
    picture = compared(one, ledger={"bace/g2/session", "bace/bridge/info"}, tree={"bace/g3/session"})

    guest, owner = {"bace/bridge/guest/here": b"info"}, {"bace/bridge/info": b"info", "bace/bridge/devices": b"[]"}
    assert published(picture) == (guest if sign == "owner" else owner)


def test_a_guest_becomes_the_owner_when_the_other_is_gone() -> None:
    one = memory()
    one.neighbours.heard_info("bace", info('"there"'))
    picture = compared(one)
    assert published(picture) == {"bace/bridge/guest/here": b"info"}
    one.neighbours.heard_info("bace", b"")
    picture.mean_bridge(b"info", b"health", b"[]")
    assert published(picture) == {
        "bace/bridge/info": b"info",
        "bace/bridge/devices": b"[]",
        "bace/bridge/guest/here": CLEARED,
    }


def test_of_a_former_base_topic_that_another_bridge_uses_only_what_is_its_own_is_cleared() -> None:
    one = memory()
    one.neighbours.heard_guest("old", "there", b"{}")
    ledger = {f"old/{rest}" for rest in ("bridge/state", "bridge/info", "bridge/guest/here", "g1/session")}
    picture = compared(one, ledger=ledger)

    cleared = {"old/bridge/info": CLEARED, "old/bridge/guest/here": CLEARED}
    assert published(picture) == {"bace/bridge/info": b"info", "bace/bridge/devices": b"[]", **cleared}


def test_a_topic_is_tried_again_after_a_refusal_and_is_no_problem_once_it_was_taken() -> None:
    now = Now()
    one = memory(now=now)
    picture = Picture(TOPICS, one, no_discovery)
    picture.mean_devices({"g1": {"bace/g1/session": b"{}"}}, asked=None)
    for attempt in range(1, 12):
        assert dict(picture.changes(alone=False)) == {"bace/g1/session": b"{}"}
        picture.refused("bace/g1/session", "not authorized")
        assert dict(picture.changes(alone=False)) == {}
        wait = picture.next_in()
        assert wait == min(LONGEST, FIRST * 2 ** (attempt - 1))
        now.seconds += wait or 0.0
    assert "bace/g1/session" in str(one.refusals.problem)
    assert published(picture) == {"bace/g1/session": b"{}"}
    assert one.refusals.problem is None
    assert picture.next_in() is None


def test_what_is_acknowledged_late_is_published_again_all_the_same() -> None:
    picture = Picture(TOPICS, memory(), no_discovery)
    picture.mean_devices({"g1": {"bace/g1/session": b"{}"}}, asked=None)
    assert dict(picture.changes()) == {"bace/g1/session": b"{}"}
    picture.again("bace/g1/session")  # Home Assistant has started
    picture.taken("bace/g1/session", b"{}")
    assert published(picture) == {"bace/g1/session": b"{}"}
    assert published(picture) == {}


# --- the broker closes the connection on a topic


def closing(one: Memory, picture: Picture, poison: str) -> list[str]:
    """A connection to a broker that takes everything in order and closes on `poison`; what it was sent, in order."""
    one.refusals.begin()
    sent: list[str] = []
    for alone in (False, True):
        changes = [] if poison in "".join(sent[-1:]) else list(picture.changes(alone=alone))
        for number, (topic, payload) in enumerate(changes):
            sent.append(topic)
            if poison in topic:
                in_flight = [topic] if alone else [left for left, _ in changes[number:]]
                if one.suspicion.blames(in_flight, alone=alone):
                    picture.refused(topic, "it closes the connection")
                return sent
            one.suspicion.acknowledged(topic)
            picture.taken(topic, payload)
        if not alone:
            one.suspicion.completed()
    return sent


def connect(one: Memory, devices: dict[str, dict[str, bytes]]) -> Picture:
    picture = Picture(TOPICS, one, no_discovery)
    picture.mean_devices(devices, asked=None)
    return picture


def test_the_poison_topic_is_found_set_aside_and_holds_up_nothing_else() -> None:
    now = Now()
    one = memory(now=now)
    devices = {f"g{n}": {f"bace/g{n}/latest/{dev}/1": b"x" for dev in ("a", "b")} for n in range(9)}
    devices["g4"]["bace/g4/latest/poison/1"] = b"x"
    everything = {topic for topics in devices.values() for topic in topics}
    good = everything - {"bace/g4/latest/poison/1"}

    with capture_logs() as logs:
        rounds = [closing(one, connect(one, devices), "poison") for _ in range(5)]

    ahead = {topic for topic in good if topic < "bace/g4/latest/poison/1"}
    assert all(ahead <= set(sent) for sent in rounds)
    assert [good <= set(sent) for sent in rounds] == [False, False, False, True, True]
    assert [sent.count("bace/g4/latest/poison/1") for sent in rounds] == [1, 1, 1, 0, 0]
    assert [log["topic"] for log in logs if log["event"] == "mqtt.state_refused"] == ["bace/g4/latest/poison/1"]
    now.seconds += FIRST_AFTER_CLOSING
    assert closing(one, connect(one, devices), "poison")[-1] == "bace/g4/latest/poison/1", "last, and alone"
    assert set(closing(one, connect(one, devices), "poison")) == good
    now.seconds += 2 * FIRST_AFTER_CLOSING
    assert set(closing(one, connect(one, devices), "nothing")) == everything
    assert one.refusals.problem is None


def test_a_kind_of_topic_that_the_broker_never_takes_is_set_aside_as_a_whole() -> None:
    now = Now()
    one = memory(now=now)
    devices = {f"g{n}": {f"bace/g{n}/latest/a/1": b"x", f"bace/g{n}/session": b"s"} for n in range(50)}
    sessions = {f"bace/g{n}/session" for n in range(50)}

    rounds = [closing(one, connect(one, devices), "/latest/") for _ in range(8)]

    assert set(rounds[-1]) == set(rounds[-2]) == sessions
    assert sum("/latest/" in topic for sent in rounds for topic in sent) <= 5
    assert "all of latest" in str(one.refusals.problem)
    now.seconds += 2 * FIRST_AFTER_CLOSING
    picture = connect(one, devices)
    tried = [topic for topic in closing(one, picture, "nothing") if "/latest/" in topic]
    assert len(tried) == 1, "one is tried"
    assert len(published(picture) | published(picture, alone=True)) == 49, "and then the others are"


def test_while_a_kind_of_topic_is_set_aside_nothing_is_woken_in_vain() -> None:
    now = Now()
    one = memory(now=now)
    devices = {f"g{n}": {f"bace/g{n}/latest/a/1": b"x"} for n in range(4)}
    waits: list[float | None] = []
    for _ in range(60):
        picture = connect(one, devices)
        if not closing(one, picture, "/latest/"):
            waits.append(picture.next_in())
            now.seconds += waits[-1] or 0.0
    assert len(waits) > 20
    assert all(waits), waits


def test_two_cuts_of_a_bad_network_cost_one_careful_connect_and_blame_nobody() -> None:
    one = memory()
    for _ in range(2):
        assert not one.suspicion.blames(["a/b", "a/c"], alone=False)
    assert one.suspicion.sent_alone("a/b")
    assert not one.suspicion.sent_alone("a/x")
    for topic in ("a/b", "a/c"):
        one.suspicion.acknowledged(topic)
    assert not one.suspicion.counts
    assert not one.suspicion.blames(["a/b"], alone=True), "it begins anew"


def test_a_connection_on_which_all_was_acknowledged_ends_the_count() -> None:
    one = memory()
    for _ in range(5):
        assert not one.suspicion.blames(["a/b"], alone=False)
        one.suspicion.completed()
        assert not one.suspicion.counts
