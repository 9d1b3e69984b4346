"""Order, bounds and pages as Yii's REST collections have them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from bace_bridge.simulator import filters
from bace_bridge.simulator.filters import All, Compare

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a condition says of one number at least; the bounds themselves are inside."""

    lower: float = -inf
    upper: float = inf

    @property
    def narrow(self) -> bool:
        return self.lower > -inf or self.upper < inf


def bounds(condition: All, field: str) -> Bounds:
    lower, upper = -inf, inf
    for part in condition.parts:
        if isinstance(part, Compare) and part.field == field and isinstance(part.value, int | float):
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
    found = None
    for key, value in pairs:
        if key == name:
            found = value
    return found


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
        return -(-self.total // self.per_page)

    @property
    def rows(self) -> slice:
        return slice((self.number - 1) * self.per_page, self.number * self.per_page)

    @property
    def meta(self) -> Mapping[str, int]:
        return {
            "totalCount": self.total,
            "pageCount": self.count,
            "currentPage": self.number,
            "perPage": self.per_page,
        }

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
    size = rules.default if asked_size is None else filters.integer(asked_size)
    per_page = max(1, min(size, rules.maximum))
    number = max(1, filters.integer(last(pairs, "page") or "1"))
    if rules.clamp:
        number = max(1, min(number, -(-total // per_page)))
    return Page(total, number, per_page)
