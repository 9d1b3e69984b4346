"""Whose turn it is at the request budget."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from bace_bridge.cloud.budget import BACKLOG_SHARE, MOST_SESSIONS_IN_A_ROW, RequestBudget
from bace_bridge.polling.rules.seen import Urgency


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def order_of(waiting: Sequence[Urgency], turns: int) -> list[Urgency]:
    """The first turns where as many wait as are named, and each that got its turn asks again at once."""
    clock = Clock()
    budget = RequestBudget(4, clock=clock)
    await budget.turn(Urgency.SESSIONS)
    order: list[Urgency] = []

    async def ask(urgency: Urgency) -> None:
        while True:
            await budget.turn(urgency)
            order.append(urgency)

    asks = [asyncio.create_task(ask(one)) for one in waiting]
    while len(order) < turns:
        for _ in range(5):
            await asyncio.sleep(0)
        clock.now += 20
        budget.release()
    for one in asks:
        one.cancel()
    await asyncio.gather(*asks, return_exceptions=True)
    return order[:turns]


async def test_polls_that_never_end_leave_turns_to_live_datapoints() -> None:
    order = await order_of([Urgency.SESSIONS] * 5 + [Urgency.LIVE], 30)
    runs = "".join(one.name[0] for one in order).split("L")
    assert max(map(len, runs)) == MOST_SESSIONS_IN_A_ROW


async def test_live_datapoints_leave_turns_to_the_session_list() -> None:
    order = await order_of([Urgency.LIVE] * 9 + [Urgency.SESSIONS], 30)
    assert Counter(order)[Urgency.SESSIONS] == 20


async def test_the_backlog_has_its_share_while_others_wait() -> None:
    order = await order_of([Urgency.SESSIONS, Urgency.LIVE, Urgency.LIVE, Urgency.BACKLOG], 60)
    places = [place for place, one in enumerate(order) if one is Urgency.BACKLOG]
    assert [other - one for one, other in pairwise(places)] == [BACKLOG_SHARE] * (len(places) - 1)
    assert len(places) == 60 // BACKLOG_SHARE


async def test_the_backlog_goes_on_where_nobody_else_waits() -> None:
    assert await order_of([Urgency.BACKLOG], 10) == [Urgency.BACKLOG] * 10
