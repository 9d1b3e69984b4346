"""An event as a signed request: the CloudEvents body, the signature, and the bytes that are sent."""

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
from multidict import CIMultiDict
from yarl import URL

from bace_bridge.events.types import DATA_CONTENT_TYPE, SEQUENCE_DIGITS, SPECVERSION, TYPE_PREFIX, Attempt
from bace_bridge.formats import iso_utc, request_target

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
