import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from bace_bridge import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    processors = structlog.get_config()["processors"]
    before, root = list(processors), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    processors[:] = before
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines() -> None:
    stream = io.StringIO()
    logs.configure(fmt=None, level="info", stream=stream)
    structlog.get_logger().info("poll.done", sessions=3, took=0.25, path=Path("x"))
    (line,) = lines(stream)
    assert list(line) == ["ts", "level", "event", "sessions", "took", "path"]
    assert line["ts"].endswith("Z")
    assert (line["level"], line["event"], line["sessions"]) == ("info", "poll.done", 3)


def test_console() -> None:
    stream = io.StringIO()
    logs.configure(fmt="console", level="info", stream=stream)
    log = structlog.get_logger()
    log.warning("cloud.away", again_in=10.0, used=3 * 2**20, reason="no answer")
    log.info("session.ended", device_label="BaceGo-1", session_label="Night watch", device="d1", session="s1", id="e1")
    log.info("session.csv_ready", device_label="B", session_label="N", device="d1", session="s1", id="e1", revision=0)
    log.info("delivery.retry_scheduled", sink="alerts", event_id="evt_1", type="session.ended", again_in=5.2)
    away, ended, ready, retried = (re.sub(r"^[-\d]{10} [:\d]{8} ", "", line) for line in stream.getvalue().splitlines())
    assert away == "warning cloud.away             again_in=10s used=3.0MiB reason='no answer'"
    assert ended == "info    session.ended          device=BaceGo-1 session='Night watch'"
    assert ready == "info    session.csv_ready      device=B session=N revision=0"
    assert retried == "info    delivery.retry_scheduled sink=alerts type=session.ended again_in=5.2s"


@pytest.mark.parametrize("reason", ["HTTP 500: " + "no " * 80, "x" * 300, "it's " * 50, "\u00fc\n" * 90])
def test_a_long_reason_is_cut_on_a_terminal_where_nothing_is_to_be_done(reason: str) -> None:
    stream = io.StringIO()
    logs.configure(fmt="console", level="info", stream=stream)
    log = structlog.get_logger()
    log.info("delivery.retry_scheduled", sink="alerts", event_id="evt_1", attempt=3, again_in=1800.0, reason=reason)
    log.warning("webhook.failing", sink="alerts", reason=reason, then="tried again in 5 s")
    retried, failing = stream.getvalue().splitlines()
    assert len(retried) == 120
    assert "attempt=3 again_in=1800s reason=" in retried
    assert retried.endswith("\u2026")
    assert failing.endswith("then='tried again in 5 s'")


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_no_known_secret_is_ever_written(fmt: logs.Format) -> None:
    stream = io.StringIO()
    logs.configure(fmt=fmt, level="info", secrets={"hunter2", "hunter2-longer", "a.b(c"}, stream=stream)
    log = structlog.get_logger().bind(bound="my hunter2")
    try:
        int("hunter2")
    except ValueError as error:
        log.exception("boom hunter2-longer", error=error, nested={"hunter2": [("hunter2", {"hunter2"})]})
    log.info("bytes", raw=b"hunter2", special="xa.b(cx", error=KeyError("hunter2"))
    logging.getLogger("paho").error("%s", "hunter2")
    text = stream.getvalue()
    assert "hunter2" not in text
    assert "a.b(c" not in text
    assert "-longer" not in text
    assert "x***x" in text


def test_a_secret_that_is_a_common_word_leaves_lines_readable() -> None:
    stream = io.StringIO()
    logs.configure(fmt="json", level="info", secrets=["s", "info"], stream=stream)
    structlog.get_logger().info("cloud.unreachable", reason="no answer within 30 s", said="info")
    (line,) = lines(stream)
    assert (line["level"], line["event"]) == ("info", "cloud.unreachable")
    assert (line["reason"], line["said"]) == ("no answer within 30 s", "***")


