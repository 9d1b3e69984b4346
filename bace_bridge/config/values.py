"""The kinds of value that the configuration is made of: how each is written, read and refused."""

import math
import re
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SHORTEST = 0.001
_LONGEST = 36_500 * 86_400.0
MOST_DIGITS = 9
"""Of a whole number: with more of them a pace or a limit would mean nothing, and be no float in the end."""

_NOT_A_START = "must be now, all, a time such as 2026-01-31T00:00:00Z, or how long ago, such as 7d"
_END_OF_TIME = 253_402_300_800.0
"""The year 10000, in epoch seconds."""

_BYTES = {
    "B": 1,
    "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip
_MOST_BYTES = 2**63
"""More than any limit: the digits of a larger size are not worth writing out."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGT]B|[KMGT]iB|B)?")


def mistake(problem: str, hint: str = "") -> PydanticCustomError:
    """A refusal in words for people. It must not hold the value: that may be a secret."""
    return PydanticCustomError("mistake", "{problem}", {"problem": problem, "hint": hint})


def checked(problem_of: Callable[[str], str | None], hint: str, value: Any) -> Any:
    """The text, or the secret, where there is no problem of it; a validator is a partial of this."""
    if problem := problem_of(value.get_secret_value() if isinstance(value, SecretStr) else value):
        raise mistake(problem, hint)
    return value


def closest(written: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant."""
    from difflib import get_close_matches  # noqa: PLC0415  # only a mistake needs it, and the service keeps its memory

    return next(iter(get_close_matches(written, known, n=1)), None)


@dataclass(frozen=True)
class FromFile:
    """Marks a key that has a sibling `<key>_file`, which names the file that holds the value: one, or one a line."""

    several: bool = False


@dataclass(frozen=True)
class FormerNames:
    """Marks a key that was called otherwise once; the configuration is refused with the name that it has now."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class StartFrom:
    """From when on a first start reports.

    `seconds` is a point in time (epoch seconds) for `since`, a duration for `ago`, and 0 otherwise.
    """

    kind: Literal["now", "all", "since", "ago"]
    seconds: float = 0.0


def parse_duration(value: object) -> float:
    """Seconds of `10s`, `5m`, `1m30s`, `250ms`, or of a number of seconds."""
    seconds = math.nan
    if isinstance(value, str):
        text = value.strip()
        if _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        elif _NUMBER.fullmatch(text):
            seconds = float(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(min(value, _LONGEST + 1))  # a larger whole number may be no float
    if not seconds > 0:  # or no number
        raise mistake("must be a duration such as 10s, 5m or 7d")
    if not _SHORTEST <= seconds <= _LONGEST:
        raise mistake("must be a duration such as 10s, 5m or 7d, of 1ms to 36500d")
    return seconds


def format_duration(seconds: float) -> str:
    """A duration as a person would write it: `1m30s`. `parse_duration` reads it back, to the millisecond."""
    left = max(1, round(seconds * 1000))
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_size(value: object) -> int:
    """Bytes of `512MiB`, `2GiB`, `500MB`, or of a number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise mistake("must be a size such as 512MiB, 2GiB or 500MB")
    return int(min(Decimal(found[1]) * _BYTES[found[2] or "B"], Decimal(_MOST_BYTES)))


def format_size(size: int) -> str:
    """A size as a person would write it; `parse_size` reads it back."""
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if size and size % _BYTES[unit] == 0), "B")
    return f"{size // _BYTES[unit]}{'' if unit == 'B' else unit}"


def parse_start_from(value: object) -> StartFrom:
    """`now`, `all`, a point in time, or a duration before the first start."""
    if isinstance(value, StartFrom):
        return value
    if isinstance(value, date):  # and datetime, which is one: tests and other callers in Python may give either
        value = value.isoformat()
    text = value.strip() if isinstance(value, str) else ""
    if text == "now":
        return StartFrom("now")
    if text == "all":
        return StartFrom("all")
    if _DURATION.fullmatch(text):
        return StartFrom("ago", parse_duration(text))
    if text and not text.isdigit():  # fromisoformat takes 20260131 for a date; here it is more likely seconds
        return StartFrom("since", _moment(text))
    raise mistake(_NOT_A_START)


