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
from bace_bridge.config.text import PIPE_PATIENCE
from bace_bridge.config.variables import substitute
from bace_bridge.config.wording import in_words
from bace_bridge.errors import ConfigError, Mistake


def load(path: Path, env: Mapping[str, str], *, patience: float | None = PIPE_PATIENCE) -> Config:
    """Reads the configuration; nothing is contacted. `patience`: seconds that a pipe may take; None reads no pipe.

    Raises:
        ConfigError: The configuration is wrong. It holds every mistake, of all stages.
    """
    document, mistakes = read_document(path, patience=patience)
    raw, unset = substitute(document, env)
    inlined = inline_files(raw, Config, _folder(path))
    causes = [*unset, *(one for one in inlined.mistakes if not any(is_within(one.path, other.path) for other in unset))]
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


def _folder(path: Path) -> Path:
    """What relative paths are relative to; a pipe of the shell (`-c /dev/stdin`, `-c <(...)`) is in no folder."""
    return Path() if path.is_relative_to("/dev") or path.is_relative_to("/proc") else path.parent


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