def test_the_level_changes_at_run_time_for_loggers_in_use() -> None:
    stream = io.StringIO()
    logs.configure(fmt="json", level="info", stream=stream)
    log = structlog.get_logger().bind(sink="a")
    log.debug("one")
    logs.set_level("debug")
    log.debug("two")
    logs.set_level("error")
    log.warning("three")
    log.critical("four")
    assert [line["event"] for line in lines(stream)] == ["two", "four"]
    with pytest.raises(ValueError, match="must be one of debug"):
        logs.set_level("loud")


def test_configuring_again_reaches_loggers_in_use() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(fmt="json", level="info", stream=first)
    log = structlog.get_logger()
    log.info("one")
    logs.configure(fmt="json", level="info", secrets=["hunter2"], stream=second)
    log.info("two", password="hunter2")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["password"] for line in lines(second)] == ["***"]


def test_libraries_are_heard_from_warning_on() -> None:
    stream = io.StringIO()
    logs.configure(fmt="json", level="debug", stream=stream)
    logs.configure(fmt="json", level="debug", stream=stream)
    logging.getLogger("aiohttp.client").info("quiet")
    logging.getLogger("aiohttp.client").warning("odd %d", 7)
    wrong = logging.LogRecord("asyncio", logging.ERROR, "x.py", 1, "wrong arguments %d", ("x",), None)
    logging.getLogger().handlers[-1].handle(wrong)
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"]) == ("odd 7", "warning", "aiohttp.client")
    assert (second["event"], second["level"]) == ("wrong arguments %d", "error")


def test_an_error_of_a_library_comes_with_its_traceback_without_secrets() -> None:
    stream = io.StringIO()
    logs.configure(fmt="json", level="info", secrets=["hunter2"], stream=stream)
    try:
        int("hunter2")
    except ValueError:
        logging.getLogger("asyncio").exception("a task failed")
    (line,) = lines(stream)
    assert line["event"] == "a task failed"
    assert "ValueError: invalid literal" in line["exception"]
    assert "hunter2" not in line["exception"]


def test_a_library_that_says_the_same_a_thousand_times_is_heard_a_few_times() -> None:
    stream = io.StringIO()
    logs.configure(fmt="json", level="debug", stream=stream)
    for number in range(1000):
        logging.getLogger("asyncio").error("no free descriptor for socket %d", number)
    assert 0 < len(lines(stream)) <= 10
    structlog.get_logger().error("our own")
    assert lines(stream)[-1]["event"] == "our own"


def test_a_warning_of_python_is_a_line_of_the_log() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure(fmt="json", level="info", stream=stream)
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    (line,) = lines(stream)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: old ways" in line["event"]


def test_a_stream_that_fails_loses_a_line_and_takes_the_later_ones() -> None:
    class Disk(io.StringIO):
        full = True

        def write(self, text: str, /) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    logs.configure(fmt="json", level="info", stream=disk)
    log = structlog.get_logger().bind(sink="a")
    log.info("lost")
    disk.full = False
    log.info("written by the same logger")
    logging.getLogger("paho").warning("written by a library")
    assert [line["event"] for line in lines(disk)] == ["written by the same logger", "written by a library"]


def test_a_closed_stream_does_not_end_the_service() -> None:
    closed = io.StringIO()
    logs.configure(fmt="json", level="info", stream=closed)
    closed.close()
    structlog.get_logger().info("lost too")


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_lost_lines_are_said_in_the_format_of_the_others(fmt: logs.Format) -> None:
    logs.configure(fmt=fmt, level="info", stream=io.StringIO())
    line = logs.of_lost_lines(3)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    if fmt == "json":
        assert {"level": "warning", "event": "log.lines_lost", "lines": 3}.items() <= json.loads(line).items()
    else:
        assert "log.lines_lost" in line
        assert "lines=3" in line
    logs.set_level("error")
    assert logs.of_lost_lines(3) == ""


def test_lost_lines_are_said_before_anything_is_configured() -> None:
    assert "log.lines_lost" in logs.of_lost_lines(3)
