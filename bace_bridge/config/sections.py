"""What sections share: URLs and addresses. No message here repeats a URL: it may hold a credential."""

import os
import re
import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from yarl import URL

from bace_bridge.config.values import FormerNames, WholeNumber, closest, mistake
from bace_bridge.errors import Mistake
from bace_bridge.events.types import EVENT_TYPES, matches
from bace_bridge.formats import text_problem


class Section(BaseModel):
    """A section of the configuration: immutable, strict about its keys, and silent about its values."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # Before the fields: pydantic would take null for a value of a wrong type, and not for the default.
    @model_validator(mode="before")
    @classmethod
    def _empty_means_left_out(cls, given: Any) -> Any:
        """A key whose value is commented out, with or without the lines below it, is null in YAML."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None or key not in cls.model_fields}

    @classmethod
    def mistakes_in_files(cls, given: dict[Any, Any]) -> Iterator[Mistake]:
        """What is wrong with the files that this section names, each with its key alone as the path. Reads them."""
        del given
        yield from ()


_HIGHEST_PORT = 65535
_LONGEST_URL = 4096
_LONGEST_HOST = 253
_LONGEST_PATH = 3500
_LONGEST_FOLDER = 255
_LONGEST_NAME = 200
"""Bytes. Systems take 4,096 and 255: the rest is for the working directory, and for what is added to the name."""

SQLITE = "sqlite:///"
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]*[A-Za-z0-9][A-Za-z0-9._-]*")
_BLANK_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f]")
_LABEL = re.compile(r"\w([\w-]*\w)?|")
_AT_HOME = (".local", ".lan", ".home", ".home.arpa", ".internal", ".localhost", ".test")


def split_url(url: str, schemes: Collection[str]) -> SplitResult:
    """The parts of a URL that has one of these schemes, a host and, where it has a port, a usable one."""
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    if _BLANK_OR_CONTROL.search(url):
        raise mistake("must be a URL without spaces")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        URL(url)  # what is to call it refuses more than urlsplit does
    except ValueError:
        raise mistake("must be a URL; its host or its port cannot be read") from None
    if parts.scheme not in schemes or "://" not in url:
        raise mistake(f"must be a URL that begins with {allowed}")
    if not host:
        raise mistake("must be a URL with a host")
    if len(url) > _LONGEST_URL:
        raise mistake(f"must be a URL of at most {_LONGEST_URL} characters")
    in_brackets = parts.netloc.rpartition("@")[2].startswith("[")
    if text_problem(url) is not None or not _is_host(host) or in_brackets != (":" in host):
        raise mistake("must be a URL; its host cannot be looked up, or it contains an invalid character")
    if port == 0:
        raise mistake("must be a URL with a port from 1 to 65535")
    return parts


def _is_host(host: str) -> bool:
    try:
        if ":" in host:
            return bool(ip_address(host))
        name = host.encode("idna").decode()  # as the system's resolver will ask for it; it refuses empty labels
    except ValueError:  # UnicodeError among them
        return False
    return len(name) <= _LONGEST_HOST and _HOST_NAME.fullmatch(name) is not None


def web_url(url: str) -> SplitResult:
    """A URL for HTTP, whose rules for international names differ from those of the system's look-up."""
    parts = split_url(url, ("https", "http"))
    # The system's look-up takes IDNA 2003, yarl IDNA 2008: a name must be good for both.
    try:
        looked_up = URL.build(scheme=parts.scheme, host=parts.hostname or "", port=parts.port).raw_host
    except ValueError:
        looked_up = None
    if not looked_up:
        raise mistake("must be a URL; its host cannot be looked up")
    return parts


def cloud_url(url: str) -> str:
    return _base_url(url, login="use cloud.username and cloud.password")


def link_url(url: str) -> str:
    """As requests will name it: in ASCII, and normalised. An empty one stands for none."""
    return str(URL(_base_url(url, login="a link needs none"))).rstrip("/") if url else url


def _base_url(url: str, *, login: str) -> str:
    parts = web_url(url)
    if parts.username is not None or parts.password is not None:
        raise mistake("must not hold a login", login)
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise mistake("must not hold ? or #")
    return url.rstrip("/")


