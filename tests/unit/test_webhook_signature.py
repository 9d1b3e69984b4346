import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from bace_bridge.sinks.webhook.message import signed_headers, signing_key


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def test_the_example_of_the_specification() -> None:
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', [key], now=1614265330.9)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.binary(min_size=24, max_size=64), st.text(max_size=200))
def test_standardwebhooks_verifies_it(key: bytes, text: str) -> None:
    body = text.encode()
    headers = signed_headers("evt_1", body, [key], now=time.time())
    Webhook(secret_of(key)).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(key)).verify(body + b" ", headers, json_parse=False)


def test_while_secrets_rotate_either_verifies() -> None:
    old, new, foreign = b"o" * 24, b"n" * 24, b"f" * 24
    headers = signed_headers("evt_1", b"{}", [new, old], now=time.time())
    for key in (old, new):
        assert Webhook(secret_of(key)).verify(b"{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(foreign)).verify(b"{}", headers)


def test_without_a_secret_there_is_no_signature() -> None:
    assert signed_headers("evt_1", b"{}", [], now=7.9) == {"webhook-id": "evt_1", "webhook-timestamp": "7"}


def test_the_key_is_what_base64_says() -> None:
    assert signing_key(secret_of(b"k" * 32)) == b"k" * 32
    with pytest.raises(ValueError, match="base64"):
        signing_key("whsec_no base64 at all")
