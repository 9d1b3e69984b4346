"""The blueprints for Home Assistant are of its shape; make test-homeassistant runs them in a real one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs"
BLUEPRINTS = sorted((DOCS / "blueprints").glob("*.yaml"))
KEYS = {"blueprint", "triggers", "variables", "conditions", "actions", "mode", "max"}


class Loader(yaml.SafeLoader):
    """With Home Assistant's tag; `used` are the inputs that it names."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.used: set[str] = set()


def use(loader: Loader, node: yaml.ScalarNode) -> str:
    loader.used.add(str(loader.construct_scalar(node)))
    return ""


Loader.add_constructor("!input", use)


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_has_home_assistants_shape(path: Path) -> None:
    loader = Loader(path.read_text(encoding="utf-8"))
    blueprint: dict[str, Any] = loader.get_single_data()
    assert blueprint.keys() <= KEYS
    assert {"blueprint", "triggers", "actions", "mode"} <= blueprint.keys()
    about = blueprint["blueprint"]
    assert about.keys() == {"name", "description", "domain", "homeassistant", "input"}
    assert about["domain"] == "automation"
    assert about["input"].keys() == loader.used
    assert all(len(one["selector"]) == 1 for one in about["input"].values())
    assert all(one["trigger"] in {"device", "state", "numeric_state"} for one in blueprint["triggers"])


def test_the_page_offers_each_of_them() -> None:
    page = (DOCS / "home-assistant.md").read_text(encoding="utf-8")
    assert [path.name for path in BLUEPRINTS if f"(blueprints/{path.name})" not in page] == []
    assert len(BLUEPRINTS) == 3