def _moment(text: str) -> float:
    """Epoch seconds; a date alone is midnight in UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise mistake(_NOT_A_START) from None
    if moment.tzinfo is None:
        if "T" in text.upper() or ":" in text:
            raise mistake("is a time without a time zone", "end it with Z for UTC: 2026-01-31T00:00:00Z")
        moment = moment.replace(tzinfo=UTC)
    seconds = moment.timestamp()
    if not 0 <= seconds < _END_OF_TIME:  # what iso_utc can write down, in any zone
        raise mistake("must be a time in the years 1970 to 9999", "all for everything")
    return seconds


def whole_number(value: object) -> object:
    # Pydantic takes true for 1, and a Literal of numbers takes no text, which is what ${VAR} yields.
    if isinstance(value, bool):
        raise mistake("must be a whole number")
    if isinstance(value, str):
        if not re.fullmatch(r"-?[0-9]+", value.strip()):
            raise mistake("must be a whole number")
        value = int(value.strip()[: MOST_DIGITS + 2])  # one too many: Python refuses very long ones
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise mistake(f"must be a whole number of at most {MOST_DIGITS} digits")
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise mistake("is empty")
    return value


def _secret_not_empty(value: SecretStr) -> SecretStr:
    _not_empty(value.get_secret_value())
    return value


_DURATION_SCHEMA: dict[str, Any] = {
    "type": ["string", "number"],
    "pattern": r"^(.*\$\{.*|\d+(\.\d+)?|(\d+(\.\d+)?(ms|s|m|h|d))+)$",
    "exclusiveMinimum": 0,
}

Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
"""Seconds, from a millisecond to a century."""

_SIZE_SCHEMA: dict[str, Any] = {
    "type": ["string", "integer"],
    "pattern": r"^(.*\$\{.*|\d+(\.\d+)? ?([kKMGT]B|[KMGT]iB|B)?)$",
}

Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_SIZE_SCHEMA)]
"""Bytes."""

WholeNumber = Annotated[int, BeforeValidator(whole_number)]
Start = Annotated[StartFrom, BeforeValidator(parse_start_from), WithJsonSchema({"type": "string"})]
Text = Annotated[str, AfterValidator(_not_empty)]
Secret = Annotated[SecretStr, AfterValidator(_secret_not_empty)]
OptionalSecret = Annotated[Secret | None, FromFile()]
"""A secret that may be absent, and that may be in a file."""


_SHORTEST_PART = 8
"""Characters of a part of a URL: shorter ones are words such as `hook`, and help to read messages."""

_SEPARATORS = re.compile(r"[\s/?&=;:,#|\"'<>()]+")

_CREDENTIALS = ("sig", "key", "token", "secret", "pass", "auth", "code")
"""What the names of parameters contain whose values are secret, however short they are."""


def secrets_of(config: BaseModel) -> frozenset[str]:
    """All secrets of a configuration, or of a part of it, and what of them other sides may repeat alone."""
    return frozenset(part for secret in _secrets_in(config) for part in _parts(secret) if part)


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _secrets_in(item)
    elif isinstance(value, dict):
        for secret in (one for item in value.values() for one in _secrets_in(item)):
            yield from (secret, *_pieces(secret))


def _parts(secret: str) -> Iterator[str]:
    yield secret
    yield secret.removeprefix("whsec_")  # some libraries for receivers keep it without its prefix
    if secret.startswith(("http://", "https://")):
        yield from _parts_of_url(secret)
    scheme, _, credentials = secret.partition(" ")
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", scheme):
        yield credentials  # of a header: Bearer, Basic
    if scheme.lower() == "basic":
        with suppress(ValueError):
            yield from b64decode(credentials).decode("latin-1").split(":", 1)


def _parts_of_url(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    yield from (unquote(parts.username or ""), unquote(parts.password or ""))
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    yield from (part for part in (path, parts.query) if len(part) >= _SHORTEST_PART)
    yield from _pieces(f"{path}#{parts.fragment}")
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if len(value) >= _SHORTEST_PART or any(word in name.lower() for word in _CREDENTIALS):
            yield value


def _pieces(text: str) -> Iterator[str]:
    """What a header (`session=…; theme=dark`) or a URL (`/bot1:…/send`) holds, between what separates there."""
    for one in (text, unquote(text)):
        yield from (piece for piece in _SEPARATORS.split(one) if len(piece) >= _SHORTEST_PART)