def broker_url(url: str) -> str:
    parts = split_url(url, ("mqtt", "mqtts", "ws", "wss"))
    if parts.username is not None or parts.password is not None:
        raise mistake("must not hold a login", "use the keys username and password (or password_file)")
    if parts.query or parts.fragment:
        raise mistake("must not hold ? or #")
    if parts.scheme in {"mqtt", "mqtts"} and parts.path not in {"", "/"}:
        raise mistake("must end with the port", "topics go to the key base_topic")
    return url


def store_url(url: str) -> str:
    hint = (
        "sqlite:///bace-bridge.db, or with four slashes for an absolute path: sqlite:////var/lib/bace-bridge/bridge.db"
    )
    if url.startswith(("postgresql:", "postgres:", "postgresql+")):
        raise mistake("PostgreSQL is not supported yet: this version stores in SQLite only", hint)
    name = url.removeprefix(SQLITE)
    if name == url or not name or name.rpartition("/")[2] in {"", ".", ".."} or ":memory:" in name or "?" in name:
        raise mistake("must name an SQLite file", hint)
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise mistake("must name an SQLite file, without control characters", hint)
    # In bytes, as the file system counts; what SQLite adds to the name (-wal, -shm) must fit as well.
    *folders, file = os.fsencode(name).split(b"/")
    if (
        len(file) > _LONGEST_NAME
        or max(map(len, folders), default=0) > _LONGEST_FOLDER
        or len(os.fsencode(name)) > _LONGEST_PATH
    ):
        raise mistake("must name an SQLite file, with a shorter name", f"{_LONGEST_NAME} bytes at most")
    return url


def listen_address(address: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8099` or `[::1]:8099`."""
    hint = '0.0.0.0:8099 listens on the whole network, "" turns it off'
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host or not _is_host(host):
            raise mistake("must be host:port, with an IPv6 address in the brackets", "[::1]:8099")
    elif ":" in host:
        raise mistake("must be host:port, with an IPv6 host in brackets", "[::1]:8099")
    if not colon or not host or _BLANK_OR_CONTROL.search(address) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise mistake("must be host:port, such as 127.0.0.1:8099", hint)
    if int(port) > _HIGHEST_PORT:
        raise mistake("must have a port from 0 to 65535", hint)
    if ":" not in host and not _is_listened_on(host):
        raise mistake("must be host:port; its host is neither an address nor a name", hint)
    return host, int(port)


def _is_listened_on(host: str) -> bool:
    """Whether the resolver may find an address for it; `*` stands for all of them."""
    if re.fullmatch(r"[0-9.]+", host):
        # The resolver takes 127.1 and 0 for addresses; idna would take 1.2.3.4.5 for a name, which does not exist.
        try:
            socket.inet_aton(host)
        except OSError:
            return False
        return True
    return host == "*" or (_is_host(host) and all(map(_LABEL.fullmatch, host.split("."))))


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """True for hosts of this machine or of a home or company network, as far as the name shows."""
    if is_loopback(host):
        return True
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(_AT_HOME)


_TYPES_TO_COME = ("alert.firing", "alert.resolved")
"""Accepted, but no version sends them yet: no message offers them."""


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", value):
        raise mistake("must be a short name of letters, digits, - and _, 64 at most")
    return value


def _event_globs(globs: tuple[str, ...]) -> tuple[str, ...]:
    if not globs:
        raise mistake("is empty, so nothing would be sent", 'write ["*"] for all events')
    return globs


def _event_glob(glob: str) -> str:
    # Of each entry by itself: so pydantic gives the mistake the path of the entry, such as events[1].
    if not any(matches(known, (glob,)) for known in (*EVENT_TYPES, *_TYPES_TO_COME)):
        close = closest(glob, (*EVENT_TYPES, "session.*", "cloud.*", "sink.*"))
        hint = f"did you mean {close}?" if close else f"known: {', '.join(EVENT_TYPES)}"
        raise mistake(f"{glob!r} matches no event type", hint)
    return glob


MaxInFlight = Annotated[WholeNumber, FormerNames(("in_flight", "concurrency"))]
Name = Annotated[str, AfterValidator(_name)]
Events = Annotated[tuple[Annotated[str, AfterValidator(_event_glob)], ...], AfterValidator(_event_globs)]
