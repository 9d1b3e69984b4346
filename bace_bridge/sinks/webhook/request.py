"""The bytes of a POST: what the configuration says goes out as it is written. Pure."""

import re
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes, urlsplit

from multidict import CIMultiDict
from yarl import URL

from bace_bridge.domain.http_text import request_target


def origin(url: str) -> URL:
    """Scheme, host and port, which say where to connect; they hold no credential."""
    parts = urlsplit(url)
    return URL.build(scheme=parts.scheme, host=parts.hostname or "", port=parts.port)


def basic_login(url: str) -> str:
    """The Authorization header of a login in the URL, in its own bytes (%C3%A4 and %E4 differ); "" without one."""
    parts = urlsplit(url)
    user, password = unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or "")
    return f"Basic {b64encode(user + b':' + password).decode()}" if user or password else ""


def request_head(url: str, defaults: Mapping[str, str], configured: Mapping[str, str]) -> bytes:
    """The request line and the headers that all attempts share.

    `configured` headers take the place of `defaults`, and of the login in the URL, whatever their case.
    """
    host = re.sub(r"%[^\]]*\]", "]", origin(url).host_port_subcomponent or "")  # the zone of an address is our own
    headers = CIMultiDict({"Host": host, **defaults})
    if login := basic_login(url):
        headers["Authorization"] = login
    headers.update(configured)
    return f"POST {request_target(url)} HTTP/1.1\r\n".encode() + _lines(headers)


def request_bytes(head: bytes, signed: Mapping[str, str], body: bytes) -> bytes:
    """One attempt; `signed` are its own headers."""
    return head + _lines({**signed, "Content-Length": str(len(body))}) + b"\r\n" + body


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
