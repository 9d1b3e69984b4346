"""A request's query as Yii reads it: `filter[start][gte]=5&filter[or][0][end]=NULL`, `sort`, `page`, `per-page`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, TypeAlias
from urllib.parse import urlencode

Tree: TypeAlias = str | dict[str, "Tree"]
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_LEADING_DIGITS = re.compile(r"\s*[+-]?\d{1,18}")


def integer(written: str) -> int:
    """`(int)`: the leading digits, and 0 for anything else."""
    match = _LEADING_DIGITS.match(written)
    return int(match[0]) if match else 0


def nested(pairs: Iterable[tuple[str, str]], name: str) -> Tree | None:
    """The parameter `name` as PHP reads it: `a[b][]=1` is `{"b": {"0": "1"}}`; None: it is not there."""
    found: Tree | None = None
    for key, value in pairs:
        if key == name:
            found = value
        elif key.startswith(name + "["):
            # A list that follows a plain value replaces it: in PHP the last one wins, whatever its shape.
            found = tree = found if isinstance(found, dict) else {}
            *outer, leaf = _BRACKETS.findall(key[len(name) :]) or [""]
            for step in outer:
                # Empty brackets take the next free number, as `$array[] = ...` does.
                inner = tree.get(step or str(len(tree)))
                if not isinstance(inner, dict):
                    inner = tree[step or str(len(tree))] = {}
                tree = inner
            tree[leaf or str(len(tree))] = value
    return found


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


class Kind(Enum):
    INTEGER = "an integer"
    NUMBER = "a number"
    TEXT = "a string"
    UUID = "a valid UUID"
    FLAG = 'either "1" or "0"'


Scalar: TypeAlias = int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Compare:
    """`field operator value`; as in SQL, nothing but `eq NULL` is true of a NULL."""

    field: str
    operator: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class All:
    parts: tuple["Condition", ...] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple["Condition", ...] = ()


Condition: TypeAlias = Compare | All | AnyOf
# From a field to what reads it from a row: the rows are of several types.
Reader: TypeAlias = Callable[[str], Callable[[Any], Any]]


class FilterRefused(Exception):
    """The server answers 422 with this message."""


_OPPOSITE = {
    "eq": "neq", "neq": "eq", "gt": "lte", "lte": "gt", "lt": "gte", "gte": "lt",
    "in": "nin", "nin": "in", "like": "nlike", "nlike": "like",
}  # fmt: skip
_OPERATORS = frozenset(_OPPOSITE) - {"nlike"}
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_NUMBER = re.compile(r"\s*[+-]?\d*\.?\d+([eE][+-]?\d+)?\s*")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_FLAGS = {"1": True, "true": True, "0": False, "false": False}


def parse(tree: Tree | None, kinds: Mapping[str, Kind]) -> All:
    """The condition that a filter states.

    Raises:
        FilterRefused: it names an unknown attribute or operator, or has a value of the wrong type.
    """
    if tree is None:
        return All()
    if not isinstance(tree, dict):
        raise FilterRefused("The format of Filter is invalid.")
    parts: list[Condition] = []
    for name, inner in tree.items():
        if name in kinds:
            parts.extend(_on_attribute(name, inner, kinds[name]))
        elif name not in ("and", "or", "not"):
            raise FilterRefused(f'Unknown filter attribute "{name}"')
        elif not isinstance(inner, dict):
            raise FilterRefused(f'Operator "{name}" requires multiple operands.')
        elif name == "not":
            parts.append(negated(parse(inner, kinds)))
        else:
            operands = tuple(parse(one, kinds) for one in inner.values())
            parts.append(All(operands) if name == "and" else AnyOf(operands))
    # Flat, so that whoever looks for a comparison that always holds (an index, the bounds of time) sees it.
    return All(tuple(one for part in parts for one in (part.parts if isinstance(part, All) else (part,))))


def _on_attribute(name: str, tree: Tree, kind: Kind) -> Iterable[Compare]:
    if not isinstance(tree, dict):
        yield Compare(name, "eq", _value(name, tree, kind))
        return
    for operator, operand in tree.items():
        if operator not in _OPERATORS:
            raise FilterRefused(f'Condition for "{name}" should be either a value or valid operator specification.')
        if operator in ("in", "nin"):
            if not isinstance(operand, dict):
                raise FilterRefused(f'Operator "{operator}" requires multiple operands.')
            yield Compare(name, operator, tuple(_value(name, one, kind) for one in operand.values()))
        elif operator == "like" and isinstance(operand, str):
            yield Compare(name, operator, operand.lower())
        else:
            yield Compare(name, operator, _value(name, operand, kind))


def _value(name: str, written: Tree, kind: Kind) -> Scalar:
    if isinstance(written, str):
        if written == "NULL":  # Yii's own word for it, in capitals only
            return None
        if kind is Kind.INTEGER and _INTEGER.fullmatch(written):
            return int(written)
        if kind is Kind.NUMBER and _NUMBER.fullmatch(written):
            return float(written)
        if kind is Kind.FLAG and written in _FLAGS:
            return _FLAGS[written]
        if kind in (Kind.TEXT, Kind.UUID):
            return written
    raise FilterRefused(f"{name.replace('_', ' ').capitalize()} must be {kind.value}.")


def negated(condition: Condition) -> Condition:
    """Pushed down to the comparisons, so that NULL stays outside both a condition and its negation."""
    match condition:
        case Compare(field, operator, value):
            return Compare(field, _OPPOSITE[operator], value)
        case All(parts):
            return AnyOf(tuple(negated(part) for part in parts))
        case AnyOf(parts):
            return All(tuple(negated(part) for part in parts))


def is_uuid(written: str) -> bool:
    return _UUID.fullmatch(written) is not None


def comparisons(condition: Condition) -> Iterator[Compare]:
    """Each one in it, however deep."""
    if isinstance(condition, Compare):
        yield condition
        return
    for part in condition.parts:
        yield from comparisons(part)


def holds(condition: Condition, reader: Reader) -> Callable[[Any], bool]:
    """The condition as a test on rows."""
    if isinstance(condition, Compare):
        read, wanted = reader(condition.field), condition.value
        if wanted is None:
            is_null = {"eq": True, "neq": False}.get(condition.operator)
            return lambda row: is_null is not None and (read(row) is None) is is_null
        compare = _TESTS[condition.operator]
        return lambda row: (value := read(row)) is not None and compare(value, wanted)
    tests = tuple(holds(part, reader) for part in condition.parts)
    if len(tests) == 1:
        return tests[0]
    if isinstance(condition, All):
        return lambda row: all(test(row) for test in tests)
    return lambda row: any(test(row) for test in tests)


_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, wanted: bool(value == wanted),
    "neq": lambda value, wanted: bool(value != wanted),
    "gt": lambda value, wanted: bool(value > wanted),
    "gte": lambda value, wanted: bool(value >= wanted),
    "lt": lambda value, wanted: bool(value < wanted),
    "lte": lambda value, wanted: bool(value <= wanted),
    "in": lambda value, wanted: value in wanted,
    "nin": lambda value, wanted: value not in wanted,
    "like": lambda value, wanted: wanted in str(value).lower(),
    "nlike": lambda value, wanted: wanted not in str(value).lower(),
}


Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a condition says of one number at least; the bounds themselves are inside."""

    lower: float = -inf
    upper: float = inf


