import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.retry import (
    JITTER,
    LONGEST_RETRY_AFTER,
    RETRY_SCHEDULE,
    GiveUp,
    TryAgain,
    backoff,
    decide,
    what_follows,
)

NOW = 1_769_817_600.0
JITTERS = st.floats(0, 1, exclude_max=True)
MINUTE, HOUR = 60, 3600


@pytest.mark.parametrize(
    ("attempt", "wait"),
    [
        (1, 5),
        (2, 5 * MINUTE),
        (3, 30 * MINUTE),
        (4, 2 * HOUR),
        (5, 5 * HOUR),
        (6, 10 * HOUR),
        (7, 14 * HOUR),
        (8, 20 * HOUR),
        (9, 24 * HOUR),
    ],
)
def test_the_schedule_of_standard_webhooks(attempt: int, wait: float) -> None:
    assert decide(attempt, now=NOW, jitter=0.0) == TryAgain(NOW + wait)


@pytest.mark.parametrize("attempt", [10, 11, 1000])
def test_then_it_is_given_up(attempt: int) -> None:
    decision = decide(attempt, now=NOW, jitter=0.0, retry_after=60.0)
    assert decision == GiveUp(f"gave up after {attempt} attempts")


@pytest.mark.parametrize(
    ("attempt", "retry_after", "wait"),
    [
        (1, 120.0, 120.0),
        (2, 120.0, 300.0),
        (1, 7 * 86400.0, LONGEST_RETRY_AFTER),
        (1, float("inf"), LONGEST_RETRY_AFTER),
        (1, 0.0, 5.0),
    ],
)
def test_retry_after_puts_off_but_for_no_longer_than_a_day(attempt: int, retry_after: float, wait: float) -> None:
    assert decide(attempt, now=NOW, jitter=0.0, retry_after=retry_after) == TryAgain(NOW + wait)


@given(
    attempt=st.integers(1, len(RETRY_SCHEDULE)),
    retry_after=st.floats(0, LONGEST_RETRY_AFTER),
    jitter=JITTERS,
)
def test_never_early_and_little_late(attempt: int, retry_after: float, jitter: float) -> None:
    decision = decide(attempt, now=NOW, jitter=jitter, retry_after=retry_after)
    assert isinstance(decision, TryAgain)
    asked = max(retry_after, RETRY_SCHEDULE[attempt - 1])
    assert NOW + asked <= decision.at <= NOW + asked * (1 + JITTER)


@given(jitter=JITTERS)
def test_another_schedule(jitter: float) -> None:
    assert isinstance(decide(1, now=NOW, jitter=jitter, schedule=(1.0,)), TryAgain)
    assert isinstance(decide(2, now=NOW, jitter=jitter, schedule=(1.0,)), GiveUp)


@pytest.mark.parametrize(
    ("failures", "wait"),
    [(-1, 0.0), (0, 0.0), (1, 1.0), (2, 2.0), (3, 4.0), (9, 256.0), (10, 300.0), (10_000, 300.0)],
)
def test_backing_off_doubles_up_to_a_bound(failures: int, wait: float) -> None:
    assert backoff(failures, jitter=0.0) == wait


@given(failures=st.integers(0, 10_000), jitter=JITTERS)
def test_jitter_only_ever_makes_it_longer(failures: int, jitter: float) -> None:
    plain = backoff(failures, jitter=0.0, first=2.0, longest=60.0)
    assert plain <= backoff(failures, jitter=jitter, first=2.0, longest=60.0) <= plain * (1 + JITTER)


def test_what_follows_is_said_for_people() -> None:
    again = decide(2, now=NOW, jitter=0.0)
    assert what_follows(again, 2, now=NOW) == "tried again in 300 s; a dead letter after 8 more failures"
    assert what_follows(GiveUp("rejected"), 1, now=NOW) == "a dead letter: not tried again"
