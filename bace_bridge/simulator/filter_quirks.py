"""What a server makes of a filter that another one would honour."""

from collections.abc import Callable, Iterator, Mapping

from bace_bridge.simulator.answers import ApiError
from bace_bridge.simulator.filters import All, Compare, Condition, FilterRefused, Kind, has_bad_uuid
from bace_bridge.simulator.quirks import Quirks

_LARGEST_INT4 = 2**31 - 1
_RANGES = frozenset(("gt", "gte", "lt", "lte"))
_LISTS = frozenset(("in", "nin"))


def as_understood(condition: All, kinds: Mapping[str, Kind], quirks: Quirks) -> All:
    """The condition that a server with these quirks applies.

    Raises:
        FilterRefused: it does not support an operator.
        ApiError: its database breaks on a value.
    """
    if quirks.bad_uuid_500 and has_bad_uuid(condition, kinds):
        raise ApiError(500, "Database Exception: invalid input syntax for type uuid")
    for part in _comparisons(condition):
        if quirks.int4 and kinds[part.field] is Kind.INTEGER and (wide := _too_wide(part)) is not None:
            raise ApiError(500, f'Numeric value out of range: value "{wide}" is out of range for type integer')
        unsupported = (quirks.no_in_filter and part.operator in _LISTS) or (
            quirks.gte_unsupported and part.field == "updated_at" and part.operator in _RANGES
        )
        if unsupported:
            raise FilterRefused(f'"{part.field}" does not support operator "{part.operator}".')
    ignored: list[Callable[[Compare], bool]] = []
    if quirks.in_filter_ignored:
        ignored.append(lambda part: part.operator in _LISTS)
    if quirks.end_filter_ignored:
        ignored.append(lambda part: part.field == "end")
    if quirks.updated_filter_ignored:
        ignored.append(lambda part: part.field == "updated_at")
    kept = [one for one in condition.parts if not (isinstance(one, Compare) and any(test(one) for test in ignored))]
    return All(tuple(kept))


def _comparisons(condition: Condition) -> Iterator[Compare]:
    if isinstance(condition, Compare):
        yield condition
        return
    for part in condition.parts:
        yield from _comparisons(part)


def _too_wide(part: Compare) -> int | None:
    values = part.value if isinstance(part.value, tuple) else (part.value,)
    return next((value for value in values if isinstance(value, int) and abs(value) > _LARGEST_INT4), None)
