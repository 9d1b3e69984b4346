"""Loads the configuration: every mistake at once, in words. A value is never shown: it may be a secret."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bace_bridge.config import datatypes
from bace_bridge.config.document import read_document, substitute
from bace_bridge.config.files import (
    PIPE_PATIENCE,
    Place,
    as_written,
    file_key,
    inline_files,
    is_within,
    model_at,
    section_model,
    spell,
)
from bace_bridge.config.models import FILE_MODEL, Config
from bace_bridge.config.values import FormerNames, closest
from bace_bridge.errors import ConfigError, Mistake
from bace_bridge.sinks.kind import Entry
from bace_bridge.sinks.registry import KINDS

_WHOLE_NUMBER = ("must be a whole number", "")
_NUMBER = ("must be a number", "")
_BOOLEAN = ("must be true or false", "")
_LIST = ("must be a list", "begin each entry with - on a line of its own, or write [one, two]")
_SECTION = ("must be a section with keys of its own", "")
_WORDS = {
    "missing": ("is missing", ""),
    "string_type": ("must be text", "put it in quotes"),
    "bool_type": _BOOLEAN,
    "bool_parsing": _BOOLEAN,
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_parsing_size": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": ("must be a number, neither .inf nor .nan", ""),
    "greater_than_equal": ("must be at least {ge:g}", ""),
    "less_than_equal": ("must be at most {le}", ""),
    "literal_error": ("must be {expected}", ""),
    "tuple_type": _LIST,
    "list_type": _LIST,
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "dict_type": _SECTION,
    "path_type": ("must be the path of a file", ""),
    "invalid_key": ("has a key that is not text", "put the key in quotes"),
}


def in_words(error: ErrorDetails, model: type[BaseModel], raw: object) -> Mistake:
    """What is wrong with `raw`, which `model` refused."""
    place = as_written(tuple(step for step in error["loc"] if step != "[key]"), raw)
    if error["type"] == "extra_forbidden":
        return _unknown_key(place, model_at(model, place[:-1]))
    # pydantic's own words quote the value, and some of them name Python types: neither is for a person's screen.
    context = error.get("ctx", {})
    if error["type"] == "mistake":
        return Mistake(spell(place), context["problem"], context["hint"])
    problem, hint = _WORDS.get(error["type"], ("is not valid here", ""))
    if error["type"] == "string_type" and isinstance(error["input"], list | dict):
        hint = "a single one, not a list or a section"
    if error["type"] == "model_type":
        hint = f"its keys: {', '.join(sorted(model_at(model, place).model_fields))}"
    return Mistake(spell(place), problem.format(**context), hint)


def _unknown_key(place: Place, section: type[BaseModel]) -> Mistake:
    known = [*section.model_fields]
    known += [f"{key}_file" for key, info in section.model_fields.items() if file_key(info)]
    now_called = {
        former: key
        for key, info in section.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, FormerNames)
        for former in mark.names
    }
    written = str(place[-1])
    if written in now_called:
        return Mistake(spell(place), f"is now called {now_called[written]}")
    close = closest(written, [*known, *now_called])
    hint = f"did you mean {now_called.get(close, close)}?" if close else f"known here: {', '.join(sorted(known))}"
    return Mistake(spell(place), "is not a key that bace-bridge knows", hint)


_LOGIN = ("client_id", "client_secret", "username", "password")


def mistakes_between(raw: dict[Any, Any]) -> list[Mistake]:
    # Over what is written and not over the models: pydantic makes none while a single value is wrong, and a person
    # wants all mistakes at once.
    sinks: list[Entry] = []
    between: list[Mistake] = []
    for kind in KINDS:
        written = raw.get(kind.section)
        entries = enumerate(written) if isinstance(written, list) else ()
        of_kind = [(f"{kind.section}[{index}]", entry) for index, entry in entries if isinstance(entry, dict)]
        sinks += of_kind
        between += kind.mistakes_between(of_kind)
    found = [*_login(raw.get("cloud")), *_links(raw), *datatypes.mistakes_between(raw.get("datatypes")), *_names(sinks)]
    return [*found, *between]


def _login(cloud: Any) -> Iterator[Mistake]:
    if not isinstance(cloud, dict):
        return
    given = [key for key in _LOGIN if cloud.get(key) is not None]
    missing = [key for key in _LOGIN if key not in given]
    if cloud.get("access_token") is not None:
        if given:
            hint = "keep either the access token or the login"
            yield Mistake("cloud.access_token", f"cannot be combined with {', '.join(given)}", hint)
    elif missing:
        hint = "or set access_token instead of client_id, client_secret, username and password"
        yield from (Mistake(f"cloud.{key}", "is missing", hint) for key in missing)


def _links(raw: dict[Any, Any]) -> Iterator[Mistake]:
    csv, http = raw.get("csv"), raw.get("http")
    if isinstance(csv, dict) and csv.get("link_base") and isinstance(http, dict) and http.get("listen") == "":
        yield Mistake("csv.link_base", "no link would open: http.listen is off", "set http.listen, or remove this")


def _names(sinks: list[Entry]) -> Iterator[Mistake]:
    first: dict[str, str] = {}
    for path, sink in sinks:
        name = sink.get("name")
        if not isinstance(name, str):
            continue
        if name in first:
            hint = "names must be unique: progress is stored per name"
            yield Mistake(f"{path}.name", f"{name!r} is the name of {first[name]} as well", hint)
        first.setdefault(name, path)


def load(path: Path, env: Mapping[str, str], *, patience: float | None = PIPE_PATIENCE) -> Config:
    """Reads the configuration; nothing is contacted. `patience`: seconds that a pipe may take; None reads no pipe.

    Raises:
        ConfigError: The configuration is wrong. It holds every mistake, of all stages.
    """
    document, mistakes = read_document(path, patience=patience)
    # A pipe of the shell (`-c /dev/stdin`, `-c <(...)`) is in no folder: paths are then relative to the present one.
    folder = Path() if path.is_relative_to("/dev") or path.is_relative_to("/proc") else path.parent
    # Variables first, since a file's path may hold one; what a file or a variable holds is not substituted again.
    raw, unset = substitute(document, env)
    inlined = inline_files(raw, FILE_MODEL, folder)
    causes = [*unset, *(one for one in inlined.mistakes if not any(is_within(one.path, other.path) for other in unset))]
    mistakes += causes
    config, invalid = validate(raw)
    for found in (*mistakes_between(raw), *invalid):
        for value_path, file_path in inlined.renamed.items():
            if is_within(found.path, value_path):
                found.path = file_path + found.path.removeprefix(value_path)
                break
        # A value that could not be had is wrong in other ways as well: only the cause is reported.
        if not any(is_within(found.path, cause.path) for cause in causes):
            mistakes.append(found)
    if mistakes or config is None:
        raise ConfigError(mistakes)
    return config


def validate(raw: dict[Any, Any]) -> tuple[Config | None, list[Mistake]]:
    """The configuration of plain values, or what is wrong with each of them."""
    try:
        return FILE_MODEL.model_validate(raw), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, [in_words(one, FILE_MODEL, raw) for one in details]


class Excerpt:
    """The file for a command that needs a few of its keys, such as the store's: what else is wrong does not stop it.

    Raises ConfigError where the file cannot be read, or is no YAML.
    """

    def __init__(self, path: Path, env: Mapping[str, str]) -> None:
        self._document, self._twice = read_document(path)
        self._env = env

    def config(self, *keys: str) -> Config:
        """The configuration as if there were only these keys, such as `store.url`, or whole sections.

        The others have their defaults.

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
        """The names of all sinks, as far as they can be read."""
        names: list[str] = []
        for kind in KINDS:
            entries = self._document.get(kind.section)
            for entry in entries if isinstance(entries, list) else ():
                name, mistakes = substitute(entry.get("name") if isinstance(entry, dict) else None, self._env)
                if isinstance(name, str) and not mistakes:
                    names.append(name)
        return names

    def _only(self, keys: Collection[str]) -> dict[Any, Any]:
        raw: dict[Any, Any] = {"cloud": {}}  # the only section that must be there
        for section, value in self._document.items():
            field = FILE_MODEL.model_fields.get(section) if isinstance(section, str) else None
            wanted = {key.partition(".")[2] for key in keys if key.startswith(f"{section}.")}
            model = field and section_model(field.annotation)
            if model is None or section in keys:
                raw[section] = value
            elif wanted and isinstance(value, dict):
                # An unknown key stays: it may be the wanted one, misspelt, and that must not go unnoticed.
                known = {*model.model_fields, *(f"{key}_file" for key in model.model_fields)} - wanted
                raw[section] = {key: one for key, one in value.items() if key not in known}
            elif wanted and value is not None:
                raw[section] = value
        return raw
