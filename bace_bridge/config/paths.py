"""Where in the configuration something is."""

from typing import Any, get_args

from pydantic import BaseModel

Place = tuple[str | int, ...]


def spell(place: Place) -> str:
    """`("webhooks", 0, "url")` as `webhooks[0].url`; a datatype's number is a key, not an index."""
    spelled = ""
    for step in place:
        if isinstance(step, int) and spelled != "datatypes":
            spelled += f"[{step}]"
        else:
            spelled += f".{step}" if spelled else str(step)
    return spelled


def is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith((f"{outer}.", f"{outer}["))


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, once or many times."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := section_model(inner))), None)


def model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """The section that `place` is in or names."""
    for step in place:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        inner = section_model(field.annotation) if field else None
        model = inner or model
    return model


def as_written(place: Place, raw: Any) -> Place:
    """`place`, but no deeper than `raw` goes: a single secret in the place of a list has no index."""
    for depth, step in enumerate(place):
        if not isinstance(raw, dict | list):
            return place[:depth]
        if isinstance(raw, dict):
            raw = raw.get(step)
        elif isinstance(step, int) and step < len(raw):
            raw = raw[step]
    return place
