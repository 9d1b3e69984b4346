"""The keys of an MQTT broker, with its TLS files, which `check` loads as `run` does."""

import codecs
import ssl
import stat
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema

from bace_bridge.config.sections import MaxInFlight, Section, broker_url, is_loopback, is_private
from bace_bridge.config.values import Duration, FromFile, Secret, Text, checked, format_size, mistake, whole_number
from bace_bridge.errors import Mistake
from bace_bridge.formats import LEVELS_BELOW_BASE, encoding_problem, text_problem, topic_problem
from bace_bridge.sinks.api import Built
from bace_bridge.sinks.kind import Entry, SinkConfig, SinkContext

_LARGEST = 4 * 2**20
"""Bytes of a file. A system's bundle of authorities has about 200 kB."""


_FILES = ("ca_file", "cert_file", "key_file")
_BEHIND_A_MARK = codecs.BOM_UTF8 + b"-----BEGIN"


class TlsConfig(Section):
    ca_file: Path | None = Field(default=None, description="CA certificate (PEM) to trust instead of the system's")
    cert_file: Path | None = Field(default=None, description="PEM file of the client's certificate")
    key_file: Path | None = Field(default=None, description="PEM file of the client's key, unencrypted")
    insecure: bool = Field(default=False, description="Do not check the broker's certificate: for trials only")

    @classmethod
    def mistakes_in_files(cls, given: dict[Any, Any]) -> Iterator[Mistake]:
        """Those of certificate and key together only where each is right alone."""
        files = {key: Path(given[key]) for key in _FILES if isinstance(given.get(key), str)}
        wrong = set()
        for key, path in files.items():
            try:
                if key == "key_file":
                    _check_key(path)
                else:
                    _certificates(key, path)
            except TlsFileProblem as found:
                wrong.add(key)
                yield found.mistake
        try:
            if "cert_file" in files and not wrong & {"cert_file", "key_file"}:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                _show_certificate(context, files["cert_file"], files.get("key_file"))
        except TlsFileProblem as found:
            yield found.mistake


