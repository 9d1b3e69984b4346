"""The options of the suite, the order in which workers take the tests, and the table of what the faults led to."""

from collections.abc import Iterator

import msgspec
import pytest

from tests import models
from tests.faults.figures import Figures

WAITING = ("tests/acceptance/", "tests/faults/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-faults", action="store_true", help="the fault suite at its full size, for minutes")
    parser.addoption("--seed", type=int, help="the fault suite's seed; else a new one each time")


def pytest_configure() -> None:
    models.settle()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no worker begins one when the others have nothing left."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, not item.nodeid.startswith(WAITING)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if rows := list(_figures(terminalreporter)):
        terminalreporter.section("what the faults led to")
        for line in Figures.table(rows):
            terminalreporter.write_line(line)


def _figures(terminalreporter: pytest.TerminalReporter) -> Iterator[Figures]:
    """The reports carry them: the tests may have run in other processes."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call":
            yield from (msgspec.convert(value, Figures) for name, value in report.user_properties if name == "figures")
