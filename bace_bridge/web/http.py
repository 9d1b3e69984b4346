"""As much of HTTP/1.1 as a health server needs: the head of one request, and one answer. Pure."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import msgspec

LARGEST_HEAD = 8 * 1024
"""Bytes of the request line and the header fields together."""

END_OF_HEAD = re.compile(rb"\r?\n\r?\n")

_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (\S+) HTTP/1\.[01]")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")


class NotHttp(Exception):
    """What came is no request of HTTP/1; `status` is what it is answered with."""

    def __init__(self, problem: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(problem)
        self.status = status


class Request(msgspec.Struct, frozen=True):
    """`path` is decoded and without the query; the names of `fields` are in lower case. A body is never read."""

    method: str
    path: str
    fields: Mapping[str, Sequence[str]]


class Answer(msgspec.Struct, frozen=True):
    status: HTTPStatus
    content: object


def parse_head(head: bytes) -> Request:
    """The request whose head this is, up to its empty line. Raises NotHttp."""
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise NotHttp("no request line of HTTP/1")
    fields: dict[str, list[str]] = {}
    for one in rest:
        field = _FIELD.fullmatch(one)
        if field is None:
            raise NotHttp("a header field cannot be read")
        fields.setdefault(field[1].lower(), []).append(field[2].strip())
    return Request(line[1], _path(line[2]), fields)


def _path(target: str) -> str:
    """Proxies ask with the whole URL."""
    if target.startswith("/"):
        return unquote(target.partition("?")[0])
    try:
        return unquote(urlsplit(target).path)
    except ValueError:
        raise NotHttp("the address cannot be read") from None


def encoded(answer: Answer, *, with_body: bool = True) -> bytes:
    """The connection is closed after each answer, and none says which software wrote it."""
    body = msgspec.json.encode(answer.content)
    fields = {
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + (body if with_body else b"")
