"""Tests against a real Home Assistant, which `make test-homeassistant` installs; the normal run leaves them out."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.homeassistant.home import INSTALLED, HomeAssistant, home_assistant
from tests.homeassistant.line import Line, line
from tests.integration.brokers import Mosquitto, mosquitto_path, new_mosquitto

__all__ = ["new_mosquitto"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if not INSTALLED.exists():
        reason = "there is no Home Assistant: make test-homeassistant installs it, with a Python 3.13"
    elif mosquitto_path() is None:
        reason = "Mosquitto is not installed"
    for item in items:
        if reason is not None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests have measured."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {name}: {value}")


@pytest.fixture
def mosquitto(new_mosquitto: object) -> Mosquitto:
    """One that forgets everything when it ends."""
    assert callable(new_mosquitto)
    one = new_mosquitto()
    assert isinstance(one, Mosquitto)
    return one


@pytest.fixture
async def home(tmp_path: Path, mosquitto: Mosquitto) -> AsyncIterator[HomeAssistant]:
    async with home_assistant(tmp_path, mosquitto.port) as one:
        yield one


@pytest.fixture
async def whole(tmp_path: Path, home: HomeAssistant, mosquitto: Mosquitto) -> AsyncIterator[Line]:
    async with line(tmp_path, home, mosquitto) as one:
        yield one
