"""Which texts brokers take: what is refused, and what is sent in the place of what cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.formats import LONGEST, LONGEST_TOPIC, encoding_problem, made_sendable, text_problem, topic_problem

REFUSED = ["\x00", "\x01", "\t", "\n", "\x7f", "\x80", "\x9f", "\ufdd0", "\ufdef", "\ufffe", "\uffff", "\U0010ffff"]


@pytest.mark.parametrize("character", [*REFUSED, "\ud800"])
def test_what_brokers_close_the_connection_on_is_named(character: str) -> None:
    problem = text_problem(f"bace{character}")

    assert problem == f"holds the character U+{ord(character):04X}, on which brokers close the connection"
    assert topic_problem(f"bace{character}") == problem
    assert text_problem(made_sendable(f"bace{character}")) is None


@pytest.mark.parametrize(
    "text", ["", "bace", "caf\u00e9 \u2603", "\ufdcf\ufdf0\ufffd", "a" * LONGEST, "$x", "\U0001f6cf"]
)
def test_what_they_take(text: str) -> None:
    assert text_problem(text) is None
    assert made_sendable(text) == text


@pytest.mark.parametrize("character", REFUSED)
def test_a_password_may_hold_anything_that_can_be_encoded(character: str) -> None:
    assert encoding_problem(character) is None
    assert encoding_problem("\ud800") is not None
    assert encoding_problem("\u00e9" * (LONGEST // 2 + 1)) == "is longer than 65535 bytes"


@pytest.mark.parametrize(
    ("topic", "problem"),
    [
        ("a/b", None),
        ("/a//b/", None),
        ("a$/$SYS", None),
        ("/".join("a" * 200), None),
        ("/".join("a" * 201), "has more than 200 levels"),
        ("a" * LONGEST_TOPIC, None),
        ("\u00e9" * LONGEST_TOPIC, "is longer than 1024 bytes"),
        ("", "is empty"),
        ("a/+", "contains + or #, which are MQTT wildcards"),
        ("#", "contains + or #, which are MQTT wildcards"),
        ("$SYS/x", "begins with $, which is reserved for the broker"),
        ("$share/g/a", "begins with $, which is reserved for the broker"),
    ],
)
def test_topics(topic: str, problem: str | None) -> None:
    assert topic_problem(topic) == problem


def test_there_is_room_for_the_levels_that_follow() -> None:
    assert topic_problem("/".join("a" * 196), more_levels=4) is None
    assert topic_problem("/".join("a" * 197), more_levels=4) == "has more than 196 levels"


@given(st.text(st.characters(), max_size=50))
def test_whatever_is_made_sendable_is_and_stays_so(text: str) -> None:
    clean = made_sendable(text)

    assert text_problem(clean) is None
    assert made_sendable(clean) == clean
    assert len(clean) == len(text)


def test_what_is_too_long_is_cut_between_characters() -> None:
    assert made_sendable("a" + "\u2603" * LONGEST).encode() == b"a" + "\u2603".encode() * ((LONGEST - 1) // 3)