def bounds(condition: All, field: str) -> Bounds:
    lower, upper = -inf, inf
    for part in condition.parts:
        if isinstance(part, Compare) and part.field == field and isinstance(part.value, int | float):
            # One more row at an open bound does no harm: the condition itself is tested on each row afterwards.
            if part.operator in ("gt", "gte", "eq"):
                lower = max(lower, part.value)
            if part.operator in ("lt", "lte", "eq"):
                upper = min(upper, part.value)
    return Bounds(lower, upper)


@dataclass(frozen=True, slots=True)
class Order:
    field: str
    descending: bool = False


def order(pairs: Pairs, known: Iterable[str], default: Order) -> Order | None:
    """The first key that is known counts; a `sort` without one loses even the default order."""
    asked = last(pairs, "sort")
    if asked is None:
        return default
    fields = frozenset(known)
    for key in asked.split(","):
        name = key.strip()
        if name.removeprefix("-") in fields:
            return Order(name.removeprefix("-"), descending=name.startswith("-"))
    return None


def last(pairs: Pairs, name: str) -> str | None:
    """Of a repeated parameter PHP keeps the last."""
    return dict(pairs).get(name)


@dataclass(frozen=True, slots=True)
class PageRules:
    default: int
    maximum: int
    clamp: bool = True


@dataclass(frozen=True, slots=True)
class Page:
    total: int
    number: int
    per_page: int

    @property
    def count(self) -> int:
        # Rounded up in whole numbers.
        return -(-self.total // self.per_page)

    @property
    def rows(self) -> slice:
        return slice((self.number - 1) * self.per_page, self.number * self.per_page)

    @property
    def neighbours(self) -> Mapping[str, int]:
        """The pages that `_links` name; an empty collection has only `self`."""
        pages = {"self": self.number}
        if self.count:
            pages |= {"first": 1, "last": self.count}
        if self.number > 1:
            pages["prev"] = self.number - 1
        if self.number < self.count:
            pages["next"] = self.number + 1
        return pages


def page(pairs: Pairs, total: int, rules: PageRules) -> Page:
    asked_size = last(pairs, "per-page")
    size = rules.default if asked_size is None else integer(asked_size)
    per_page = max(1, min(size, rules.maximum))  # one item a page for 0, and for what is no number
    number = max(1, integer(last(pairs, "page") or "1"))
    if rules.clamp:  # `validatePage`, which Yii has switched on unless its user says otherwise
        number = max(1, min(number, -(-total // per_page)))
    return Page(total, number, per_page)
