"""What HTTP/1.1 can carry as a request's target and headers: the same rules for the configuration and for what is sent.

A receiver that meets a control character, or a second framing header, answers 400 or takes two requests for one.
"""

import re

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
        return "holds half a character, which UTF-8 has no bytes for"
    return None


def request_target(url: str) -> str:
    """What the request line holds: path and query of an absolute URL, as they are written.

    A fragment is never sent. Where the path is empty the line has `/`, which HTTP wants there.
    """
    rest = url.partition("://")[2].partition("#")[0]
    target = re.sub(r"^[^/?]*", "", rest)
    return target if target.startswith("/") else f"/{target}"


def target_problem(target: str) -> str | None:
    """Why no request line can carry it as it is; None where one can."""
    if _VISIBLE_ASCII.fullmatch(target):
        return None
    return "holds a character in its path or query that no request can carry as it is"
