"""What goes between us and others: texts that MQTT and HTTP can carry, JSON of others, time stamps."""

import re
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

EARLIEST, LATEST = -62_000_000_000.0, 253_000_000_000.0
"""Epoch seconds of the years 5 and 9987: what lies beyond, and NaN, is no time that a calendar holds."""


def iso_utc(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with `Z`.

    Whole seconds have no fraction; others have milliseconds, or microseconds where milliseconds would lose digits.
    """
    # msgspec writes a time in a tenth of the time that isoformat takes, and each delivery has one.
    text = msgspec.json.encode(datetime.fromtimestamp(seconds, UTC))[1:-1].decode()
    return f"{text[:-4]}Z" if "." in text and text.endswith("000Z") else text


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
        return "contains half a character (a lone surrogate), which UTF-8 cannot encode"
    return f"is longer than {LONGEST} bytes" if size > LONGEST else None


def topic_problem(topic: str, *, more_levels: int = 0) -> str | None:
    """Why brokers refuse a message on this topic; `more_levels` is how many levels follow it at most."""
    if problem := text_problem(topic):
        return problem
    found = (
        (not topic, "is empty"),
        ("+" in topic or "#" in topic, "contains + or #, which are MQTT wildcards"),
        (topic.startswith("$"), "begins with $, which is reserved for the broker"),
        (len(topic.encode()) > LONGEST_TOPIC, f"is longer than {LONGEST_TOPIC} bytes"),
        (topic.count("/") >= MOST_LEVELS - more_levels, f"has more than {MOST_LEVELS - more_levels} levels"),
    )
    return next((problem for wrong, problem in found if wrong), None)


def made_sendable(text: str) -> str:
    """The text with U+FFFD for what brokers refuse, and cut where it is too long for a string of MQTT."""
    clean = UNSENDABLE.sub("\ufffd", text).replace("\ufeff", "\ufffd")  # paho, as a subscriber, takes no U+FEFF
    encoded = clean.encode()
    return clean if len(encoded) <= LONGEST else encoded[:LONGEST].decode(errors="ignore")


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]*")

PER_CONNECTION = frozenset(
    {
        "connection", "content-encoding", "content-length", "expect", "host", "http2-settings", "keep-alive",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers, in lower case, that say how a request is framed: whoever writes it to the connection sets them."""


def header_name_problem(name: str) -> str | None:
    """Why this cannot be the name of a header; None where it can."""
    return None if _NAME.fullmatch(name) else "is not the name of an HTTP header"


def header_value_problem(value: str) -> str | None:
    """Why no header can carry this; None where one can. It is sent as UTF-8; a tab is fine."""
    if "\r" in value or "\n" in value:
        return "must be a single line"
    if found := _CONTROL.search(value):
        return f"holds the control character U+{ord(found[0]):04X}, which no header can carry"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains half a character (a lone surrogate), which UTF-8 cannot encode"
    return None


def request_target(url: str) -> str:
    """What the request line holds: path and query of an absolute URL, as they are written.

    A fragment is never sent. Where the path is empty the line has `/`, which HTTP wants there.
    """
    # By hand: yarl would normalise escapes and dots, and the receiver may compare the very bytes.
    rest = url.partition("://")[2].partition("#")[0]
    target = re.sub(r"^[^/?]*", "", rest)
    return target if target.startswith("/") else f"/{target}"


def target_problem(target: str) -> str | None:
    """Why no request line can carry it as it is; None where one can."""
    if _VISIBLE_ASCII.fullmatch(target):
        return None
    return "holds a character in its path or query that no request can carry as it is"


T = TypeVar("T")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)
"""An escape in a text: a pair of surrogates, half of one (the group), or any other."""


def decoded(text: bytes | msgspec.Raw, shape: type[T], *, strict: bool = True) -> T:
    """Raises `msgspec.DecodeError`, also for what msgspec leaves to Python: broken UTF-8 and endless nesting."""
    try:
        return msgspec.json.decode(text, type=shape, strict=strict)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error.reason}") from None


def decoded_leniently(text: bytes | msgspec.Raw, shape: type[T], *, strict: bool = True) -> T:
    """Like `decoded`, with U+FFFD for characters that are none, so that an odd text costs no more than itself."""
    try:
        return decoded(text, shape, strict=strict)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        raw = bytes(text)
        # json.loads would take half a pair of surrogates, msgspec does not; nothing that we send could hold one.
        valid = raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace").encode()
        repaired = _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], valid)
        if repaired == raw:
            raise
        return decoded(repaired, shape, strict=strict)
