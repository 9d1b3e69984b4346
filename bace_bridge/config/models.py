"""The configuration as the rest of bace-bridge sees it, and what is allowed in it but worth a second thought."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, create_model, field_validator

from bace_bridge.config.datatypes import KNOWN_DATATYPES, DatatypeConfig, over_the_known
from bace_bridge.config.sections import (
    SQLITE,
    Section,
    cloud_url,
    is_loopback,
    is_private,
    link_url,
    listen_address,
    split_url,
    store_url,
)
from bace_bridge.config.values import (
    Duration,
    FormerNames,
    OptionalSecret,
    Size,
    Start,
    StartFrom,
    Text,
    WholeNumber,
    format_size,
    mistake,
)
from bace_bridge.events.types import EVENT_TYPES, is_sendable, matches
from bace_bridge.sinks.kind import SinkConfig
from bace_bridge.sinks.registry import KINDS

LEAST_STORE = 16 * 2**20
"""Bytes: below this the WAL alone would fill it."""

LARGEST_STORE = 256 * 2**40
"""Bytes: SQLite's own limit."""


def _sendable(token: SecretStr | None) -> SecretStr | None:
    if token is not None and not is_sendable(token.get_secret_value()):
        raise mistake("is not a token that a header can carry", "visible ASCII characters, without blanks")
    return token


class CloudConfig(Section):
    """The BACE cloud and the login: an access token, or the four others."""

    url: Annotated[str, AfterValidator(cloud_url)] = Field(
        default="https://dashboard.bace-iot.com", description="The dashboard's address"
    )
    client_id: Text | None = Field(default=None, description="OAuth client id")
    client_secret: OptionalSecret = Field(default=None, description="OAuth client secret")
    username: Text | None = Field(default=None, description="The account's e-mail address")
    password: OptionalSecret = Field(default=None, description="The account's password")
    access_token: Annotated[OptionalSecret, AfterValidator(_sendable)] = Field(
        default=None, description="A token, instead of the four above"
    )
    groups: tuple[Text, ...] = Field(
        default=(), description="Only these devices, by id_group or by label; empty: all that the account can see"
    )
    requests_per_minute: WholeNumber = Field(default=120, ge=1, description="Most requests to the cloud per minute")
    timeout: Duration = Field(default=30.0, description="Response timeout")


class WatchConfig(Section):
    session_interval: Duration = Field(default=10.0, description="How often the session list is polled")
    datapoint_interval: Duration = Field(
        default=15.0, description="How often each active session's datapoints are fetched"
    )
    recheck_interval: Annotated[Duration, FormerNames(("reconcile_interval",))] = Field(
        default=60.0, description="How often known sessions are re-checked by id, to find removed ones"
    )
    backfill_interval: Duration = Field(
        default=3600.0, description="How often the whole session list is read, slowly, to find what no filter shows"
    )
    start_from: Start = Field(
        default=StartFrom("now"), description="What a first start reports: now, all, a time, or how long ago"
    )
    resolution: Literal["as_served", "finest"] = Field(
        default="as_served", description="Datapoints as the cloud serves them, or at its finest resolution"
    )


class StoreConfig(Section):
    url: Annotated[str, AfterValidator(store_url)] = Field(
        default="sqlite:///bace-bridge.db", description="sqlite:///relative.db or sqlite:////absolute.db"
    )
    retention: Duration = Field(default=604_800.0, description="Delivered events are kept this long for replay")
    max_size: Size = Field(default=2**30, description="Maximum size of the store; polling pauses when it is full")
    session_retention: Annotated[Duration, FormerNames(("memory",))] = Field(
        default=7_776_000.0,
        description="What was published of a finished session is remembered this long after its last change",
    )

    @field_validator("max_size")
    @classmethod
    def _large_enough(cls, size: int) -> int:
        if size < LEAST_STORE:
            raise mistake(f"must be at least {format_size(LEAST_STORE)}")
        if size > LARGEST_STORE:
            raise mistake("must be at most 256TiB", "that is as large as an SQLite file can be")
        return size

    @property
    def path(self) -> Path:
        """The database file; a relative path is relative to the working directory."""
        return Path(self.url.removeprefix(SQLITE))


class CsvConfig(Section):
    """Links to CSV files that open without BACE's token."""

    link_base: Annotated[str, AfterValidator(link_url)] = Field(
        default="", description="The address under which others reach http.listen; with it, csv.link is there"
    )
    link_expires: Duration = Field(default=604_800.0, description="How long a link is good")

    @field_validator("link_expires")
    @classmethod
    def _long_enough(cls, seconds: float) -> float:
        if seconds < 1:  # a link names a whole second
            raise mistake("must be at least 1s")
        return seconds


