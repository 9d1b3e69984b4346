"""The ways in which a BACE cloud may differ from its documentation, each one by its name."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bace_bridge.simulator.facts import DEFAULT_TOKEN_LIFETIME, RateLimit, Refresh, seconds
from bace_bridge.simulator.shelf import Lag


@dataclass(frozen=True, slots=True)
class Maintenance:
    """The last `lasts` seconds of each `every`, counted from the cloud's beginning: a client starts in peace."""

    lasts: float
    every: float

    @staticmethod
    def parse(written: str) -> "Maintenance":
        """`12s/60s`. Raises ValueError."""
        lasts, _slash, every = written.partition("/")
        found = Maintenance(seconds(lasts), seconds(every))
        if not 0 < found.lasts < found.every:
            raise ValueError("it must last less than the time after which it comes again")
        return found


@dataclass(frozen=True, slots=True)
class Quirks:
    tie_shuffle: bool = False
    filters_ignored: bool = False
    updated_filter_ignored: bool = False
    data_filters_ignored: bool = False
    sort_ignored: bool = False
    page_clamp: bool = True
    refresh: Refresh = Refresh.ROTATES
    rate_limit: RateLimit | None = None
    numbers_as_strings: bool = False
    booleans_as_ints: bool = False
    internal_links: bool = False
    per_page_max: int | None = None
    token_lifetime: float = DEFAULT_TOKEN_LIFETIME
    latency: float = 0.0
    error_every: int = 0
    forbidden: tuple[str, ...] = ()
    unknown_fields: bool = False
    redirects: bool = False
    csv_truncated: bool = False
    csv_cut: bool = False
    csv_short: bool = False
    series_truncated: bool = False
    no_interval_raw: bool = False
    long_by_day: float = 0.0
    bad_uuid_500: bool = False
    no_expand: bool = False
    no_date: bool = False
    broken_rows: tuple[str, ...] = ()
    header_limit: int = 0
    int4: bool = False
    gte_unsupported: bool = False
    no_in_filter: bool = False
    in_filter_ignored: bool = False
    end_filter_ignored: bool = False
    session_filter_ignored: bool = False
    unstable_order: bool = False
    object_items: bool = False
    decimals_as_strings: bool = False
    no_updated_at: bool = False
    bucket_start: bool = False
    duplicate_points: bool = False
    conflicting_points: bool = False
    duplicate_sessions: bool = False
    replica_lag: Lag | None = None
    stale_rows: Lag | None = None
    maintenance: Maintenance | None = None
    expires_in: tuple[Any, ...] = ()

    @staticmethod
    def parse(written: Iterable[str]) -> "Quirks":
        """`["tie-shuffle", "rate-limit 5/20s"]`; `=` serves in place of the space.

        Raises:
            ValueError: one is unknown or its argument is wrong; the message says what would be right.
        """
        quirks = Quirks()
        for one in written:
            # A shell takes `rate-limit=5/20s` without quotes, a YAML file reads better with the space.
            name, _, argument = re.sub(r"[\s=]+", " ", one.strip(), count=1).partition(" ")
            kind = _KINDS.get(name)
            if kind is None:
                raise ValueError(f"unknown quirk {name!r}; known are: {', '.join(_KINDS)}")
            if bool(argument) is not bool(kind.argument):
                wanted = f"write it as {name + ' ' + kind.argument!r}" if kind.argument else "it takes no argument"
                raise ValueError(f"quirk {name!r}: {wanted}")
            # Given the quirks of before, because some may be given again, and add up.
            try:
                changes = kind.change(argument, quirks) if callable(kind.change) else kind.change
            except ValueError as wrong:
                example = f"{name} {kind.argument}"
                raise ValueError(f"quirk {name!r}: {wrong}; write it such as {example!r}") from None
            quirks = replace(quirks, **changes)
        return quirks


@dataclass(frozen=True, slots=True)
class _Kind:
    says: str
    change: Mapping[str, Any] | Callable[[str, Quirks], Mapping[str, Any]]
    argument: str = ""


def describe() -> list[tuple[str, str]]:
    """Every quirk as it is written, with the one line that explains it."""
    return [(f"{name} {kind.argument}".rstrip(), kind.says) for name, kind in _KINDS.items()]


