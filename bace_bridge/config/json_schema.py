"""The JSON Schema of the YAML file, for editors."""

from typing import Any, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from bace_bridge.config.files import file_key, section_model
from bace_bridge.config.models import FILE_MODEL
from bace_bridge.config.values import StartFrom, format_duration, format_size, parse_duration, parse_size

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = r"^\$\{.*\}$"


def config_schema() -> dict[str, Any]:
    """What may be written in the file: durations as text, `<secret>_file` keys, `${VAR}` for numbers."""
    return {"$schema": _DIALECT, "title": "bace-bridge configuration", **_section_schema(FILE_MODEL)}


def default_as_written(info: FieldInfo) -> Any:
    """A field's default in the form that a person would write into the file."""
    # The model holds seconds and bytes; an editor should offer 10s and 1GiB, as the documentation does.
    default = info.get_default()
    if isinstance(default, StartFrom):
        return default.kind
    if any(isinstance(mark, BeforeValidator) and mark.func is parse_duration for mark in info.metadata):
        return format_duration(default)
    if any(isinstance(mark, BeforeValidator) and mark.func is parse_size for mark in info.metadata):
        return format_size(default)
    return list(default) if isinstance(default, tuple) else default


def _section_schema(model: type[BaseModel]) -> dict[str, Any]:
    generated = model.model_json_schema()
    properties: dict[str, Any] = {}
    required: list[str] = []
    either: list[dict[str, Any]] = []
    for key, info in model.model_fields.items():
        properties[key] = _field_schema(info, generated["properties"][key])
        if file_key(info):
            about = f"The file that holds {key}, relative to this file's folder"
            properties[f"{key}_file"] = {"type": "string", "description": about}
        if info.is_required() and file_key(info):
            either.append({"oneOf": [{"required": [key]}, {"required": [f"{key}_file"]}]})
        elif info.is_required():
            required.append(key)
    schema = {"type": "object", "additionalProperties": False, "properties": properties, "required": required}
    return {**schema, "allOf": either} if either else schema


def _field_schema(info: FieldInfo, generated: dict[str, Any]) -> dict[str, Any]:
    inner = section_model(info.annotation)
    if inner is None:
        schema = {key: value for key, value in generated.items() if key != "title"}
        if schema.get("type") in ("integer", "boolean"):  # or a variable: an editor sees `${PORT}`, which is text
            limits = {key: schema.pop(key) for key in ("type", "enum", "minimum", "maximum") if key in schema}
            schema["anyOf"] = [limits, {"type": "string", "pattern": _VARIABLE}]
        if not info.is_required():
            schema["default"] = default_as_written(info)
        return schema
    section = _section_schema(inner)
    # Null beside the type: in YAML a section whose keys are all commented out is null.
    if info.annotation is inner:
        section["type"] = ["object", "null"]
        return {"description": info.description, **section}
    if get_origin(info.annotation) is dict:
        return {"description": info.description, "type": ["object", "null"], "additionalProperties": section}
    return {"description": info.description, "type": ["array", "null"], "items": section}
