"""What a text must be like for every broker to take it: as a topic, or in any other string of MQTT.

MQTT lets a broker close the connection on control characters and noncharacters (1.5.4); Mosquitto does, and on more
than 200 levels. The rules are the same for the configuration, for topics that others ask for, and for ids in topics.
"""

import re

LONGEST = 65_535
"""Bytes of UTF-8 in any string of MQTT."""

LONGEST_TOPIC = 1024
"""Bytes; brokers' own limits begin there."""

MOST_LEVELS = 200

LEVELS_BELOW_BASE = 4
"""Those of the longest topic: `<device>/latest/<source_device>/<datatype>`."""

NONCHARACTERS = "\ufdd0-\ufdef" + "".join(map(chr, (p * 0x10000 + end for p in range(17) for end in (0xFFFE, 0xFFFF))))
"""For a character class of a regular expression."""

UNSENDABLE = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff{NONCHARACTERS}]")


def text_problem(text: str) -> str | None:
    """Why brokers refuse this as a client id, a username or a property; None where they do not."""
    if found := UNSENDABLE.search(text):
        return f"holds the character U+{ord(found[0]):04X}, on which brokers close the connection"
    return encoding_problem(text)


def encoding_problem(text: str) -> str | None:
    """Why it cannot be sent at all: MQTT counts the bytes in two bytes. For a password this is all that holds."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "holds half a character, which UTF-8 has no bytes for"
    return f"is longer than {LONGEST} bytes" if size > LONGEST else None


def topic_problem(topic: str, *, more_levels: int = 0) -> str | None:
    """Why brokers refuse a message on this topic; `more_levels` is how many levels follow it at most."""
    if problem := text_problem(topic):
        return problem
    found = (
        (not topic, "is empty"),
        ("+" in topic or "#" in topic, "holds + or #, which stand for any topic"),
        (topic.startswith("$"), "begins with $, which is the broker's own"),
        (len(topic.encode()) > LONGEST_TOPIC, f"is longer than {LONGEST_TOPIC} bytes"),
        (topic.count("/") >= MOST_LEVELS - more_levels, f"has more than {MOST_LEVELS - more_levels} levels"),
    )
    return next((problem for wrong, problem in found if wrong), None)


def made_sendable(text: str) -> str:
    """The text with U+FFFD for what brokers refuse, and cut where it is too long for a string of MQTT."""
    clean = UNSENDABLE.sub("\ufffd", text).replace("\ufeff", "\ufffd")  # paho, as a subscriber, takes no U+FEFF
    encoded = clean.encode()
    return clean if len(encoded) <= LONGEST else encoded[:LONGEST].decode(errors="ignore")
