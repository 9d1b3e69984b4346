"""bace-bridge, ended by SIGKILL at a chosen step: `python -m tests.faults.failpoints committed:37 run -c bridge.yaml`.

The steps are wrapped around the product's classes before it starts, so nothing in the product knows of them.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from bace_bridge.__main__ import run
from bace_bridge.cloud.api import BaceCloud
from bace_bridge.sinks.mqtt.sink import MqttSink
from bace_bridge.sinks.webhook.sink import WebhookSink
from bace_bridge.store.eventlog import EventLog
from bace_bridge.store.journal import Journal

FETCHED = "fetched"
"""A page came from the cloud; nothing has been decided on it."""
COMMITTED = "committed"
"""`Journal.commit` has written; no dispatcher has read it."""
SENT = "sent"
"""An event was handed to a sink."""
ACKNOWLEDGED = "acknowledged"
"""The other side has confirmed an event; the dispatcher does not know yet."""
ADVANCED = "advanced"
"""`EventLog.record` has written a sink's progress."""

STEPS = (FETCHED, COMMITTED, SENT, ACKNOWLEDGED, ADVANCED)

Passed = Callable[[str], None]


def countdown(failpoint: str, end: Callable[[], None]) -> Passed:
    """Calls `end` at the n-th pass of the failpoint's step, such as `committed:37`."""
    chosen, _, number = failpoint.partition(":")
    left = int(number)
    assert chosen in STEPS
    assert left > 0

    def passed(step: str) -> None:
        nonlocal left
        if step == chosen:
            left -= 1
            if left == 0:
                end()

    return passed


def install(passed: Passed) -> None:
    """Wraps the classes, for this process' whole life."""
    for method in ("session_page", "session", "group_page", "point_page"):
        _after(BaceCloud, method, FETCHED, passed)
    _after(Journal, "commit", COMMITTED, passed)
    _after(EventLog, "record", ADVANCED, passed)
    for sink in (MqttSink, WebhookSink):
        _around_send(sink, passed)


def _after(part: type, method: str, step: str, passed: Passed) -> None:
    inner = getattr(part, method)

    async def outer(*given: Any, **named: Any) -> Any:
        answer = await inner(*given, **named)
        passed(step)
        return answer

    setattr(part, method, outer)


def _around_send(sink: type, passed: Passed) -> None:
    inner: Callable[..., None] = sink.send  # type: ignore[attr-defined]  # every sink has it

    def send(self: Any, attempt: Any, done: Callable[[Any], None]) -> None:
        def acknowledged(error: Any) -> None:
            if error is None:
                passed(ACKNOWLEDGED)
            done(error)

        inner(self, attempt, acknowledged)
        passed(SENT)

    setattr(sink, "send", send)  # noqa: B010  # mypy lets nobody assign to a method


if __name__ == "__main__":
    install(countdown(sys.argv[1], lambda: os.kill(os.getpid(), signal.SIGKILL)))
    sys.exit(run(sys.argv[2:]))
