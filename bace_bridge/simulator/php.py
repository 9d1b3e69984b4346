import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias
from urllib.parse import urlencode

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


def built_query(pairs: Iterable[tuple[str, str]]) -> str:
    """`http_build_query` of the parameters as PHP reads them: `a[]=1` comes back as `a%5B0%5D=1`."""
    kept = [*pairs]
    names = dict.fromkeys(name.partition("[")[0] for name, _ in kept)
    trees = ((name, nested(kept, name)) for name in names)
    return urlencode([leaf for name, tree in trees if tree is not None for leaf in _leaves(name, tree)])


def _leaves(name: str, tree: Tree) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield name, tree
        return
    for step, inner in tree.items():
        yield from _leaves(f"{name}[{step}]", inner)
