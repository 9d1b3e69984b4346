from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, WithJsonSchema

from bace_bridge.config.sections import Events, MaxInFlight, Name, Section, broker_url
from bace_bridge.config.values import Duration, FromFile, Secret, Text, mistake, whole_number
from bace_bridge.formats import LEVELS_BELOW_BASE, encoding_problem, text_problem, topic_problem

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_LONGEST_KEEPALIVE = 65535


def _topic(topic: str) -> str:
    problem = topic_problem(topic, more_levels=LEVELS_BELOW_BASE)
    if problem is None and (topic.startswith("/") or topic.endswith("/")):
        problem = "begins or ends with /"
    if problem is not None:
        raise mistake(problem, "take a short topic, such as bace or home/bace")
    return topic


def _mqtt_text(text: str) -> str:
    if problem := text_problem(text):
        raise mistake(problem, "use plain characters")
    return text


def _password(password: SecretStr) -> SecretStr:
    if problem := encoding_problem(password.get_secret_value()):
        raise mistake(problem)
    return password


def _protocol(value: object) -> object:
    return "5" if value == 5 and not isinstance(value, bool) else value  # noqa: PLR2004  # YAML reads 5 as a number


def _keepalive(seconds: float) -> float:
    if not 1 <= seconds <= _LONGEST_KEEPALIVE:
        raise mistake("must be between 1s and 18h", "MQTT counts in whole seconds; 0 would turn it off")
    return seconds


Topic = Annotated[str, AfterValidator(_topic)]
MqttText = Annotated[Text, AfterValidator(_mqtt_text)]
Password = Annotated[Annotated[Secret, AfterValidator(_password)] | None, FromFile()]
Version = Literal["5", "3.1.1"]
Protocol = Annotated[Version, BeforeValidator(_protocol), WithJsonSchema({"enum": [5, "5", "3.1.1"]})]


class TlsConfig(Section):
    ca_file: Path | None = Field(default=None, description="CA certificate (PEM) to trust instead of the system's")
    cert_file: Path | None = Field(default=None, description="PEM file of the client's certificate")
    key_file: Path | None = Field(default=None, description="PEM file of the client's key, unencrypted")
    insecure: bool = Field(default=False, description="Do not check the broker's certificate: for trials only")


class HomeAssistantConfig(Section):
    """Read and checked, but without effect yet; see `cautions.py`."""

    enabled: bool = Field(default=True, description="Publish discovery (no effect yet)")
    prefix: Topic = Field(default="homeassistant", description="Home Assistant's discovery prefix")
    mode: Literal["device", "component"] = Field(
        default="device", description="One message per device, or one per entity"
    )


class MqttConfig(Section):
    name: Name = Field(description="What logs, metrics and replay call this sink; unique among all sinks")
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
    events: Events = Field(default=("*",), description="Which events this sink gets: globs on the event type")
    groups: tuple[Text, ...] = Field(default=(), description="Only these devices (id_group); empty: all")
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
    def path(self) -> str:
        """The path of a WebSocket; brokers agree on /mqtt where the URL names none."""
        return urlsplit(self.url).path or "/mqtt"

    @property
    def tls_enabled(self) -> bool:
        return urlsplit(self.url).scheme in {"mqtts", "wss"}

    @property
    def websocket(self) -> bool:
        return urlsplit(self.url).scheme in {"ws", "wss"}
