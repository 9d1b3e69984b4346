from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, WithJsonSchema

from bace_bridge.config.sections import MaxInFlight, Section, broker_url, is_loopback, is_private
from bace_bridge.config.values import Duration, FromFile, Secret, Text, mistake, whole_number
from bace_bridge.errors import Mistake
from bace_bridge.formats import LEVELS_BELOW_BASE, encoding_problem, text_problem, topic_problem
from bace_bridge.sinks.api import Built
from bace_bridge.sinks.kind import Entry, SinkConfig, SinkContext
from bace_bridge.sinks.mqtt.tls import TlsConfig

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_LONGEST_KEEPALIVE = 65535
_FIVE = 5  # as YAML reads what is written without quotes


def _topic(topic: str) -> str:
    problem = topic_problem(topic, more_levels=LEVELS_BELOW_BASE)
    if problem is None and (topic.startswith("/") or topic.endswith("/")):
        problem = "begins or ends with /"
    # Allowed by MQTT; but brokers' access rules and people's filters seldom expect an empty level.
    if problem is None and "//" in topic:
        problem = "has an empty level (//)"
    if problem is None and topic != topic.strip():
        problem = "begins or ends with a space"
    if problem is not None:
        raise mistake(problem, "use a short topic, such as bace or home/bace")
    return topic


def _mqtt_text(text: str) -> str:
    if problem := text_problem(text):
        raise mistake(problem, "use plain characters")
    return text


def _password(password: SecretStr) -> SecretStr:
    if problem := encoding_problem(password.get_secret_value()):
        raise mistake(problem)
    return password


def _keepalive(seconds: float) -> float:
    # The keep-alive of CONNECT has two bytes.
    if not 1 <= seconds <= _LONGEST_KEEPALIVE:
        raise mistake("must be between 1s and 18h", "MQTT counts in whole seconds; 0 would turn it off")
    return seconds


Topic = Annotated[str, AfterValidator(_topic)]
MqttText = Annotated[Text, AfterValidator(_mqtt_text)]
Password = Annotated[Annotated[Secret, AfterValidator(_password)] | None, FromFile()]
Version = Literal["5", "3.1.1"]
Protocol = Annotated[
    Version,
    BeforeValidator(lambda value: "5" if value == _FIVE else value),
    WithJsonSchema({"enum": [5, "5", "3.1.1"]}),
]


class HomeAssistantConfig(Section):
    """Read and checked, but without effect yet; see `MqttConfig.warnings`."""

    enabled: bool = Field(default=True, description="Publish discovery (no effect yet)")
    prefix: Topic = Field(default="homeassistant", description="Home Assistant's discovery prefix")
    mode: Literal["device", "component"] = Field(
        default="device", description="One message per device, or one per entity"
    )


