import base64

import pytest

from bace_bridge.demo.outside import is_signed
from bace_bridge.sinks.webhook.message import signed_headers, signing_key

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
NOW = 1_769_817_600.0
BODY = b'{"n":1}'


def headers(*secrets: str, now: float = NOW) -> dict[str, str]:
    return signed_headers("evt_1", BODY, [signing_key(one) for one in secrets], now=now)


@pytest.mark.parametrize("off", [-300, 0, 300])
def test_what_the_bridge_signs_is_taken(off: int) -> None:
    assert is_signed(headers(SECRET, now=NOW + off), BODY, SECRET, now=NOW)
    assert is_signed(headers(OTHER, SECRET), BODY, SECRET, now=NOW), "while secrets rotate"


@pytest.mark.parametrize("off", [-301, 301])
def test_an_old_recording_and_one_from_the_future_are_refused(off: int) -> None:
    assert not is_signed(headers(SECRET, now=NOW + off), BODY, SECRET, now=NOW)


@pytest.mark.parametrize(
    "given",
    [
        {},
        headers(),
        headers(OTHER),
        headers(SECRET) | {"webhook-id": "evt_2"},
        headers(SECRET) | {"webhook-timestamp": str(int(NOW) + 1)},
        headers(SECRET) | {"webhook-timestamp": "soon"},
        headers(SECRET) | {"webhook-timestamp": "\N{SUPERSCRIPT TWO}"},
        headers(SECRET) | {"webhook-signature": "v1,\N{LATIN SMALL LETTER A WITH DIAERESIS}"},
    ],
)
def test_anything_else_is_refused(given: dict[str, str]) -> None:
    assert not is_signed(given, BODY, SECRET, now=NOW)


def test_another_body_is_refused() -> None:
    assert not is_signed(headers(SECRET), BODY + b" ", SECRET, now=NOW)