class HttpConfig(Section):
    # A port alone, or false, gets the message about addresses, not one about quotes.
    listen: Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, int | float) else given)] = (
        Field(default="127.0.0.1:8099", description='host:port of /healthz, /readyz and CSV links; "" turns it off')
    )
    token: Annotated[OptionalSecret, BeforeValidator(lambda given: given or None)] = Field(
        default=None, description="With it (Authorization: Bearer), remote clients see names and reasons, too"
    )

    @field_validator("listen")
    @classmethod
    def _address(cls, listen: str) -> str:
        if listen:
            listen_address(listen)
        return listen

    @property
    def enabled(self) -> bool:
        return bool(self.listen)

    @property
    def host(self) -> str:
        return listen_address(self.listen)[0] if self.listen else ""

    @property
    def port(self) -> int:
        """0 lets the system choose."""
        return listen_address(self.listen)[1] if self.listen else 0


SinkT = TypeVar("SinkT", bound=SinkConfig)


class Config(Section):
    """The sections that every configuration has; the file has a list of sinks for each kind as well."""

    cloud: CloudConfig = Field(description="The BACE cloud and the login")
    watch: WatchConfig = Field(default=WatchConfig(), description="How often the cloud is polled")
    store: StoreConfig = Field(default=StoreConfig(), description="Where the bridge keeps what it knows")
    csv: CsvConfig = Field(default=CsvConfig(), description="Links to CSV files")
    http: HttpConfig = Field(default=HttpConfig(), description="Health and CSV links")
    datatypes: dict[WholeNumber, DatatypeConfig] = Field(
        default={}, validate_default=True, description="What datatypes mean; added to the built-in ones"
    )

    @field_validator("datatypes")
    @classmethod
    def _with_known_datatypes(cls, given: dict[int, DatatypeConfig]) -> dict[int, DatatypeConfig]:
        # `validate_default`: pydantic calls this for the default, too, so that the known ones are always there.
        return {**KNOWN_DATATYPES, **{number: over_the_known(number, one) for number, one in given.items()}}

    @property
    def sinks(self) -> tuple[SinkConfig, ...]:
        """All of them, kind by kind."""
        return tuple(sink for _, sink in self.located_sinks())

    def located_sinks(self) -> Iterator[tuple[str, SinkConfig]]:
        """Each with its path, such as `mqtt[0]`."""
        for kind in KINDS:
            for index, sink in enumerate(getattr(self, kind.section, ())):
                yield f"{kind.section}[{index}]", sink

    def sinks_of(self, kind: type[SinkT]) -> tuple[SinkT, ...]:
        return tuple(sink for sink in self.sinks if isinstance(sink, kind))


# A field for each kind, made here and not written out: a new kind of sink is a line in the registry alone.
_LISTS: dict[str, Any] = {
    kind.section: (GenericAlias(tuple, (kind, ...)), Field(default=(), description=kind.about)) for kind in KINDS
}

FILE_MODEL = create_model("FileModel", __base__=Config, **_LISTS)
"""What may be in the file: the schema, the checks and the hints for every kind of sink come from it."""


_GROUP_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def warnings(config: Config, *, now: float) -> list[str]:
    """One line each, with the path of what it is about; no secrets."""
    found: list[str] = []
    cloud = split_url(config.cloud.url, ("https", "http"))
    if cloud.scheme == "http" and not is_loopback(cloud.hostname or ""):
        found.append("cloud.url: the login goes over the network in the clear (use https://)")
    if config.cloud.access_token is not None:
        found.append("cloud.access_token: is not renewed when it expires (the login with four keys is)")
    if config.watch.start_from.kind == "since" and config.watch.start_from.seconds > now:
        found.append("watch.start_from: is in the future: sessions that are over before it are never reported")
    if config.http.enabled and not is_loopback(config.http.host):
        if config.http.token is None:
            found.append(
                "http.listen: anyone who reaches this port sees whether the bridge is healthy (no names or reasons)"
            )
        else:
            found.append("http.token: goes over the network in the clear (put a proxy with TLS before http.listen)")
    links = config.csv.link_base and split_url(config.csv.link_base, ("https", "http"))
    if links and links.scheme == "http" and not is_private(links.hostname or ""):
        found.append("csv.link_base: links and CSV files go over the network in the clear (use https://)")
    for path, sink in config.located_sinks():
        found += [f"{path}.{line}" for line in _about_sink(sink)]
    for kind in KINDS:
        found += kind.warnings_between([(path, one) for path, one in config.located_sinks() if isinstance(one, kind)])
    if not config.sinks:
        found.append(f"{', '.join(kind.section for kind in KINDS)}: there are no sinks, so no events will be delivered")
    return found


def _about_sink(sink: SinkConfig) -> Iterator[str]:
    yield from sink.warnings()
    for index, one in enumerate(sink.groups):
        # cloud.groups takes labels, too, since the list shows them; an event has the id alone.
        if not _GROUP_ID.fullmatch(one):
            yield f"groups[{index}]: {one!r} is not an id_group: sinks take ids only (see bace-bridge devices)"
    for index, glob in enumerate(sink.events):
        if not any(matches(known, (glob,)) for known in EVENT_TYPES):
            yield f"events[{index}]: {glob!r} has no effect yet: this version sends no such events"