class MqttConfig(SinkConfig):
    kind = "mqtt"
    section = "mqtt"
    about = "MQTT brokers"

    url: Annotated[str, AfterValidator(broker_url)] = Field(description="mqtt://, mqtts://, ws:// or wss://host:port")
    username: MqttText | None = Field(default=None, description="The login's name")
    password: Password = Field(default=None, description="The login's password")
    base_topic: Topic = Field(default="bace", description="Every topic begins with it")
    protocol: Protocol = Field(
        default="5", description="MQTT version; 5 falls back to 3.1.1 where the broker refuses it"
    )
    client_id: MqttText | None = Field(default=None, description="MQTT client id; by default generated once and stored")
    qos: Annotated[Literal[0, 1, 2], BeforeValidator(whole_number)] = Field(default=1, description="MQTT QoS of events")
    keepalive: Annotated[Duration, AfterValidator(_keepalive)] = Field(
        default=30.0, description="Interval of keep-alive pings on an idle connection"
    )
    tls: TlsConfig = Field(default=TlsConfig(), description="For mqtts:// and wss://")
    max_in_flight: MaxInFlight = Field(default=200, ge=1, le=65535, description="Unacknowledged messages allowed")
    requests: bool = Field(default=True, description="Accept requests over MQTT")
    home_assistant: HomeAssistantConfig = Field(
        default=HomeAssistantConfig(),
        description="Discovery for Home Assistant (no effect yet)",
    )

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _DEFAULT_PORTS[parts.scheme]

    @property
    def broker(self) -> str:
        """`host:port`, as people and the store's ledger name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def path(self) -> str:
        """The path of a WebSocket; brokers agree on /mqtt where the URL names none."""
        return urlsplit(self.url).path or "/mqtt"

    @property
    def tls_enabled(self) -> bool:
        return urlsplit(self.url).scheme in {"mqtts", "wss"}

    @property
    def websocket(self) -> bool:
        return urlsplit(self.url).scheme in {"ws", "wss"}

    @property
    def target(self) -> str:
        return self.url

    @property
    def files(self) -> tuple[Path, ...]:
        """A certificate may be renewed in its place."""
        return tuple(path for path in (self.tls.ca_file, self.tls.cert_file, self.tls.key_file) if path is not None)

    def describe(self) -> str:
        login = f" as {self.username}" if self.username else ""
        return f"{self.url}{login}, topics {self.base_topic}/..., MQTT {self.protocol}, qos {self.qos}"

    def build(self, context: SinkContext) -> Built:
        from bace_bridge.sinks.mqtt.sink import MqttSink  # noqa: PLC0415  # 1.5 MB, only where a broker is configured

        sink = MqttSink(
            self,
            client_id=self.client_id or f"bace-bridge-{context.installation}-{self.name}",
            source=context.source,
            state=context.state,
            ledger=context.ledger(self.broker),
            installation=context.installation,
            base_topics=lambda: {one.base_topic for one in context.running() if isinstance(one, MqttConfig)},
            requests=context.requests,
            version=context.version,
            quote=context.redaction.quoted,
        )
        return Built(sink, sink)

    def warnings(self) -> Iterator[str]:
        if self.password is not None and not self.tls_enabled and not is_loopback(self.host):
            yield "url: the password goes over the network in the clear (use mqtts:// or wss://)"
        elif not self.tls_enabled and not is_private(self.host):
            yield "url: health data goes over the internet in the clear (use mqtts:// or wss://)"
        if self.tls.insecure and self.tls_enabled:
            yield "tls.insecure: anyone on the network path can read and forge messages (use ca_file instead)"
        if self.tls != TlsConfig() and not self.tls_enabled:
            yield "tls: has no effect without mqtts:// or wss://"
        given = self.home_assistant.model_fields_set
        if given and self.home_assistant.enabled:
            key = "home_assistant.enabled" if "enabled" in given else "home_assistant"
            yield f"{key}: has no effect yet: this version publishes no discovery"

    @classmethod
    def mistakes_between(cls, entries: Collection[Entry]) -> Iterator[Mistake]:
        for path, sink in entries:
            # MQTT 3.1.1 forbids a password without a user name; 5 allows it, but the bridge falls back.
            if sink.get("password") is not None and sink.get("username") is None:
                yield Mistake(f"{path}.username", "is missing, while a password is given")
            tls = sink.get("tls")
            if isinstance(tls, dict) and tls.get("key_file") is not None and tls.get("cert_file") is None:
                yield Mistake(f"{path}.tls.cert_file", "is missing, while key_file is given")
        yield from _same_topics_or_ids(entries)


KIND: Final = MqttConfig


def _same_topics_or_ids(brokers: Collection[Entry]) -> Iterator[Mistake]:
    """Sinks on the same topics would undo each other's state; with one client id, throw each other out."""
    first: dict[tuple[object, ...], str] = {}
    for path, sink in brokers:
        address = _address(sink.get("url"))
        if address is None:
            continue
        for key, value in (
            ("base_topic", sink.get("base_topic") or "bace"),
            ("client_id", sink.get("client_id")),
        ):
            if not isinstance(value, str):
                continue
            other = first.setdefault((*address, key, value), path)
            if other != path:
                yield Mistake(f"{path}.{key}", f"{other} has the same {key} at the same broker", "choose another")


_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


def _address(url: Any) -> tuple[str, int] | None:
    try:
        sink = MqttConfig(name="any", url=url)
    except ValidationError:
        return None
    return "localhost" if sink.host in _THIS_MACHINE else sink.host, sink.port
