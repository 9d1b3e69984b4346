"""Logging: JSON lines or text for a terminal, secrets masked, repeated messages of libraries counted."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict

from bace_bridge.redaction import SHORTEST, Redaction

MOST = 5
"""Records of the same text that pass within a minute."""

MINUTE = 60.0

_MOST_TEXTS = 100
"""Texts that are counted separately within a minute; the rest of them counts as one."""

_VARIES = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
_LONGEST = 200

_Key = tuple[str, int, str]


def in_background(seconds: float, then: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, then)
    timer.daemon = True
    timer.start()


@dataclass(eq=False)
class RateLimit:
    """A logging filter. How many records it has left out goes to `say`, once their minute is over.

    Texts are the same where their first lines differ in numbers and addresses only. It may be called by any thread.
    """

    say: Callable[[logging.LogRecord], None]
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic
    later: Callable[[float, Callable[[], None]], None] = in_background
    # Reentrant: a record's text, or the collector of garbage, may log in the middle of it.
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _counts: dict[_Key, int] = field(default_factory=dict)
    _until: float = 0.0

    def __call__(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = self.clock()
            if now >= self._until and not self._left_out():
                self._counts.clear()
                self._until = now + MINUTE
            # Getting the text may fail, as the library gives it: then the pattern stands for it.
            try:
                text = record.getMessage()
            except (TypeError, ValueError):
                text = str(record.msg)
            key = record.name, record.levelno, _VARIES.sub("#", text[:_LONGEST].partition("\n")[0])
            if key not in self._counts and len(self._counts) >= _MOST_TEXTS:
                key = ("", logging.WARNING, "other messages of libraries")
            counted = self._counts[key] = self._counts.get(key, 0) + 1
            # One timer for all texts, started by the first that is left out.
            if counted == MOST + 1 and len(self._left_out()) == 1:
                self.later(max(0.0, self._until - now), self._sum_up)
            return counted <= MOST

    def _left_out(self) -> dict[_Key, int]:
        return {key: count - MOST for key, count in self._counts.copy().items() if count > MOST}

    def _sum_up(self) -> None:
        with self._lock:
            left_out = self._left_out()
            self._counts.clear()
        for (name, level, text), count in left_out.items():
            more = f"{count} more like this in the minute before: {text}"
            self.say(logging.LogRecord(name or __name__, level, "", 0, more, (), None))


Format = Literal["console", "json"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}

_WIDTH = 120 - len("2026-01-30 12:00:00 warning ")
"""Columns of a terminal beside the time and the level."""

_SECONDS = frozenset(("after", "again_in", "seconds"))
_BYTES = frozenset(("free", "max_size", "store", "used"))
_TIMES = frozenset(("reports_from",))


@dataclass(eq=False)
class Threshold:
    """Drops what is below `level`, at run time too: cached loggers would keep a level of their own."""

    level: int

    def __call__(self, _logger: Any, method: str, event: EventDict) -> EventDict:
        if _LEVELS.get(method, logging.ERROR) < self.level:
            raise structlog.DropEvent
        return event


def _clean(value: Any, redaction: Redaction) -> Any:
    """Puts `***` in the place of every known secret, however deep in a field it is."""
    # A secret of digits only is text in the configuration; a number of ours is never one.
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_clean(key, redaction): _clean(item, redaction) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, redaction) for item in value]
    # What is no text would become text in the renderer, after this point.
    return redaction(value if isinstance(value, str) else repr(value))


class Lines:
    """Writes log lines; one that cannot be written is lost: a full disk must not end the service."""

    def msg(self, line: str, stream: TextIO) -> None:
        # One write for the line and its end: threads write, too, and must not come between.
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = msg


class _Forwarding(logging.Handler):
    """Hands the records of libraries (aiohttp, paho, asyncio) to the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        log = structlog.get_logger().bind(logger=record.name)
        # Libraries have levels of their own, between ours: the next lower one of ours stands for them.
        name = next(name for name, level in reversed(_LEVELS.items()) if level <= max(record.levelno, 10))
        getattr(log, name)(message, **({"exc_info": record.exc_info} if record.exc_info else {}))


