"""Pydantic's findings in words for people. The value itself is never shown: it may be a secret."""

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bace_bridge.config.files import is_from_file
from bace_bridge.config.paths import Place, as_written, model_at, spell
from bace_bridge.config.values import FormerNames, closest
from bace_bridge.errors import Mistake

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
    context = error.get("ctx", {})
    if error["type"] == "mistake":
        return Mistake(spell(place), context["problem"], context["hint"])
    problem, hint = _WORDS.get(error["type"], ("is not valid here", ""))
    return Mistake(spell(place), problem.format(**context), hint)


def _unknown_key(place: Place, section: type[BaseModel]) -> Mistake:
    known = [*section.model_fields]
    known += [f"{key}_file" for key, info in section.model_fields.items() if is_from_file(info)]
    written, now_called = str(place[-1]), _former_names(section)
    if written in now_called:
        return Mistake(spell(place), f"is now called {now_called[written]}")
    close = closest(written, [*known, *now_called])
    hint = f"did you mean {now_called.get(close, close)}?" if close else f"known here: {', '.join(sorted(known))}"
    return Mistake(spell(place), "is not a key that bace-bridge knows", hint)


def _former_names(section: type[BaseModel]) -> dict[str, str]:
    """Each former name of a key, with the name that the key has now."""
    return {
        former: key
        for key, info in section.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, FormerNames)
        for former in mark.names
    }
