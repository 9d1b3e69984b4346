"""What became of the deliveries to one sink, for the log and for the health answer."""

from collections.abc import Callable
from typing import Any, Literal

import structlog

from bace_bridge.domain.reception import Reception, after_attempt
from bace_bridge.domain.timestamps import iso_utc

log = structlog.get_logger()


class SinkWatch:
    def __init__(self, kind: Literal["mqtt", "webhook"], name: str, *, clock: Callable[[], float]) -> None:
        self.name = f"{kind}:{name}"
        self._failing, self._recovered = f"{kind}.failing", f"{kind}.recovered"
        self._sink = name
        self._clock = clock
        self._reception = Reception()

    def attempted(self, error: Exception | None, then: str = "") -> None:
        """An attempt has succeeded, or failed; `then` says what follows."""
        before, problem = self._reception, None if error is None else str(error)
        self._reception, news = after_attempt(before, problem, now=self._clock())
        if news == "failing":
            log.warning(self._failing, sink=self._sink, reason=problem, then=then)
        elif news == "recovered":
            seconds = None if before.failing_since is None else round(self._clock() - before.failing_since, 1)
            log.info(self._recovered, sink=self._sink, after=seconds, failures=before.failures)

    @property
    def problem(self) -> str | None:
        """Why the last attempts failed, as long as none has succeeded since."""
        one = self._reception
        return f"{one.failures} failed attempts in a row: {one.problem}" if one.failing else None

    def state(self) -> dict[str, Any]:
        one = self._reception
        return {
            "last_success_at": None if one.last_success_at is None else iso_utc(one.last_success_at),
            "failures_in_a_row": one.failures,
            "last_failure": one.problem,
        }
