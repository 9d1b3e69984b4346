"""What is allowed, but worth a second thought."""

import re
from collections.abc import Iterator, Sequence

from bace_bridge.config.models import Config
from bace_bridge.config.sections import has_no_effect_yet, is_loopback, split_url
from bace_bridge.sinks.kind import SinkConfig
from bace_bridge.sinks.registry import KINDS

_GROUP_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def warnings(config: Config, *, now: float) -> list[str]:
    """One line each, with the path of what it is about; no secrets."""
    found = [*_about_cloud(config), *_about_watch(config, now), *_about_http(config)]
    for path, sink in config.located_sinks():
        found += [f"{path}.{line}" for line in _about_sink(sink)]
    if not config.sinks:
        found.append(f"{', '.join(kind.section for kind in KINDS)}: there are no sinks, so nobody is told anything")
    return found


def _about_cloud(config: Config) -> Iterator[str]:
    parts = split_url(config.cloud.url, ("https", "http"))
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        yield "cloud.url: the login goes over the network in the clear (use https://)"
    if config.cloud.access_token is not None:
        yield "cloud.access_token: is not renewed when it expires (the login with four keys is)"


def _about_watch(config: Config, now: float) -> Iterator[str]:
    start = config.watch.start_from
    if start.kind == "since" and start.seconds > now:
        yield "watch.start_from: is in the future: sessions that are over before it are never reported"


def _about_http(config: Config) -> Iterator[str]:
    if config.http.enabled and not is_loopback(config.http.host):
        if config.http.token is None:
            yield "http.listen: everybody who reaches this port can read whether all is well (not names or reasons)"
        else:
            yield "http.token: goes over the network in the clear (put a proxy with TLS before http.listen)"


def _about_sink(sink: SinkConfig) -> Iterator[str]:
    yield from sink.warnings()
    yield from _about_groups(sink.groups)
    yield from _about_events(sink.events)


def _about_groups(groups: Sequence[str]) -> Iterator[str]:
    for index, one in enumerate(groups):
        if not _GROUP_ID.fullmatch(one):
            yield f"groups[{index}]: {one!r} is no id_group: sinks take no labels yet (bace-bridge devices lists ids)"


def _about_events(globs: Sequence[str]) -> Iterator[str]:
    for index, glob in enumerate(globs):
        if has_no_effect_yet(glob):
            yield f"events[{index}]: {glob!r} has no effect yet: this version sends no such events"
