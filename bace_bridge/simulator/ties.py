from collections.abc import Callable, Sequence
from itertools import groupby
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


def shuffled(rows: Sequence[T], key: Callable[[T], Any], random: Random) -> list[T]:
    """Sorted rows, with those of equal key in any order: what a database without a tie-breaker gives."""
    found: list[T] = []
    for _, tied in groupby(rows, key):
        group = list(tied)
        random.shuffle(group)
        found.extend(group)
    return found
