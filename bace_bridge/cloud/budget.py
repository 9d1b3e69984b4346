"""The account-wide request budget: how often the bridge asks, and whose turn it is."""

import asyncio
from collections import deque
from collections.abc import Callable

from bace_bridge.polling.rules.changes import Urgency

TURNS = {Urgency.SESSIONS: 4, Urgency.BACKLOG: 10}
"""While live datapoints wait the session list has one turn of so many, and while anything waits the backlog has.

So neither a list of many pages nor polls that never end starve the datapoints.
"""

BURST = 10
"""Of the requests of a minute one of so many may be made at once. What may be made at once is kept back all the time,
for it must not be more in any minute."""

SLOWEST = 0.1
"""Requests a second that are made however little an answer says is left: where it means that, a 429 follows."""


class RequestBudget:
    """At most `per_minute` requests in any minute, a tenth of them at once; the more urgent go first, but not alone.

    Where the cloud says that it has less left, that is spread over the time until it is full again.
    `silence` keeps every request back, as the cloud's rate limit wants it: a rejected call restarts its clock.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float]) -> None:
        self._burst = max(1.0, per_minute / BURST)
        self._rate = max(per_minute - self._burst, 1.0) / 60
        self._learned, self._learned_until = self._rate, 0.0
        self._tokens = self._burst
        self._clock = clock
        self._filled_at = clock()
        self._silent_until = 0.0
        self._queues: dict[Urgency, deque[asyncio.Future[None]]] = {urgency: deque() for urgency in Urgency}
        self._turns_since = {**TURNS, Urgency.BACKLOG: 0}
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, urgency: Urgency) -> None:
        """Returns when a request may be made."""
        turn = asyncio.get_running_loop().create_future()
        self._queues[urgency].append(turn)
        self.release()
        try:
            await turn
        except asyncio.CancelledError:
            # The turn may have come in the same pass of the loop: then somebody else gets it.
            if turn.done() and not turn.cancelled():
                self._tokens += 1
                self.release()
            raise

    def silence(self, seconds: float) -> None:
        """No request for so many seconds."""
        self._silent_until = max(self._silent_until, self._clock() + seconds)
        # No burst right after the silence: the server's bucket is as empty as it was.
        self._tokens = min(self._tokens, 1.0)

    def learn(self, remaining: float | None, reset: float | None) -> bool:
        """Takes what an answer says is left, and the seconds until it is full again; True where that slows us down.

        A limiter that refills all the time settles at half of its size, one that refills at once is used up evenly.
        """
        # `X-Rate-Limit-*` come on every answer of a limited endpoint, so the pace is learned before the first 429.
        if remaining is None or not reset:
            return False
        self._tokens = min(self._tokens, remaining)
        self._learned = max(remaining, 1.0) / reset
        self._learned_until = self._clock() + reset
        return self._learned < self._rate

    @property
    def _pace(self) -> float:
        """Requests a second."""
        learned = self._learned if self._clock() < self._learned_until else self._rate
        return min(self._rate, max(SLOWEST, learned))

    @property
    def silent_for(self) -> float:
        """Seconds of silence that are left."""
        return max(0.0, self._silent_until - self._clock())

    def release(self) -> None:
        """Lets go first whoever may; called by itself when it is time."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled_at) * self._pace)
        self._filled_at = now
        while self._tokens >= 1 and now >= self._silent_until and (urgency := self._next()) is not None:
            self._queues[urgency].popleft().set_result(None)
            self._tokens -= 1
            self._turns_since = {one: 0 if one is urgency else turns + 1 for one, turns in self._turns_since.items()}
        if any(self._queues.values()):
            wait = max(self._silent_until - now, (1 - self._tokens) / self._pace)
            if self._timer is not None:
                self._timer.cancel()
            # Never 0: rounding may leave a hair of a token missing, and the loop would spin until it is there.
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.001), self.release)

    def _next(self) -> Urgency | None:
        """Whose turn it is: theirs who have waited for their share, then live datapoints, then the most urgent."""
        for queue in self._queues.values():
            while queue and queue[0].done():  # cancelled
                queue.popleft()
        waiting = [urgency for urgency, queue in self._queues.items() if queue]
        shares = [one for one in waiting if one in TURNS and self._turns_since[one] >= TURNS[one] - 1]
        live = [one for one in waiting if one is Urgency.LIVE]
        return next(iter([*shares, *live, *waiting]), None)