def configure(*, fmt: Format | None, level: str, secrets: Collection[str] = (), stream: TextIO | None = None) -> None:
    """Sets up logging; to be called again when the configuration, and with it the secrets, changed.

    `fmt` None chooses: console on a terminal, else JSON lines. `stream` None is stderr as it is now.
    `level` is one of debug, info, warning, error, critical; another one is a ValueError.
    """
    target = sys.stderr if stream is None else stream
    console = fmt == "console" or (fmt is None and target.isatty())
    line = partial(_console_line, colours=target.isatty()) if console else _json_line
    # Not short ones, which would take our own words along: from others' texts they are taken before.
    redaction = Redaction(one for one in secrets if len(one) >= SHORTEST)
    # Cached loggers keep the list of processors that they first saw: it is refilled, never replaced.
    processors = structlog.get_config()["processors"]
    processors[:] = [
        Threshold(_level(level)),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        lambda _logger, _method, event: {
            key: value if key in {"ts", "level"} else _clean(value, redaction) for key, value in event.items()
        },
        lambda _logger, _method, event: ((line(event), target), {}),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: Lines(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for earlier in [one for one in root.handlers if isinstance(one, _Forwarding)]:
        root.removeHandler(earlier)
    forwarding = _Forwarding()
    forwarding.addFilter(RateLimit(forwarding.emit))
    root.addHandler(forwarding)
    root.setLevel(logging.WARNING)  # what libraries say below it is for their developers
    logging.captureWarnings(capture=True)


def is_configured() -> bool:
    return any(isinstance(processor, Threshold) for processor in structlog.get_config()["processors"])


def set_level(level: str) -> None:
    """Changes the level of all loggers at once, also of those in use. An unknown level is a ValueError."""
    number = _level(level)
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, Threshold):
            processor.level = number


def of_lost_lines(count: int) -> str:
    """The line that says so, with its end, in the format that is configured; "" below the level."""
    line: Any = {"event": "log.lines_lost", "lines": count, "hint": "what reads the log did not take them"}
    try:
        for processor in tuple(structlog.get_config()["processors"]):
            line = processor(None, "warning", line)
    except structlog.DropEvent:
        return ""
    return (line if isinstance(line, str) else line[0][0]) + "\n"


def _level(name: str) -> int:
    if name.lower() not in _LEVELS:
        raise ValueError(f"the log level must be one of {', '.join(_LEVELS)}")
    return _LEVELS[name.lower()]


def _json_line(event: MutableMapping[str, Any]) -> str:
    # Always in front, so that lines are readable as they are; what cannot be JSON becomes its repr.
    first = {
        "ts": event.pop("ts", None),
        "level": event.pop("level", None),
        "event": event.pop("event", None),
    }
    return msgspec.json.encode({**first, **event}, enc_hook=repr).decode()


def _console_line(event: EventDict, *, colours: bool) -> str:
    """One line for people: local time, labels in the place of ids where an event has them, and units."""
    moment, level, name = event.pop("ts"), event.pop("level"), event.pop("event")
    trace = event.pop("exception", None)
    # The ids are in the JSON lines; on a terminal three UUIDs would push what happened out of sight.
    if "session_label" in event:
        event.update(device=event.pop("device_label"), session=event.pop("session_label"))
        del event["id"]
    event.pop("event_id", None)  # 36 characters that only a command takes, and `dead-letters list` shows them
    fields = " ".join(f"{key}={_shown(key, value)}" for key, value in event.items())
    at = datetime.fromisoformat(moment).astimezone()
    said = f"{name:<22} {fields}".rstrip()
    # What is only news fits the terminal. A warning is shown whole: it says what to do.
    if level in {"debug", "info"} and len(said) > _WIDTH:
        said = f"{said[: _WIDTH - 1]}\u2026"
    word = f"{_COLOURS.get(level, '')}{level:<7}\x1b[0m" if colours else f"{level:<7}"
    line = f"{at:%Y-%m-%d %H:%M:%S} {word} {said}"
    return f"{line}\n{trace}" if trace else line


def _shown(key: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key in _SECONDS:
            return f"{value:g}s"
        if key in _BYTES:
            return f"{value / 2**20:.1f}MiB"
        if key in _TIMES:
            return f"{datetime.fromtimestamp(value).astimezone():%Y-%m-%dT%H:%M:%S}"
    text = str(value)
    return repr(text) if not text or re.search(r"[\s=\"']", text) or not text.isprintable() else text
