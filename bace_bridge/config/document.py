"""Reading the YAML document: plain values with their paths, `${VAR}` substituted, every mistake with its place."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bace_bridge.config.files import PIPE_PATIENCE, Place, TextProblem, half_character, read_text, spell
from bace_bridge.errors import ConfigError, Mistake

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


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_MOST_BYTES = 2**20
_MOST_NODES = 20_000
"""Keys and values with every alias (*) written out: a few lines of aliases can mean millions."""

_LONGEST_NUMBER = 100
"""Characters. Python takes long over a number of many digits, and none of them is a float."""

_QUOTE_IT = "a text that holds ': ' or ' #', or begins with * & ! % @ { [ or a backquote, must be in quotes"
_SYNTAX = {
    "expected <block end>, but found '<scalar>'": ("text follows a closing quote", "write ' twice within '...'"),
    "expected <block end>": ("is indented unlike the lines above", "keys of one section begin in the same column"),
    "mapping values are not allowed here": (
        "a ':' is not expected here",
        "check the indentation; write 'key: value' with a space, and a text that holds ': ' in quotes",
    ),
    "expected ',' or": ("a [ or { before this is not closed, or a comma is missing", _QUOTE_IT),
    "found unexpected end of stream": ("a quote is not closed", ""),
}
"""PyYAML's commonest problems, by their beginnings, in words for people who do not know YAML's grammar."""
_TAB = re.compile(r" *\t")


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values only: without dates (`start_from` reads its own), and with each mistake in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN_TAGS]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        self._composed = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._composed += 1
        if self._composed > _MOST_NODES:
            raise _too_many_values(self.get_mark())
        node = super().compose_node(parent, index)
        if isinstance(node, ScalarNode):
            # JSON, which is YAML, may write a character in two halves.
            node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            if node.tag != "tag:yaml.org,2002:str" and len(node.value) > _LONGEST_NUMBER:
                problem = f"a number of more than {_LONGEST_NUMBER} digits"
                raise _at(node, problem, "put it in quotes where it is meant as text")
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, ArithmeticError):  # PyYAML lets its converters' own errors through
            problem = f"a value that is no {node.tag.rpartition(':')[2]}"
            raise _at(node, problem, "put it in quotes where it is meant as text") from None


def read_document(path: Path, *, patience: float | None = PIPE_PATIENCE) -> tuple[dict[Any, Any], list[Mistake]]:
    """The file's values, and what is wrong with some of them. For `patience` see `read_text`.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds no sections.
    """
    name = str(path)
    try:
        text = read_text(path, most=_MOST_BYTES, patience=patience)
    except FileNotFoundError:
        hint = "copy bridge.example.yaml, fill it in, and name it with -c FILE"
        raise ConfigError([Mistake(name, "does not exist", hint)]) from None
    except OSError as error:
        raise ConfigError([Mistake(name, f"cannot be read: {error.strerror}")]) from None
    except TextProblem as problem:
        raise ConfigError([Mistake(name, problem.problem, problem.hint)]) from None
    document, mistakes = parse_document(text, name)
    if document is None:
        raise ConfigError([Mistake(name, "is empty", "start from a copy of bridge.example.yaml")])
    if not isinstance(document, dict):
        raise ConfigError([Mistake(name, "must hold sections such as cloud: and mqtt:")])
    return document, mistakes


def parse_document(text: str, name: str = "") -> tuple[Any, list[Mistake]]:
    """What `read_text` has read, as values, and what is wrong with some of them: keys given twice, half characters.

    Raises:
        ConfigError: It is no YAML. Its one mistake has the path `name`.
    """
    loader = _PlainLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        _refuse_what_is_no_plain_data(node)
        mistakes = list(_mistakes_in(node, ()))
        return loader.construct_document(node), mistakes
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_mistake(name, text, error)]) from None
    except yaml.YAMLError:
        raise ConfigError([Mistake(name, "cannot be read as YAML", _QUOTE_IT)]) from None
    except RecursionError:
        raise ConfigError([Mistake(name, "is nested too deeply")]) from None
    finally:
        loader.dispose()


def _at(node: Node, problem: str, hint: str | None = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark, note=hint)


def _too_many_values(mark: yaml.Mark) -> yaml.MarkedYAMLError:
    problem = f"with its aliases (*) it holds more than {_MOST_NODES} values"
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark, note="write out what the aliases stand for")


def _syntax_mistake(name: str, text: str, error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Mistake(name, error.problem or "cannot be read as YAML", error.note or _QUOTE_IT)
    line = mark.index - mark.column
    if error.note is None and (tab := _TAB.match(text, line) or _TAB.match(text, mark.index)):
        problem = f"line {mark.line + 1}, column {tab.end() - line}: a tab; indent with spaces"
        return Mistake(name, problem, "YAML takes no tabs here")
    # What YAML quotes may be a piece of a password; single characters and its own tokens (<block end>)
    # are not.
    problem = re.sub(r"(['\"])(?!<)(?:(?!\1).){2,}\1", "…", error.problem or "cannot be read as YAML")
    hint = error.note or _QUOTE_IT
    for beginning, words in reversed(_SYNTAX.items()):
        if (error.problem or "").startswith(beginning):
            problem, hint = words
    place = f"line {mark.line + 1}, column {mark.column + 1}: "
    return Mistake(name, place + problem.replace("\n", " "), hint)


def _refuse_what_is_no_plain_data(root: Node) -> None:
    """Raises at tags of programming languages, at an alias in what it refers to, and at too many nodes."""
    # An alias is the very node that it refers to: below itself it makes a tree without end, beside itself one that
    # doubles with each line. So the walk is bounded, and does not recurse.
    left: list[tuple[Node, tuple[int, ...]]] = [(root, ())]
    for _ in range(_MOST_NODES):
        if not left:
            return
        node, above = left.pop()
        if node.tag not in _PLAIN_TAGS:
            raise _at(node, "a tag (!) is not allowed: write a plain value")
        if id(node) in above:
            raise _at(node, "an alias (*) refers to itself")
        above = (*above, id(node))
        if isinstance(node, SequenceNode):
            left += [(item, above) for item in reversed(node.value)]
        elif isinstance(node, MappingNode):
            left += [(item, above) for pair in reversed(node.value) for item in reversed(pair)]
    raise _too_many_values(root.start_mark)


def _mistakes_in(node: Node, place: Place) -> Iterator[Mistake]:
    if isinstance(node, ScalarNode) and (half := half_character(node.value)):
        node.value = node.value.encode("utf-8", "replace").decode()
        problem = f"holds the character U+{ord(half):04X}, which is half a character"
        yield Mistake(spell(place), f"{problem} (line {node.start_mark.line + 1})", "remove it")
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield from _mistakes_in(item, (*place, index))
    elif isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            line = key.start_mark.line + 1
            # The last one would win in silence; a merge key (<<) may be there many times.
            if name in first and name != "<<":
                problem = f"is given twice, on lines {first[name]} and {line}"
                yield Mistake(spell((*place, name)), problem, "keep one of the two")
            first.setdefault(name, line)
            yield from _mistakes_in(key, (*place, name))
            yield from _mistakes_in(value, (*place, name))
