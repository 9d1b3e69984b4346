"""The account-wide request budget: how often the bridge asks, and whose turn it is."""

import asyncio
import heapq
import itertools
from collections.abc import Callable

from bace_bridge.polling.rules.seen import Urgency


class RequestBudget:
    """At most `per_minute` requests in any minute, a quarter of them at once, the most urgent first.

    `silence` keeps every request back, as the cloud's rate limit wants it: a rejected call restarts its clock.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float]) -> None:
        self._burst = max(1.0, per_minute / 4)
        self._rate = max(per_minute - self._burst, 1.0) / 60
        self._tokens = self._burst
        self._clock = clock
        self._filled_at = clock()
        self._silent_until = 0.0
        self._queue: list[tuple[Urgency, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, urgency: Urgency) -> None:
        """Returns when a request may be made."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (urgency, next(self._order), turn))
        self.release()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._tokens += 1
                self.release()
            raise

    def silence(self, seconds: float) -> None:
        """No request for so many seconds."""
        self._silent_until = max(self._silent_until, self._clock() + seconds)
        self._tokens = min(self._tokens, 1.0)

    @property
    def silent_for(self) -> float:
        """Seconds of silence that are left."""
        return max(0.0, self._silent_until - self._clock())

    def release(self) -> None:
        """Lets go first whoever may; called by itself when it is time."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled_at) * self._rate)
        self._filled_at = now
        while self._queue and self._tokens >= 1 and now >= self._silent_until:
            _, _, turn = heapq.heappop(self._queue)
            if not turn.done():
                self._tokens -= 1
                turn.set_result(None)
        if self._queue:
            wait = max(self._silent_until - now, (1 - self._tokens) / self._rate)
            self._wake_in(max(wait, 0.001))

    def _wake_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.release)
