"""What is allowed, but worth a second thought."""

import re
from collections.abc import Iterator, Sequence

from bace_bridge.config.models import Config, MqttConfig, TlsConfig, WebhookConfig
from bace_bridge.config.sections import has_no_effect_yet, is_loopback, is_private, split_url

_GROUP_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def warnings(config: Config, *, now: float) -> list[str]:
    """One line each, with the path of what it is about; no secrets."""
    found = [*_about_cloud(config), *_about_watch(config, now), *_about_http(config)]
    for index, broker in enumerate(config.mqtt):
        found += [f"mqtt[{index}].{line}" for line in _about_broker(broker)]
    for index, webhook in enumerate(config.webhooks):
        found += [f"webhooks[{index}].{line}" for line in _about_webhook(webhook)]
    if not config.mqtt and not config.webhooks:
        found.append("mqtt, webhooks: there are no sinks, so no events will be delivered")
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
            yield "http.listen: anyone who reaches this port sees whether the bridge is healthy (no names or reasons)"
        else:
            yield "http.token: goes over the network in the clear (put a proxy with TLS before http.listen)"


def _about_broker(broker: MqttConfig) -> Iterator[str]:
    if broker.password is not None and not broker.tls_enabled and not is_loopback(broker.host):
        yield "url: the password goes over the network in the clear (use mqtts:// or wss://)"
    elif not broker.tls_enabled and not is_private(broker.host):
        yield "url: health data goes over the internet in the clear (use mqtts:// or wss://)"
    if broker.tls.insecure and broker.tls_enabled:
        yield "tls.insecure: anyone on the network path can read and forge messages (use ca_file instead)"
    if broker.tls != TlsConfig() and not broker.tls_enabled:
        yield "tls: has no effect without mqtts:// or wss://"
    given = broker.home_assistant.model_fields_set
    if given and broker.home_assistant.enabled:
        key = "home_assistant.enabled" if "enabled" in given else "home_assistant"
        yield f"{key}: has no effect yet: this version publishes no discovery"
    yield from _about_groups(broker.groups)
    yield from _about_events(broker.events)


def _about_webhook(webhook: WebhookConfig) -> Iterator[str]:
    parts = split_url(webhook.url.get_secret_value(), ("https", "http"))
    if parts.scheme == "http" and not is_private(parts.hostname or ""):
        yield "url: health data goes over the internet in the clear (use https://)"
    if parts.fragment:
        yield "url: the part after # is never sent (write %23 for a # in the path or query)"
    if webhook.secret is None:
        yield "secret: is not set: requests are not signed, so the receiver cannot verify the sender"
    yield from _about_groups(webhook.groups)
    yield from _about_events(webhook.events)


def _about_groups(groups: Sequence[str]) -> Iterator[str]:
    for index, one in enumerate(groups):
        if not _GROUP_ID.fullmatch(one):
            yield f"groups[{index}]: {one!r} is not an id_group: sinks take ids only (see bace-bridge devices)"


def _about_events(globs: Sequence[str]) -> Iterator[str]:
    for index, glob in enumerate(globs):
        if has_no_effect_yet(glob):
            yield f"events[{index}]: {glob!r} has no effect yet: this version sends no such events"
