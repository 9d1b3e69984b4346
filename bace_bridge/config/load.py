"""From the YAML file to a Config, or to every mistake in it at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bace_bridge.config.document import read_document
from bace_bridge.config.files import inline_files
from bace_bridge.config.models import Config
from bace_bridge.config.paths import is_within
from bace_bridge.config.rules import mistakes_between
from bace_bridge.config.variables import substitute
from bace_bridge.config.wording import in_words
from bace_bridge.errors import ConfigError, Mistake


def load(path: Path, env: Mapping[str, str]) -> Config:
    """Reads the configuration; nothing is contacted.

    Raises:
        ConfigError: The configuration is wrong. It holds every mistake, of all stages.
    """
    document, mistakes = read_document(path)
    raw, unset = substitute(document, env)
    inlined = inline_files(raw, Config, path.parent)
    causes = [*unset, *inlined.mistakes]
    mistakes += causes
    config, invalid = validate(raw)
    for found in (*mistakes_between(raw), *invalid):
        found.path = _renamed(found.path, inlined.renamed)
        # A value that could not be had is wrong in other ways as well: only the cause is told.
        if not any(is_within(found.path, cause.path) for cause in causes):
            mistakes.append(found)
    if mistakes or config is None:
        raise ConfigError(mistakes)
    return config


def validate(raw: dict[Any, Any]) -> tuple[Config | None, list[Mistake]]:
    """The configuration of plain values, or what is wrong with each of them."""
    try:
        return Config.model_validate(raw), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        return None, [in_words(one, Config, raw) for one in details]


def _renamed(path: str, renamed: Mapping[str, str]) -> str:
    for value_path, file_path in renamed.items():
        if is_within(path, value_path):
            return file_path + path.removeprefix(value_path)
    return path
