"""The size of the runs, their seed, and their figures."""

import random
from collections.abc import Callable

import msgspec
import pytest

from tests.faults.figures import Figures
from tests.integration.brokers import new_mosquitto

__all__ = ["new_mosquitto"]


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full-faults"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """`make test-faults FAULT_ARGS="--seed N"` repeats it: what happens in the cloud, and which faults come when."""
    given: int | None = request.config.getoption("--seed")
    drawn = random.SystemRandom().randrange(1_000_000) if given is None else given
    print(f"--seed {drawn} repeats it")  # noqa: T201  # pytest shows it where the test fails, in whatever way
    return drawn


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Callable[[Figures], None]:
    """Hands a run's figures to the table at the end."""
    return lambda figures: record_property("figures", msgspec.to_builtins(figures))
