"""Requests to a webhook (CloudEvent, signature, bytes), and what its answers say about the delivery. Pure."""

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
from multidict import CIMultiDict
from yarl import URL

from bace_bridge.errors import DeliveryFailed, SinkDisabled, SinkError
from bace_bridge.events.types import DATA_CONTENT_TYPE, SEQUENCE_DIGITS, SPECVERSION, TYPE_PREFIX, Attempt
from bace_bridge.formats import iso_utc, request_target
from bace_bridge.redaction import Redaction
from bace_bridge.retry import retry_after

CONTENT_TYPE = "application/cloudevents+json"


class CloudEvent(msgspec.Struct, frozen=True):
    """The attributes in the order in which they are written; a bridge event has no `subject`.

    `replay` is an extension attribute, there and true where the event is delivered again on request.
    """

    specversion: str
    id: str
    source: str
    type: str
    subject: str | msgspec.UnsetType
    time: str
    datacontenttype: str
    sequence: str
    replay: bool | msgspec.UnsetType
    data: msgspec.Raw


def structured(attempt: Attempt, source: str) -> bytes:
    """The same event gives the same bytes at every attempt but a replay. `sequence` orders as text."""
    event = attempt.logged.event
    return msgspec.json.encode(
        CloudEvent(
            specversion=SPECVERSION,
            id=event.id,
            source=source,
            type=TYPE_PREFIX + event.type,
            subject=msgspec.UNSET if event.session_id is None else event.session_id,
            time=iso_utc(event.time),
            datacontenttype=DATA_CONTENT_TYPE,
            sequence=str(attempt.logged.seq).zfill(SEQUENCE_DIGITS),
            replay=True if attempt.replay else msgspec.UNSET,
            data=msgspec.Raw(event.data),
        )
    )


SECRET_PREFIX = "whsec_"  # noqa: S105  # how secrets begin, not a secret


def signing_key(secret: str) -> bytes:
    """The bytes that sign; ValueError where the secret is not base64."""
    return b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def signed_headers(message_id: str, body: bytes, keys: Sequence[bytes], *, now: float) -> dict[str, str]:
    """The headers of one attempt, with a signature by each key.

    Without a key the id and the timestamp are sent all the same: receivers recognise repetitions by the id.
    """
    timestamp = str(int(now))
    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp}
    if keys:
        # One signature for each key while secrets rotate: receivers accept any of them.
        signed = f"{message_id}.{timestamp}.".encode() + body
        headers["webhook-signature"] = " ".join(
            f"v1,{b64encode(hmac.digest(key, signed, 'sha256')).decode()}" for key in keys
        )
    return headers


def origin(url: str) -> URL:
    """Scheme, host and port, which say where to connect; they hold no credential."""
    parts = urlsplit(url)
    return URL.build(scheme=parts.scheme, host=parts.hostname or "", port=parts.port)


def request_head(url: str, version: str, configured: Mapping[str, str]) -> bytes:
    """The request line and the headers that all attempts share.

    `configured` headers take the place of our own, and of the login in the URL, whatever their case.
    """
    host = re.sub(r"%[^\]]*\]", "]", origin(url).host_port_subcomponent or "")  # the zone of an address is our own
    ours = {"Host": host, "Accept": "*/*", "Content-Type": CONTENT_TYPE, "User-Agent": f"bace-bridge/{version}"}
    headers = CIMultiDict(ours)
    # A login goes out in its own bytes: %C3%A4 and %E4 differ.
    parts = urlsplit(url)
    user, password = unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or "")
    if user or password:
        headers["Authorization"] = f"Basic {b64encode(user + b':' + password).decode()}"
    headers.update(configured)
    return f"POST {request_target(url)} HTTP/1.1\r\n".encode() + _lines(headers)


def request_bytes(head: bytes, signed: Mapping[str, str], body: bytes) -> bytes:
    """One attempt; `signed` are its own headers."""
    return head + _lines({**signed, "Content-Length": str(len(body))}) + b"\r\n" + body


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


# --- the answer

LONGEST_QUOTE = 200
"""Characters of the answer's body that a message quotes."""