class TlsFileProblem(Exception):
    """The path of the `mistake` is the file's key in the configuration; the text is for people."""

    def __init__(self, key: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{problem} ({hint})" if hint else problem)
        self.mistake = Mistake(key, problem, hint)


class _Encrypted(Exception):
    pass


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """Raises TlsFileProblem for whatever is wrong with a file. It asks for no pass phrase, and waits for no pipe."""
    context = _certificates("ca_file", tls.ca_file)
    if tls.insecure:
        # First: ssl raises ValueError for CERT_NONE while host names are still checked.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file is not None:
        _show_certificate(context, tls.cert_file, tls.key_file)
    return context


def _certificates(key: str, path: Path | None) -> ssl.SSLContext:
    """Trusts those in the file; those of the system without one."""
    if path is not None:
        _check_file(key, path)
    try:
        return ssl.create_default_context(cafile=path)
    except (ssl.SSLError, ValueError):
        hint = "-----BEGIN CERTIFICATE-----" if key == "ca_file" else ""
        raise TlsFileProblem(key, f"{path} holds no certificate in PEM", hint) from None
    except OSError as error:
        raise TlsFileProblem(key, f"cannot read {path}: {error.strerror}") from None


def _check_file(key: str, path: Path) -> bytes:
    """Its content. OpenSSL would wait for the writer of a pipe, and read a device to its end."""
    try:
        found = path.stat()
    except OSError as error:
        raise TlsFileProblem(key, f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a character that no path holds
        raise TlsFileProblem(key, "must be the path of a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise TlsFileProblem(key, f"{path} is not a regular file")
    if found.st_size > _LARGEST:
        raise TlsFileProblem(key, f"{path} is larger than {format_size(_LARGEST)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsFileProblem(key, f"cannot read {path}: {error.strerror}") from None
    if _BEHIND_A_MARK in content:
        problem = f"{path} has a byte order mark (BOM) before -----BEGIN, which OpenSSL does not find then"
        raise TlsFileProblem(key, problem, "save it as UTF-8 without BOM")
    return content


def _check_key(key_file: Path) -> None:
    if b"PRIVATE KEY-----" not in _check_file("key_file", key_file):
        raise TlsFileProblem("key_file", f"{key_file} holds no private key in PEM that can be used")


def _show_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    key, path = ("key_file", key_file) if key_file is not None else ("cert_file", cert_file)
    # Before: load_cert_chain says the same, `PEM lib`, of a bad certificate and of a bad key.
    _certificates("cert_file", cert_file)
    if key_file is not None:
        _check_key(key_file)
    try:
        # Without this function OpenSSL asks on the terminal, and a service waits for ever.
        context.load_cert_chain(cert_file, key_file, password=_refuse_to_ask)
    except _Encrypted:
        hint = "decrypt it with openssl pkey, and keep it readable by the service alone"
        raise TlsFileProblem(key, f"{path} is encrypted, and the service cannot ask for a pass phrase", hint) from None
    except ssl.SSLError as error:
        if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}:
            raise TlsFileProblem(key, f"{path} is not the key of the certificate in {cert_file}") from None
        if error.reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}:
            raise TlsFileProblem("cert_file", f"{cert_file} is too weak for this machine's OpenSSL") from None
        hint = "" if key_file is not None else "name the key's file in key_file"
        raise TlsFileProblem(key, f"{path} holds no private key in PEM that can be used", hint) from None
    except (OSError, ValueError) as error:
        raise TlsFileProblem(key, f"cannot read {path}: {getattr(error, 'strerror', error)}") from None


def _refuse_to_ask() -> NoReturn:
    raise _Encrypted


_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
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


def _keepalive(seconds: float) -> float:
    # The keep-alive of CONNECT has two bytes.
    if not 1 <= seconds <= _LONGEST_KEEPALIVE:
        raise mistake("must be between 1s and 18h", "MQTT counts in whole seconds; 0 would turn it off")
    return seconds


Topic = Annotated[str, AfterValidator(_topic)]
MqttText = Annotated[Text, AfterValidator(partial(checked, text_problem, "use plain characters"))]
Password = Annotated[Annotated[Secret, AfterValidator(partial(checked, encoding_problem, ""))] | None, FromFile()]
Version = Literal["5", "3.1.1"]
Protocol = Annotated[
    Version,
    BeforeValidator(lambda value: "5" if value == _FIVE else value),
    WithJsonSchema({"enum": [5, "5", "3.1.1"]}),
]


class HomeAssistantConfig(Section):
    enabled: bool = Field(default=True, description="Publish discovery")
    prefix: Topic = Field(default="homeassistant", description="Home Assistant's discovery prefix")
    mode: Literal["device", "component"] = Field(
        default="device", description="One message per device, or one per entity for older consumers"
    )
    after_session: Literal["unavailable", "keep"] = Field(
        default="unavailable", description="What a value is when its data session is over; keep: the last one stays"
    )


class Address(NamedTuple):
    """`path` is that of a WebSocket; brokers agree on /mqtt where the URL names none."""

    host: str
    port: int
    path: str
    tls: bool
    websocket: bool


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
        default=HomeAssistantConfig(), description="Discovery for Home Assistant"
    )

    @property
    def address(self) -> Address:
        parts = urlsplit(self.url)
        return Address(
            parts.hostname or "",
            parts.port or _DEFAULT_PORTS[parts.scheme],
            parts.path or "/mqtt",
            tls=parts.scheme in {"mqtts", "wss"},
            websocket=parts.scheme in {"ws", "wss"},
        )

    @property
    def broker(self) -> str:
        """`host:port`, as people and the store's ledger name it."""
        host, port, *_ = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def target(self) -> str:
        return self.url

    @property
    def files(self) -> tuple[Path, ...]:
        """A certificate may be renewed in its place."""
        return tuple(path for path in (self.tls.ca_file, self.tls.cert_file, self.tls.key_file) if path is not None)

    def describe(self) -> str:
        login = f" as {self.username}" if self.username else ""
        found = f"{self.url}{login}, topics {self.base_topic}/..., MQTT {self.protocol}, qos {self.qos}"
        return f"{found}, discovery for Home Assistant" if self.home_assistant.enabled else found

    def build(self, context: SinkContext) -> Built:
        from bace_bridge.sinks.mqtt.sink import MqttSink  # noqa: PLC0415  # 1.5 MB, only where a broker is configured

        sink = MqttSink(self, context)
        return Built(sink, sink)

    def announced_elsewhere(self, running: Iterable[SinkConfig], topic: str) -> bool:
        """Whether another sink at this broker announces on this topic whatever this one has announced there."""
        for one in running:
            if isinstance(one, MqttConfig) and one.name != self.name and one.broker.lower() == self.broker.lower():
                home = one.home_assistant
                in_its_mode = ("/device/bace_" in topic) == (home.mode == "device")
                shows_all = not one.groups or set(self.groups) == set(one.groups)
                if home.enabled and topic.startswith(f"{home.prefix}/") and in_its_mode and shows_all:
                    return True
        return False

    def warnings(self) -> Iterator[str]:
        host, uses_tls = self.address.host, self.address.tls
        if self.password is not None and not uses_tls and not is_loopback(host):
            yield "url: the password goes over the network in the clear (use mqtts:// or wss://)"
        elif not uses_tls and not is_private(host):
            yield "url: health data goes over the internet in the clear (use mqtts:// or wss://)"
        if self.tls.insecure and uses_tls:
            yield "tls.insecure: anyone on the network path can read and forge messages (use ca_file instead)"
        if self.tls != TlsConfig() and not uses_tls:
            yield "tls: has no effect without mqtts:// or wss://"

    @classmethod
    def warnings_between(cls, sinks: Collection[tuple[str, Self]]) -> Iterator[str]:
        first: dict[tuple[str, str], str] = {}
        for path, sink in sinks:
            if sink.home_assistant.enabled:
                other = first.setdefault((sink.broker.lower(), sink.home_assistant.prefix), path)
                if other != path:
                    yield (
                        f"{path}.home_assistant: {other} announces the same devices to Home Assistant at this broker, "
                        "and each overwrites what the other one says (set enabled: false in one)"
                    )

    @classmethod
    def mistakes_between(cls, entries: Collection[Entry]) -> Iterator[Mistake]:
        for path, sink in entries:
            # MQTT 3.1.1 forbids a password without a user name; 5 allows it, but the bridge falls back.
            if sink.get("password") is not None and sink.get("username") is None:
                yield Mistake(f"{path}.username", "is missing, while a password is given")
            tls = sink.get("tls")
            if isinstance(tls, dict) and tls.get("key_file") is not None and tls.get("cert_file") is None:
                yield Mistake(f"{path}.tls.cert_file", "is missing, while key_file is given")
        # Sinks on the same topics would undo each other's state; with one client id, throw each other out.
        first: dict[tuple[object, ...], str] = {}
        for path, sink in entries:
            try:
                host, port, *_ = MqttConfig.model_validate({"name": "any", "url": sink.get("url")}).address
            except ValidationError:
                continue
            broker = ("localhost" if host in _THIS_MACHINE else host, port)
            given = {"base_topic": sink.get("base_topic") or "bace", "client_id": sink.get("client_id")}
            for key, value in given.items():
                other = first.setdefault((broker, key, value), path) if isinstance(value, str) else path
                if other != path:
                    yield Mistake(f"{path}.{key}", f"{other} has the same {key} at the same broker", "choose another")


KIND: Final = MqttConfig
