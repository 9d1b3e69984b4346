"""JSON that somebody else wrote: whatever is wrong with it is one error."""

import re
from typing import TypeVar

import msgspec

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
        repaired = _repaired(raw)
        if repaired == raw:
            raise
        return decoded(repaired, shape, strict=strict)


def _repaired(text: bytes) -> bytes:
    valid = text.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace").encode()
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], valid)
