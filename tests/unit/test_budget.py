"""Whose turn it is at the request budget."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from bace_bridge.cloud.budget import RequestBudget
from bace_bridge.polling.rules.changes import Urgency
from bace_bridge.simulator.facts import Allowance, RateLimit, judge


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


async def test_polls_that_never_end_leave_most_turns_to_live_datapoints() -> None:
    order = await order_of([Urgency.SESSIONS] * 5 + [Urgency.LIVE], 40)
    assert "SS" not in "".join(one.name[0] for one in order[1:])
    assert 9 <= Counter(order)[Urgency.SESSIONS] <= 11


async def test_live_datapoints_leave_a_quarter_of_the_turns_to_the_session_list() -> None:
    order = await order_of([Urgency.LIVE] * 9 + [Urgency.SESSIONS], 40)
    assert Counter(order)[Urgency.SESSIONS] == 10


async def test_a_poll_that_begins_while_datapoints_wait_does_not_wait_behind_them() -> None:
    budget = RequestBudget(60, clock=(clock := Clock()))
    live = [asyncio.create_task(budget.turn(Urgency.LIVE)) for _ in range(30)]
    await asyncio.sleep(0)
    poll = asyncio.create_task(budget.turn(Urgency.SESSIONS))
    await asyncio.sleep(0)
    clock.now += 2
    budget.release()
    await asyncio.wait_for(poll, 10)
    for one in live:
        one.cancel()
    await asyncio.gather(*live, return_exceptions=True)


async def test_a_list_of_many_pages_is_read_at_once_where_nobody_else_waits() -> None:
    assert await order_of([Urgency.SESSIONS], 10) == [Urgency.SESSIONS] * 10


async def test_the_backlog_has_its_share_while_others_wait() -> None:
    order = await order_of([Urgency.SESSIONS, Urgency.LIVE, Urgency.LIVE, Urgency.BACKLOG], 60)
    places = [place for place, one in enumerate(order) if one is Urgency.BACKLOG]
    assert {other - one for one, other in pairwise(places)} <= {10, 11}


@pytest.mark.parametrize("per_minute", [10, 120, 400])
async def test_no_minute_has_more_requests_than_are_allowed_and_most_have_nearly_as_many(per_minute: int) -> None:
    clock = Clock()
    budget = RequestBudget(per_minute, clock=clock)
    made: list[float] = []

    async def ask() -> None:
        while True:
            await budget.turn(Urgency.LIVE)
            made.append(clock.now)

    clock.now += 600
    asks = [asyncio.create_task(ask()) for _ in range(4)]
    for _ in range(1800):
        for _ in range(60):
            await asyncio.sleep(0)
        clock.now += 0.1
        budget.release()
    for one in asks:
        one.cancel()
    await asyncio.gather(*asks, return_exceptions=True)
    minutes = [sum(start <= one < start + 60 for one in made) for start in made]
    assert max(minutes) <= per_minute
    assert sum(one >= 660 for one in made) >= 2 * 0.85 * per_minute


async def test_the_backlog_goes_on_where_nobody_else_waits() -> None:
    assert await order_of([Urgency.BACKLOG], 10) == [Urgency.BACKLOG] * 10


async def requests_in(seconds: float, limit: RateLimit, *, per_minute: int) -> tuple[int, int]:
    """How many requests Yii's limiter takes and refuses, while as many are made as the budget lets through."""
    clock = Clock()
    allowance: Allowance | None = None
    budget = RequestBudget(per_minute, clock=clock)
    taken = refused = 0

    async def ask() -> None:
        nonlocal allowance, taken, refused
        while True:
            await budget.turn(Urgency.LIVE)
            said = judge(limit, allowance, clock.now)
            allowance = said.allowance
            taken, refused = taken + said.allowed, refused + (not said.allowed)
            budget.learn(said.remaining, said.reset)

    asks = [asyncio.create_task(ask()) for _ in range(4)]
    while clock.now < seconds:
        for _ in range(3):
            await asyncio.sleep(0)
        clock.now += 0.1
        budget.release()
    for one in asks:
        one.cancel()
    await asyncio.gather(*asks, return_exceptions=True)
    return taken, refused


@pytest.mark.parametrize("calls", [20, 60, 100])
async def test_the_pace_is_learned_before_the_first_429(calls: int) -> None:
    taken, refused = await requests_in(600, RateLimit(calls, 60.0), per_minute=120)
    assert refused == 0
    assert taken >= 10 * calls * 0.6, "Yii drops the fractions of a call at every request"


async def test_an_allowance_that_is_larger_slows_nothing_down() -> None:
    taken, refused = await requests_in(600, RateLimit(6000, 60.0), per_minute=120)
    assert (taken > 850, refused) == (True, 0)


async def test_what_an_answer_says_is_left_is_spread_over_the_time_until_it_is_full() -> None:
    clock = Clock()
    budget = RequestBudget(120, clock=clock)
    assert budget.learn(5, 50)
    turns = [asyncio.create_task(budget.turn(Urgency.LIVE)) for _ in range(20)]
    for _ in range(500):
        await asyncio.sleep(0)
        clock.now += 0.1
        budget.release()
    assert sum(one.done() for one in turns) in {9, 10}
    for one in turns:
        one.cancel()
    await asyncio.gather(*turns, return_exceptions=True)


@pytest.mark.parametrize(("remaining", "reset"), [(None, 60.0), (5.0, None), (5.0, 0.0)])
async def test_an_answer_without_a_limit_teaches_nothing(remaining: float | None, reset: float | None) -> None:
    assert not RequestBudget(120, clock=Clock()).learn(remaining, reset)


async def test_nothing_left_for_a_day_is_not_believed() -> None:
    clock = Clock()
    budget = RequestBudget(120, clock=clock)
    assert budget.learn(0, 86_400)
    turn = asyncio.create_task(budget.turn(Urgency.LIVE))
    await asyncio.sleep(0)
    clock.now += 11
    budget.release()
    await asyncio.wait_for(turn, 10)
