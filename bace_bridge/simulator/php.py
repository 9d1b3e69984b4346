import re
from collections.abc import Iterable
from typing import TypeAlias

Tree: TypeAlias = str | dict[str, "Tree"]
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_INTEGER = re.compile(r"\s*[+-]?\d{1,18}")


def integer(written: str) -> int:
    """`(int)`: the leading digits, and 0 for anything else."""
    match = _INTEGER.match(written)
    return int(match[0]) if match else 0


def nested(pairs: Iterable[tuple[str, str]], name: str) -> Tree | None:
    """The parameter `name` as PHP reads it: `a[b][]=1` is `{"b": {"0": "1"}}`; None: it is not there."""
    found: Tree | None = None
    for key, value in pairs:
        if key == name:
            found = value
        elif key.startswith(name + "["):
            steps = _BRACKETS.findall(key[len(name) :])
            if not isinstance(found, dict):
                found = {}
            _place(found, steps, value)
    return found


def _place(tree: dict[str, Tree], steps: list[str], value: str) -> None:
    *outer, last = [*steps] or [""]
    for step in outer:
        inner = tree.get(step or str(len(tree)))
        if not isinstance(inner, dict):
            inner = {}
            tree[step or str(len(tree))] = inner
        tree = inner
    tree[last or str(len(tree))] = value
