"""The name of an installation: it survives the loss of its store."""

from pathlib import Path
from typing import Any

import pytest

from bace_bridge.app.storage import installation_name
from bace_bridge.config.models import Config


def config(store: Path, **cloud: Any) -> Config:
    login = {"client_id": "c", "client_secret": "s", "username": "me", "password": "p"}
    return Config.model_validate(
        {"cloud": {"url": "https://cloud.example", **login, **cloud}, "store": {"url": f"sqlite:///{store}"}}
    )


def test_it_is_the_same_for_the_same_store_and_account_wherever_the_cloud_is(tmp_path: Path) -> None:
    name = installation_name(config(tmp_path / "b.db"))

    assert len(name) == 8
    assert int(name, 16) >= 0
    assert installation_name(config(tmp_path / "b.db", url="https://other.example", password="q")) == name


@pytest.mark.parametrize("change", ["store", "account"])
def test_another_store_or_account_is_another_installation(tmp_path: Path, change: str) -> None:
    other = config(tmp_path / "c.db") if change == "store" else config(tmp_path / "b.db", username="you")

    assert installation_name(other) != installation_name(config(tmp_path / "b.db"))