LONGEST_ANSWER = 2048
"""Bytes of the answer's body that are read, and characters of it that are kept with the attempt."""

_GONE = 410
_ASKS_FOR_SILENCE = (429, 503)


def judge(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, redaction: Redaction
) -> SinkError | None:
    """None where the event was delivered, else what went wrong.

    `headers` finds its keys whatever their case. No message shows what the `redaction` knows.
    """
    # Standard Webhooks: 410 and this header both mean never again; a dead letter for each event would be of no use.
    if headers.get("webhook-delivery", "").strip().lower() == "disable":
        return SinkDisabled(
            f"HTTP {status}: the endpoint asked to be disabled (webhook-delivery: disable)", status=status
        )
    if status == _GONE:
        return SinkDisabled("HTTP 410: the endpoint is gone", status=status)
    if 200 <= status < 300:  # noqa: PLR2004  # the class of status codes
        return None
    # A redirect could send a person's data to anybody, and most receivers that redirect mean a mistyped URL.
    if 300 <= status < 400:  # noqa: PLR2004  # the class of status codes
        return DeliveryFailed(f"HTTP {status}: redirects are not followed; configure the final address", status=status)
    answer = excerpt(body, redaction)
    quote = shortened(answer, LONGEST_QUOTE)
    message = f"HTTP {status}: {quote}" if quote else f"HTTP {status}"
    wait = retry_after(headers, now=now) if status in _ASKS_FOR_SILENCE else 0.0
    return DeliveryFailed(message, retry_after=wait, status=status, answer=shortened(answer, LONGEST_ANSWER))


def excerpt(body: bytes, redaction: Redaction) -> str:
    """A body as one printable line. One that is as long as what is read may have been cut off within a secret."""
    text = redaction(body.decode("utf-8", "replace"), cut_off=len(body) >= LONGEST_ANSWER)
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())


def shortened(line: str, longest: int) -> str:
    return line if len(line) <= longest else line[: longest - 1] + "…"


LARGEST_HEAD = 64 * 1024
"""Bytes of status line and headers that are read."""

MOST_READ = LARGEST_HEAD + 4 * LONGEST_ANSWER
"""Bytes of an answer that are read; framing in chunks makes a body longer than it is."""

_STATUS = re.compile(rb"HTTP/(\d)(?:\.(\d))?[ \t]{1,20}(\d{3})(?!\d)", re.IGNORECASE)
_EMPTY_LINES = re.compile(rb"[\r\n]*")
_END_OF_LINE = re.compile(rb"\r?\n")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_TRAILERS = re.compile(rb"(?:[^\r\n]+\r?\n)*\r?\n")
_LONGEST_TO_STATUS = 32
"""Bytes in which the version and the three digits come."""

_SWITCHING = 101
_MOST_INTERIM = 100
"""Answers of 1xx before the real one."""

_MOST_HEADERS = 1000
"""Lines that are read: an answer is read again with each piece that comes of it."""

_WITHOUT_BODY = (204, 304)


class NotHttp(ValueError):
    """What came is no answer of HTTP/1."""


class Reply(msgspec.Struct, frozen=True):
    """An answer, with the beginning of its body.

    `whole`: nothing that could still come would change it. `reusable`: the connection is as HTTP leaves it.
    """

    status: int
    headers: CIMultiDict[str]
    body: bytes = b""
    whole: bool = True
    reusable: bool = False


class _Body(msgspec.Struct, frozen=True):
    """`size`: the bytes that it takes on the connection; None where its end has not come."""

    content: bytes
    size: int | None = None
    broken: bool = False


