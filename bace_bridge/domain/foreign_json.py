"""JSON that somebody else wrote: whatever is wrong with it is one error."""

from typing import TypeVar

import msgspec

T = TypeVar("T")


def decoded(text: bytes | msgspec.Raw, shape: type[T], *, strict: bool = True) -> T:
    """Raises `msgspec.DecodeError`, also for what msgspec leaves to Python: broken UTF-8 and endless nesting."""
    try:
        return msgspec.json.decode(text, type=shape, strict=strict)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error.reason}") from None
