"""`${VAR}` and `${VAR:-default}` in the configuration's strings."""

import re
from collections.abc import Mapping
from typing import Any

from bace_bridge.config.paths import Place, spell
from bace_bridge.config.text import half_character
from bace_bridge.errors import Mistake

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{")
_UNCLOSED = re.compile(r"\$\$\{|\$\{()()")
"""Behind the last brace: the other one would search for a brace from each `${A:-` on."""


def substitute(value: Any, env: Mapping[str, str], place: Place = ()) -> tuple[Any, list[Mistake]]:
    """A copy of `value` with the variables put in; `$${` stands for a plain `${`.

    What is put in is not read again. Where a variable is not set, the string stays as it is.
    """
    if isinstance(value, str):
        return _substitute_text(value, env, spell(place))
    mistakes: list[Mistake] = []
    if isinstance(value, dict):
        copy: Any = {}
        for key, item in value.items():
            copy[key], found = substitute(item, env, (*place, key if isinstance(key, int) else str(key)))
            mistakes += found
        return copy, mistakes
    if isinstance(value, list):
        copy = []
        for index, item in enumerate(value):
            done, found = substitute(item, env, (*place, index))
            copy.append(done)
            mistakes += found
        return copy, mistakes
    return value, mistakes


def _substitute_text(text: str, env: Mapping[str, str], path: str) -> tuple[str, list[Mistake]]:
    mistakes: dict[str, Mistake] = {}

    def wrong(found: re.Match[str], problem: str, hint: str = "") -> str:
        mistakes.setdefault(problem, Mistake(path, problem, hint))
        return found.group()

    def put_in(found: re.Match[str]) -> str:
        name, default = found.group(1), found.group(2)
        if found.group() == "$${":
            return "${"
        if not name:
            return wrong(found, "holds ${ without a variable", "write ${NAME}, or $${ for a plain ${")
        # A file of variables may have the line ends of Windows, and a secret of Kubernetes one at its end.
        value = None if name not in env else env[name].removeprefix("\ufeff").rstrip("\r\n")
        if value is not None and half_character(value):
            return wrong(found, f"the environment variable {name} is not UTF-8 text")
        if default is not None:
            return value or default
        if value is None:
            hint = f"set it, or write ${{{name}:-default}}"
            return wrong(found, f"the environment variable {name} is not set", hint)
        return value

    closed = text.rfind("}") + 1
    done = _VARIABLE.sub(put_in, text[:closed]) + _UNCLOSED.sub(put_in, text[closed:])
    return (text, list(mistakes.values())) if mistakes else (done, [])