def read_reply(data: bytes, *, ended: bool, after_another: bool) -> Reply | None:
    """The answer that begins with these bytes; None where not even its status has come.

    `ended`: no more will be read. `after_another`: the connection had an answer before, of which something may be left.
    Raises NotHttp.
    """
    found = _final_status(data, ended=ended, after_another=after_another)
    if found is None:
        return None
    status = int(found[3])
    end = _END_OF_HEAD.search(data, found.end())
    if end is None:
        whole = ended or len(data) > LARGEST_HEAD
        headers, _ = _headers(data[found.end() : data.rfind(b"\n") + 1] if whole else b"")
        return Reply(status, headers, whole=whole)
    headers, regular = _headers(data[found.end() : end.start()])
    rest = data[end.end() :]
    body = _body(status, headers, rest)
    whole = ended or body.broken or body.size is not None or len(body.content) >= LONGEST_ANSWER
    said = ",".join(headers.getall("Connection", ())).lower()
    is_kept = (found[1], found[2]) == (b"1", b"1") and "close" not in said and "upgrade" not in said
    reusable = regular and not ended and body.size == len(rest) and is_kept
    return Reply(status, headers, body.content[:LONGEST_ANSWER], whole=whole, reusable=reusable)


def _final_status(data: bytes, *, ended: bool, after_another: bool) -> re.Match[bytes] | None:
    """The status line after the interim answers (1xx)."""
    at = 0
    for _ in range(_MOST_INTERIM):
        at = _EMPTY_LINES.match(data, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        # Bytes that an earlier answer left over (a body with 204, say) come before the status line: skipped, not
        # refused.
        found = _STATUS.search(data, at) if after_another else _STATUS.match(data, at)
        if found is None:
            # What came and holds no status line may still become one.
            begun = data[at:]
            could_be = not ended and len(begun) <= LARGEST_HEAD
            if not after_another:
                could_be = could_be and b"HTTP/".startswith(begun[:5].upper()) and b"\n" not in begun
                could_be = could_be and len(begun) <= _LONGEST_TO_STATUS
            if begun and not could_be:
                raise NotHttp
            return None
        if found.end() == len(data) and not ended:
            return None
        if not found[3].startswith(b"1") or int(found[3]) == _SWITCHING:
            return found
        interim = _END_OF_HEAD.search(data, found.end())
        if interim is None:
            return None
        at = interim.end()
    raise NotHttp


def _headers(lines: bytes) -> tuple[CIMultiDict[str], bool]:
    """Those that can be read, and whether that is all of them. The first line is what is left of the status line."""
    headers: CIMultiDict[str] = CIMultiDict()
    _, *split = lines.split(b"\n", _MOST_HEADERS)
    regular = len(split) < _MOST_HEADERS
    for line in split[: _MOST_HEADERS - 1]:
        found = _HEADER.fullmatch(line.removesuffix(b"\r"))
        if found is not None:
            headers.add(found[1].decode(), found[2].strip(b" \t").decode("utf-8", "replace"))
        elif line.strip():
            regular = False
    return headers, regular


def _body(status: int, headers: CIMultiDict[str], rest: bytes) -> _Body:
    coding = ",".join(headers.getall("Transfer-Encoding", ())).lower()
    # Two lengths that differ, or a length beside chunks, leave the end open: such a connection is not used again.
    lengths = set(headers.getall("Content-Length", ()))
    if status in _WITHOUT_BODY:  # whatever their headers say of a length
        return _Body(b"", 0)
    # RFC 9112, 6.3: a length beside a coding may be an attack, so such a connection is never used again; a coding that
    # does not end with chunked, and an answer without either, ends with the connection.
    if coding:
        chunked = coding.rpartition(",")[2].strip() == "chunked" and not lengths
        return _dechunked(rest) if chunked else _Body(rest)
    length = lengths.pop() if len(lengths) == 1 else ""
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return _Body(rest)
    size = int(length)
    return _Body(rest[:size], size if len(rest) >= size else None)


def _dechunked(rest: bytes) -> _Body:
    content, at = b"", 0
    while found := _CHUNK_SIZE.match(rest, at):
        size = int(found[1], 16)
        at = found.end()
        if size == 0:
            end = _TRAILERS.match(rest, at)  # fields may follow the last chunk; the empty line ends the answer
            return _Body(content, None if end is None else end.end())
        content += rest[at : at + size]
        at += size
        end = _END_OF_LINE.match(rest, at)
        if end is None:
            return _Body(content, broken=len(rest) > at + 1)
        at = end.end()
    return _Body(content, broken=b"\n" in rest[at:])
