"""Ids as levels of topics: different ids are different levels, and MQTT takes each of them."""

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bace_bridge.sinks.mqtt.topics import Topics, level

TOPICS = Topics("bace")

ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=20) | st.text(
    st.sampled_from("+#/%$.bridge_\x00\x1f\x7f\x9f\ufdd0\uffff\U0001fffe\ud800\udfff25F"), max_size=8
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("7ceb5723-ab", "7ceb5723-ab"),
        ("a/b+c#d%e", "a%2Fb%2Bc%23d%25e"),
        ("\x00\x1f\x7f\x80\x9f", "%00%1F%7F%C2%80%C2%9F"),
        ("dev\uffff", "dev%EF%BF%BF"),
        ("\ufdd0\ufdef\U0001fffe\U0010ffff", "%EF%B7%90%EF%B7%AF%F0%9F%BF%BE%F4%8F%BF%BF"),
        ("$SYS", "%24SYS"),
        ("a$", "a$"),
        ("bridge", "%62%72%69%64%67%65"),
        ("bridges", "bridges"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("Bett 3, Süd 😀", "Bett 3, Süd 😀"),
        ("", ""),
        ("_", "_"),
    ],
)
def test_an_id_becomes_a_level_by_percent_encoding(name: str, expected: str) -> None:
    assert level(name) == expected


@given(ANYTHING)
@example("\ud800")
def test_a_level_can_be_decoded_so_that_different_ids_are_different_levels(name: str) -> None:
    assert unquote_to_bytes(level(name)) == name.encode("utf-8", "surrogatepass")


@given(ANYTHING)
def test_a_level_is_one_that_any_broker_takes(name: str) -> None:
    found = level(name)
    found.encode()
    assert found not in {"bridge", ".", ".."}
    assert not found.startswith("$")
    assert not set(found) & set("+#/")
    assert not any(ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0 for one in found)
    assert not any(ord(one) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(one) <= 0xFDEF for one in found)


@given(ANYTHING, ANYTHING, st.integers(-(2**31), 2**31))
def test_every_topic_of_a_device_has_the_shape_of_its_kind(device: str, source: str, datatype: int) -> None:
    assert TOPICS.kind(TOPICS.of(device).availability) == "availability"
    assert TOPICS.kind(TOPICS.of(device).session) == "session"
    assert TOPICS.kind(TOPICS.latest(device, source, datatype)) == "latest"


@pytest.mark.parametrize(
    "topic",
    [
        "bace/bridge/state",
        "bace/bridge/session",
        "bace/bridge/latest/a/1",
        "bace/g1/event",
        "bace/g1/datapoints",
        "bace/g1/latest/src",
        "bace/g1/latest/src/heart",
        "bace/g1/latest/src/6000/more",
        "bace/session",
        "base/g1/session",
        "bace2/g1/session",
        "homeassistant/g1/session",
    ],
)
def test_other_topics_have_no_kind(topic: str) -> None:
    assert TOPICS.kind(topic) is None
