"""aiohttp responses in the formats of the API."""

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec
from aiohttp import web

from bace_bridge.simulator.replies import error_body

_JSON = "application/json; charset=UTF-8"
_XML = "application/xml; charset=UTF-8"
_OF_PHP = {"X-Powered-By": "PHP/8.3.6", "Vary": "Accept"}


class ApiError(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


def negotiated(accept: str | None) -> str | None:
    """`json` or `xml`, as an Accept header asks; None: it accepts neither."""
    if not accept:
        return "json"
    wanted = []
    for place, part in enumerate(accept.split(",")):
        kind, *parameters = [piece.strip().lower() for piece in part.split(";")]
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            wanted.append((-float(quality), place, kind))
        except ValueError:
            continue
    for _, _, kind in sorted(wanted):
        if kind in ("application/json", "*/*", "application/*"):
            return "json"
        if kind in ("application/xml", "text/xml"):
            return "xml"
    return None


def reply(
    request: web.Request, body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    sent = {**_OF_PHP, **(headers or {})}
    if negotiated(request.headers.get("Accept")) == "xml":
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<response>{_xml(body)}</response>\n'
        return web.Response(status=status, body=text.encode(), headers={"Content-Type": _XML, **sent})
    return web.Response(status=status, body=msgspec.json.encode(body), headers={"Content-Type": _JSON, **sent})


def refusal(request: web.Request, error: ApiError) -> web.Response:
    return reply(request, error_body(error.status, error.message), status=error.status, headers=error.headers)


def invalid(request: web.Request, message: str, field: str = "filter") -> web.Response:
    """422 is the one error whose body is an array."""
    return reply(request, [{"field": field, "message": message}], status=422)


def no_such_route() -> web.Response:
    """An unknown route is answered by the web site, not by the API."""
    title = "Not Found (#404)"
    page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return web.Response(status=404, text=page, content_type="text/html")


def bad_gateway() -> web.Response:
    """What nginx answers when it cannot take the answer of the PHP behind it."""
    says = "502 Bad Gateway"
    lines = (
        "<html>",
        f"<head><title>{says}</title></head>",
        "<body>",
        f"<center><h1>{says}</h1></center>",
        "<hr><center>nginx/1.24.0</center>",
        "</body>",
        "</html>",
        "",
    )
    return web.Response(status=502, text="\r\n".join(lines), content_type="text/html")


def header_bytes(headers: Mapping[str, str]) -> int:
    """The size of these headers as they are sent."""
    return sum(len(name) + len(": ") + len(value) + len("\r\n") for name, value in headers.items())


def _xml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "".join(f"<{name}>{_xml(inner)}</{name}>" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "".join(f"<item>{_xml(inner)}</item>" for inner in value)
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else escape(str(value))
