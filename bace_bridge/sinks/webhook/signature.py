"""Standard Webhooks: the headers that let a receiver check who sent a message, and when."""

import base64
import hmac
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105  # how secrets begin, not a secret


def signing_key(secret: str) -> bytes:
    """The bytes that sign; ValueError where the secret is not base64."""
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def signed_headers(message_id: str, body: bytes, keys: Sequence[bytes], *, now: float) -> dict[str, str]:
    """The headers of one attempt, with a signature by each key.

    Without a key the id and the timestamp are sent all the same: receivers recognise repetitions by the id.
    """
    timestamp = str(int(now))
    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp}
    if keys:
        signed = f"{message_id}.{timestamp}.".encode() + body
        headers["webhook-signature"] = " ".join(_signature(key, signed) for key in keys)
    return headers


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii")