def _rate_limit(argument: str, _: Quirks) -> Mapping[str, Any]:
    calls, _slash, window = argument.partition("/")
    limit = RateLimit(_count(calls), seconds(window))
    if limit.window < 1:  # the headers speak of whole seconds, and a window of 0 of them would divide by zero
        raise ValueError("the window must be at least 1s")
    return {"rate_limit": limit}


def _count(argument: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", argument):
        raise ValueError(f"{argument!r} is not a whole number above 0")
    return int(argument)


def _broken_row(argument: str, before: Quirks) -> Mapping[str, Any]:
    if not re.fullmatch(r"[1-9]\d{0,8}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", argument):
        raise ValueError(f"{argument!r} is neither the id of a data session nor a number from 1 on")
    return {"broken_rows": (*before.broken_rows, argument.lower())}


def _expires_in(argument: str, _: Quirks) -> Mapping[str, Any]:
    # In a tuple, because None stands for "as it really is" and null is among what can be asked for.
    try:
        return {"expires_in": (json.loads(argument),)}
    except json.JSONDecodeError:
        return {"expires_in": (argument,)}


def _lifetime(argument: str, _: Quirks) -> Mapping[str, Any]:
    lifetime = seconds(argument)
    if lifetime < 1:
        raise ValueError("a token must live for at least 1s")
    return {"token_lifetime": lifetime}


_KINDS: Mapping[str, _Kind] = {
    "tie-shuffle": _Kind("rows with equal sort keys come in another order each time", {"tie_shuffle": True}),
    "filters-ignored": _Kind("data-session ignores every filter and answers 200", {"filters_ignored": True}),
    "updated-filter-ignored": _Kind("data-session ignores filter[updated_at]", {"updated_filter_ignored": True}),
    "data-filters-ignored": _Kind(
        "data-downsampled honours no filter but id_data_session", {"data_filters_ignored": True}
    ),
    "sort-ignored": _Kind("the order is always the default one", {"sort_ignored": True}),
    "page-clamp": _Kind("a page behind the last is the last one (the default)", {"page_clamp": True}),
    "no-page-clamp": _Kind("a page behind the last is empty", {"page_clamp": False}),
    "refresh-rotates": _Kind(
        "a refresh gives a new refresh token, the old one is refused (the default)",
        {"refresh": Refresh.ROTATES},
    ),
    "refresh-destroys": _Kind(
        "a refresh gives no new refresh token and the old one is refused", {"refresh": Refresh.DESTROYS}
    ),
    "refresh-both": _Kind("a refresh gives a new refresh token, the old one stays valid", {"refresh": Refresh.BOTH}),
    "refresh-same": _Kind(
        "a refresh gives no new refresh token, the old one stays valid for its 14 days",
        {"refresh": Refresh.SAME},
    ),
    "rate-limit": _Kind(
        "429 above so many calls in a time; every rejected call restarts the clock",
        _rate_limit,
        argument="5/20s",
    ),
    "numbers-as-strings": _Kind("every number in a row is a JSON string", {"numbers_as_strings": True}),
    "booleans-as-ints": _Kind("true and false are 1 and 0", {"booleans_as_ints": True}),
    "internal-links": _Kind("_links name http:// and a host of the cloud's inside", {"internal_links": True}),
    "per-page-max": _Kind(
        "no page has more rows than that",
        lambda argument, _: {"per_page_max": _count(argument)},
        argument="10",
    ),
    "token-lifetime": _Kind("access tokens expire after that time", _lifetime, argument="30s"),
    "latency": _Kind(
        "every answer takes that long", lambda argument, _: {"latency": seconds(argument)}, argument="200ms"
    ),
    "error-every": _Kind(
        "each API request of that number is a 500",
        lambda argument, _: {"error_every": _count(argument)},
        argument="7",
    ),
    "forbidden": _Kind(
        "401 there even with a fresh token; * stands for anything, may be given again",
        # A short path is one of the API's own: the token endpoint is not forbidden by mistake.
        lambda argument, before: {
            "forbidden": (*before.forbidden, argument if argument.startswith("/") else f"/api/v2/{argument}")
        },
        argument="/api/v2/group",
    ),
    "unknown-fields": _Kind("rows have unknown fields and expanded objects odd shapes", {"unknown_fields": True}),
    "redirects": _Kind("the API answers 302 to another origin", {"redirects": True}),
    "csv-truncated": _Kind("200, and a CSV that breaks off with an error sentence", {"csv_truncated": True}),
    "csv-cut": _Kind("the connection is cut in the middle of a CSV", {"csv_cut": True}),
    "csv-short": _Kind("200, and a CSV that ends in order after half of its lines", {"csv_short": True}),
    "series-truncated": _Kind(
        "more than 100 series in a request: the first 100 in place of a 422", {"series_truncated": True}
    ),
    "no-interval-raw": _Kind(
        "without an interval: raw samples, as in the documented example, not a row a day",
        {"no_interval_raw": True},
    ),
    "long-by-day": _Kind(
        "an interval that is longer comes as a row a day, not a row an hour",
        lambda argument, _: {"long_by_day": seconds(argument)},
        argument="30d",
    ),
    "bad-uuid-500": _Kind("a malformed UUID is a 500, as on PostgreSQL", {"bad_uuid_500": True}),
    "no-expand": _Kind("expand= is ignored", {"no_expand": True}),
    "no-date": _Kind("no Date header", {"no_date": True}),
    "broken-row": _Kind(
        "every answer with that data session is a 500: its id, or its number by start; may be given again",
        _broken_row,
        argument="3",
    ),
    "header-limit": _Kind(
        "an answer whose headers are larger, in bytes, is nginx's 502",
        lambda argument, _: {"header_limit": _count(argument)},
        argument="4096",
    ),
    "int4": _Kind("an integer above 2147483647 in a filter is a 500, as on PostgreSQL", {"int4": True}),
    "gte-unsupported": _Kind("filter[updated_at][gte] and the like are a 422", {"gte_unsupported": True}),
    "no-in-filter": _Kind("filter[...][in] is a 422", {"no_in_filter": True}),
    "in-filter-ignored": _Kind("filter[...][in] is ignored", {"in_filter_ignored": True}),
    "end-filter-ignored": _Kind("data-session ignores filter[end]", {"end_filter_ignored": True}),
    "session-filter-ignored": _Kind(
        "data-downsampled ignores filter[id_data_session]: the rows of all sessions", {"session_filter_ignored": True}
    ),
    "unstable-order": _Kind(
        "without a sort there is no order: each page is cut from another one", {"unstable_order": True}
    ),
    "object-items": _Kind("items is an object whose keys have gaps", {"object_items": True}),
    "decimals-as-strings": _Kind(
        'decimals and timestamp_seconds are strings with trailing zeros, such as "71.500000"',
        {"decimals_as_strings": True},
    ),
    "no-updated-at": _Kind("updated_at is null until the first update", {"no_updated_at": True}),
    "bucket-start": _Kind(
        "a bucket of one sample has the time at which it begins, as any other", {"bucket_start": True}
    ),
    "duplicate-points": _Kind("about each twentieth datapoint comes twice", {"duplicate_points": True}),
    "conflicting-points": _Kind(
        "about each twentieth datapoint comes again with other values", {"conflicting_points": True}
    ),
    "duplicate-sessions": _Kind(
        "about each second session is in its page twice, once with other facts", {"duplicate_sessions": True}
    ),
    "replica-lag": _Kind(
        "so many of the lists show everything as it was that long ago, but not a row by its id",
        lambda argument, _: {"replica_lag": Lag.parse(argument)},
        argument="5s 30%",
    ),
    "stale-rows": _Kind(
        "so many lists show sessions as they were that long ago, with the updated_at of now",
        lambda argument, _: {"stale_rows": Lag.parse(argument)},
        argument="5s 30%",
    ),
    "maintenance": _Kind(
        "for a time lists are empty and each session is a 404, again and again",
        lambda argument, _: {"maintenance": Maintenance.parse(argument)},
        argument="12s/60s",
    ),
    "expires-in": _Kind('expires_in of a token is this: null, false, "", never', _expires_in, argument="null"),
}
