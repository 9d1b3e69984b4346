"""The example configuration is the defaults, and the schema knows every key of it."""

import re
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bace_bridge.cli.check import config_schema, default_as_written
from bace_bridge.config.files import file_key, section_model
from bace_bridge.config.load import load
from bace_bridge.config.models import FILE_MODEL, CloudConfig, Config, warnings
from bace_bridge.events.types import EVENT_TYPES
from bace_bridge.polling.rules.event_schema import event_schema

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "bridge.example.yaml"
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


def test_the_example_gives_no_warning() -> None:
    assert warnings(load(EXAMPLE, ENV), now=0) == []


def sections(document: Any, model: type[BaseModel], path: str) -> Iterator[tuple[str, Any, type[BaseModel]]]:
    yield path, document, model
    for key, info in model.model_fields.items():
        inner = section_model(info.annotation)
        if inner is None:
            continue
        value = document[key]
        # Each datatype has the keys that it needs; together they have all.
        many = value if isinstance(value, list) else [ChainMap(*value.values())] if key == "datatypes" else [value]
        for one in many:
            yield from sections(one, inner, f"{path}.{key}")


def test_every_key_of_the_models_is_in_the_example_with_its_default(everything: dict[str, Any]) -> None:
    for path, section, model in sections(everything, FILE_MODEL, "example"):
        for key, info in model.model_fields.items():
            assert key in section, f"{path}.{key} is missing in bridge.example.yaml"
            assert not file_key(info) or f"{key}_file" in section, f"{path}.{key}_file is missing"
            if section_model(info.annotation) or info.is_required() or info.default is None:
                continue
            assert str(section[key]) == str(default_as_written(info)), f"{path}.{key} is not the default"


def keys_of_models(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """`mqtt.tls.ca_file` and the like, without what only holds other keys."""
    for key, info in model.model_fields.items():
        inner = section_model(info.annotation)
        if inner is None:
            yield f"{path}{key}", info
        else:
            yield from keys_of_models(inner, f"{path}{key}.")


def keys_of_schema(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, one in schema["properties"].items():
        inner = one.get("items", one.get("additionalProperties") or one)
        if "properties" in inner:
            yield from keys_of_schema(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def keys_of_example(document: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in document.items():
        many = value if key in {"mqtt", "webhooks"} else [*value.values()] if key == "datatypes" else [value]
        for one in many:
            if isinstance(one, dict) and key != "headers":
                yield from keys_of_example(one, f"{path}{key}.")
            else:
                yield f"{path}{key}"


def rows_of_docs() -> Iterator[tuple[str, str]]:
    """Key and default of every row in the tables of docs/configuration.md whose heading is a section."""
    section = ""
    for line in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif section in FILE_MODEL.model_fields and line.startswith("| `"):
            _, keys, default, *_ = line.split("|")
            for key in re.findall(r"`([^`]+)`", keys):
                yield f"{section}.{key}", default.strip()


def test_models_schema_example_and_docs_have_the_same_keys(everything: dict[str, Any]) -> None:
    models = dict(keys_of_models(FILE_MODEL))
    files = {f"{key}_file" for key, info in models.items() if file_key(info)}
    assert {*keys_of_schema(config_schema())} == {*models} | files
    assert {*keys_of_example(everything)} == {*models} | files
    documented = [key for key, _ in rows_of_docs()]
    assert sorted(documented) == sorted(models)
    on_files = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").split("### Secrets in files")[1]
    named = {*re.findall(r"`(\w+_file)`", on_files.split("A relative path")[0])} - {"_file"}
    assert named == {key.rpartition(".")[2] for key in files}


def test_the_docs_have_every_key_s_default() -> None:
    models = dict(keys_of_models(FILE_MODEL))
    for key, written in rows_of_docs():
        info = models[key]
        if info.is_required():
            assert written == "required", key
        elif info.default is None:
            assert written == "", key
        else:
            assert str(yaml.safe_load(written.strip("`"))) == str(default_as_written(info)), key


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
    assert set(kinds) == {f"bace.{name}" for name in EVENT_TYPES}
    assert set(kinds["bace.session.datapoints"]["required"]) >= {"session", "device", "datapoints"}
    for of_summary in ("bace.session.ended", "bace.session.csv_ready"):
        assert "summary" in kinds[of_summary]["required"]
    assert set(schema["$defs"]) == {"SessionView", "DeviceView", "DatapointView", "Summary", "SeriesSummary"}
