"""Reading the YAML file: plain values, and every mistake of its form with its place."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bace_bridge.config.paths import Place, spell
from bace_bridge.errors import ConfigError, Mistake

_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_STANDARD_TAG = re.compile(r"tag:yaml\.org,2002:[a-z]+")
_MOST_BYTES = 2**20
_MOST_NODES = 20_000
"""Keys and values with every alias (*) written out: a few lines of aliases can mean millions."""

_QUOTE_IT = "a text that holds ': ' or ' #', or begins with * & ! % @ { [ or a backquote, must be in quotes"


class _PlainLoader(yaml.SafeLoader):
    """YAML without its dates: `start_from` reads its own, and nothing else is one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }


def read_document(path: Path) -> tuple[dict[Any, Any], list[Mistake]]:
    """The file's values, and the keys that are given twice in it.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or holds no sections.
    """
    loader = _PlainLoader(_read(path))
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError([Mistake(str(path), "is empty", "start from a copy of bridge.example.yaml")])
        _refuse_what_is_no_plain_data(node)
        if not isinstance(node, MappingNode):
            raise ConfigError([Mistake(str(path), "must hold sections such as cloud: and mqtt:")])
        twice = list(_keys_given_twice(node, ()))
        return loader.construct_document(node), twice
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_mistake(path, error)]) from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError([Mistake(str(path), "cannot be read as YAML", _QUOTE_IT)]) from None
    except RecursionError:
        raise ConfigError([Mistake(str(path), "is nested too deeply")]) from None
    finally:
        loader.dispose()


def _read(path: Path) -> str:
    name = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        hint = "copy bridge.example.yaml, fill it in, and name it with -c FILE"
        raise ConfigError([Mistake(name, "does not exist", hint)]) from None
    except OSError as error:
        raise ConfigError([Mistake(name, f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Mistake(name, f"is not UTF-8 text (byte {error.start + 1})")]) from None
    if len(content) > _MOST_BYTES:
        raise ConfigError([Mistake(name, "is larger than 1MiB, which no configuration is")])
    if unprintable := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, unprintable.start()) + 1
        raise ConfigError([Mistake(name, f"line {line}: holds a control character")])
    return text


def _syntax_mistake(path: Path, error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    # What YAML quotes may be a piece of a password; single characters and its own tokens (<block end>)
    # are not.
    problem = re.sub(r"(['\"])(?!<)(?:(?!\1).){2,}\1", "…", error.problem or "cannot be read as YAML")
    return Mistake(str(path), place + problem.replace("\n", " "), error.note or _QUOTE_IT)


def _refuse_what_is_no_plain_data(root: Node) -> None:
    """Raises at tags of programming languages, at an alias in what it refers to, and at too many nodes."""
    left: list[tuple[Node, tuple[int, ...]]] = [(root, ())]
    for _ in range(_MOST_NODES):
        if not left:
            return
        node, above = left.pop()
        if not _STANDARD_TAG.fullmatch(node.tag):
            raise yaml.MarkedYAMLError(
                problem="a tag (!) asks for what is no plain value", problem_mark=node.start_mark
            )
        if id(node) in above:
            raise yaml.MarkedYAMLError(problem="an alias (*) refers to what it is in", problem_mark=node.start_mark)
        above = (*above, id(node))
        if isinstance(node, SequenceNode):
            left += [(item, above) for item in reversed(node.value)]
        elif isinstance(node, MappingNode):
            left += [(item, above) for pair in reversed(node.value) for item in reversed(pair)]
    raise yaml.MarkedYAMLError(
        problem=f"with its aliases (*) it holds more than {_MOST_NODES} values",
        problem_mark=root.start_mark,
        note="write out what the aliases stand for",
    )


def _keys_given_twice(node: Node, place: Place) -> Iterator[Mistake]:
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield from _keys_given_twice(item, (*place, index))
    elif isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            line = key.start_mark.line + 1
            if name in first and name != "<<":
                problem = f"is given twice, on lines {first[name]} and {line}"
                yield Mistake(spell((*place, name)), problem, "keep one of the two")
            first.setdefault(name, line)
            yield from _keys_given_twice(value, (*place, name))
