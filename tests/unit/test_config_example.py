"""The example configuration is the defaults, and the schema knows every key of it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bace_bridge.config.files import is_from_file
from bace_bridge.config.json_schema import config_schema, default_as_written
from bace_bridge.config.load import load
from bace_bridge.config.models import CloudConfig, Config
from bace_bridge.config.paths import section_model
from bace_bridge.domain.events import EVENT_TYPES
from bace_bridge.polling.rules.event_schema import event_schema

EXAMPLE = Path(__file__).parents[2] / "bridge.example.yaml"
ENV = {
    "BACE_CLIENT_ID": "id",
    "BACE_CLIENT_SECRET": "s3cret",
    "BACE_USERNAME": "me@example.org",
    "BACE_PASSWORD": "p4ssword",
    "BACE_WEBHOOK_URL": "https://example.org/hook",
    "BACE_WEBHOOK_SECRET": "whsec_" + "A" * 40,
}


@pytest.fixture
def everything() -> dict[str, Any]:
    """The example with the keys that are commented out in it: `#key: value`, without a blank."""
    text = EXAMPLE.read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(re.sub(r"#(?=[a-z_]+: )", "", text))
    return document


def test_the_example_loads_and_says_nothing_but_the_defaults() -> None:
    config = load(EXAMPLE, ENV)
    defaults = Config(cloud=CloudConfig())
    assert config.watch == defaults.watch
    assert config.store == defaults.store
    assert config.http == defaults.http
    assert config.datatypes == defaults.datatypes


def sections(document: Any, model: type[BaseModel], path: str) -> Iterator[tuple[str, Any, type[BaseModel]]]:
    yield path, document, model
    for key, info in model.model_fields.items():
        inner = section_model(info.annotation)
        if inner is None:
            continue
        value = document[key]
        many = value if isinstance(value, list) else [*value.values()] if key == "datatypes" else [value]
        for one in many:
            yield from sections(one, inner, f"{path}.{key}")


def test_every_key_of_the_models_is_in_the_example_with_its_default(everything: dict[str, Any]) -> None:
    for path, section, model in sections(everything, Config, "example"):
        for key, info in model.model_fields.items():
            assert key in section, f"{path}.{key} is missing in bridge.example.yaml"
            assert not is_from_file(info) or f"{key}_file" in section, f"{path}.{key}_file is missing"
            if section_model(info.annotation) or info.is_required() or info.default is None:
                continue
            assert str(section[key]) == str(default_as_written(info)), f"{path}.{key} is not the default"


def key_paths(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """Paths of keys in `value` that the schema does not describe."""
    if isinstance(value, list) and "items" in schema:
        for item in value:
            yield from key_paths(item, schema["items"], path)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
        if inner:
            yield from key_paths(item, inner, f"{path}.{key}")
        else:
            yield f"{path}.{key}"


def test_the_schema_knows_every_key_of_the_example(everything: dict[str, Any]) -> None:
    assert list(key_paths(everything, config_schema(), "")) == []
    assert list(key_paths({"cloud": {"ulr": "x"}}, config_schema(), "")) == [".cloud.ulr"]


def test_the_schema_shows_durations_as_text_and_describes_every_key() -> None:
    properties = config_schema()["properties"]
    assert properties["watch"]["properties"]["session_interval"]["default"] == "10s"
    assert properties["watch"]["properties"]["start_from"]["default"] == "now"
    webhook = properties["webhooks"]["items"]
    assert webhook["required"] == ["name"]
    assert {"oneOf": [{"required": ["url"]}, {"required": ["url_file"]}]} in webhook["allOf"]
    for section in properties.values():
        inner = section.get("items") or section
        assert all("description" in one for one in inner.get("properties", {}).values())


def test_the_event_schema_has_the_data_of_every_type() -> None:
    schema = event_schema()
    kinds = {kind["properties"]["type"]["const"]: kind["properties"]["data"] for kind in schema["oneOf"]}
    assert set(kinds) == {f"bace.{name}" for name in (*EVENT_TYPES, "alert.firing", "alert.resolved")}
    assert set(kinds["bace.session.datapoints"]["required"]) >= {"session", "device", "datapoints"}
    assert set(schema["$defs"]) == {"SessionView", "DeviceView", "DatapointView"}
