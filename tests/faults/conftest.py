"""The size of the runs, their seed, and the table of figures at the end."""

import random

import pytest

from tests.faults.ground import Figures
from tests.integration.brokers import new_mosquitto

__all__ = ["new_mosquitto"]

FIGURES = pytest.StashKey[list[Figures]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-faults", action="store_true", help="the fault suite at its full size, for minutes")
    parser.addoption("--seed", type=int, help="the fault suite's seed; else a new one each time")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (rows := config.stash[FIGURES]):
        return
    terminalreporter.section("what the faults led to")
    for line in Figures.table(rows):
        terminalreporter.write_line(line)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--full-faults", default=False))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """`make test-faults FAULT_ARGS="--seed N"` repeats it: what happens in the cloud, and which faults come when."""
    given: int | None = request.config.getoption("--seed", default=None)
    return random.SystemRandom().randrange(1_000_000) if given is None else given


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[Figures]:
    return request.config.stash[FIGURES]
