"""The keys of the configuration that a command needs, whatever is wrong with the rest."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bace_bridge.config.document import read_document
from bace_bridge.config.load import validate
from bace_bridge.config.models import Config
from bace_bridge.config.paths import is_within, section_model
from bace_bridge.config.variables import substitute
from bace_bridge.errors import ConfigError

_SINKS = ("mqtt", "webhooks")


class Excerpt:
    """Raises ConfigError where the file cannot be read, or is no YAML."""

    def __init__(self, path: Path, env: Mapping[str, str]) -> None:
        self._document, self._twice = read_document(path)
        self._env = env

    def config(self, *keys: str) -> Config:
        """The configuration as if there were only these keys, such as `store.url`; the others have their defaults.

        Raises:
            ConfigError: One of them is wrong, or a key is unknown that may be one of them misspelt: a section, or one
                in their sections.
        """
        raw, mistakes = substitute(self._only(keys), self._env)
        mistakes += [one for one in self._twice if any(is_within(key, one.path) for key in keys)]
        causes = [one.path for one in mistakes]
        config, invalid = validate(raw)
        mistakes += [one for one in invalid if not any(is_within(one.path, cause) for cause in causes)]
        if mistakes or config is None:
            raise ConfigError(mistakes)
        return config

    def sinks(self) -> list[str]:
        """The names of the brokers and webhooks, as far as they can be read."""
        return [name for section in _SINKS for name in self._names(self._document.get(section))]

    def _names(self, entries: Any) -> Iterator[str]:
        for entry in entries if isinstance(entries, list) else ():
            name, mistakes = substitute(entry.get("name") if isinstance(entry, dict) else None, self._env)
            if isinstance(name, str) and not mistakes:
                yield name

    def _only(self, keys: Collection[str]) -> dict[Any, Any]:
        raw: dict[Any, Any] = {"cloud": {}}  # the only section that must be there
        for section, value in self._document.items():
            field = Config.model_fields.get(section) if isinstance(section, str) else None
            wanted = {key.partition(".")[2] for key in keys if key.startswith(f"{section}.")}
            model = field and section_model(field.annotation)
            if model is None:
                raw[section] = value
            elif wanted and isinstance(value, dict):
                raw[section] = {key: one for key, one in value.items() if key in wanted or not _is_known(key, model)}
            elif wanted and value is not None:
                raw[section] = value
        return raw


def _is_known(key: Any, model: type[BaseModel]) -> bool:
    return isinstance(key, str) and {key, key.removesuffix("_file")} & model.model_fields.keys() != set()
