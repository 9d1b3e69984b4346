from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from bace_bridge.errors import DeliveryFailed, SinkDisabled
from bace_bridge.redaction import Redaction
from bace_bridge.sinks.webhook.message import LONGEST_ANSWER, LONGEST_QUOTE, excerpt, judge

NOW = 1_769_817_600.0  # 2026-01-31T00:00:00Z


def answered(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> object:
    return judge(status, CIMultiDict(headers or {}), body, now=NOW, redaction=Redaction())


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert answered(status, body=b"whatever") is None


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (410, {}),
        (200, {"webhook-delivery": "disable"}),
        (500, {"Webhook-Delivery": " Disable "}),
        (410, {"retry-after": "10"}),
    ],
)
def test_the_endpoint_disables_itself(status: int, headers: dict[str, str]) -> None:
    assert isinstance(answered(status, headers), SinkDisabled)


def test_another_webhook_delivery_header_means_nothing() -> None:
    assert answered(200, {"webhook-delivery": "enable"}) is None


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure(status: int) -> None:
    failed = answered(status, {"location": "https://elsewhere.example/token"})
    assert isinstance(failed, DeliveryFailed)
    assert str(failed) == f"HTTP {status}: redirects are not followed; configure the final address"


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "120"}, 120.0),
        (503, {"Retry-After": "Sat, 31 Jan 2026 00:01:30 GMT"}, 90.0),
        (429, {}, 0.0),
        (503, {"retry-after": "soon"}, 0.0),
        (500, {"retry-after": "120"}, 0.0),
        (404, {}, 0.0),
    ],
)
def test_only_429_and_503_ask_for_silence(status: int, headers: dict[str, str], seconds: float) -> None:
    failed = answered(status, headers)
    assert isinstance(failed, DeliveryFailed)
    assert failed.retry_after == seconds


@pytest.mark.parametrize("wrong_by", [-3600, 3600])
def test_a_date_counts_by_the_clock_of_the_endpoint(wrong_by: int) -> None:
    dates = {"Date": formatdate(NOW + wrong_by, usegmt=True), "Retry-After": formatdate(NOW + wrong_by + 90)}
    failed = answered(503, dates)
    assert isinstance(failed, DeliveryFailed)
    assert failed.retry_after == 90.0


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", ""),
        (b"out of\r\n\torder\n", "out of order"),
        (b"\x1b[31mred\x00", "[31mred"),
        ("grün".encode(), "grün"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_a_body_becomes_one_printable_line(body: bytes, line: str) -> None:
    assert excerpt(body, Redaction()) == line


@given(st.binary(max_size=LONGEST_ANSWER))
def test_what_is_said_and_kept_of_an_answer_is_short_and_printable(body: bytes) -> None:
    failed = answered(500, body=body)
    assert isinstance(failed, DeliveryFailed)
    assert len(str(failed)) <= len("HTTP 500: ") + LONGEST_QUOTE
    assert len(failed.answer) <= LONGEST_ANSWER
    assert str(failed).isprintable()
    assert failed.answer.isprintable()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_secret_that_is_cut_off_with_the_answer_is_not_shown_either(cut: int) -> None:
    secret = "T0kenT0kenT0"
    body = (b"x" * LONGEST_ANSWER + secret.encode())[cut : LONGEST_ANSWER + cut]
    assert "T0k" not in excerpt(body, Redaction((secret,)))


def test_a_message_quotes_the_body_but_nothing_private() -> None:
    body = b"Cannot POST /hooks/T0kenT0ken"
    failed = judge(404, {}, body, now=NOW, redaction=Redaction(("/hooks/T0kenT0ken", "T0kenT0ken")))
    assert isinstance(failed, DeliveryFailed)
    assert str(failed) == "HTTP 404: Cannot POST ***"
    assert failed.answer == "Cannot POST ***", "what is kept with the attempt is shown to people too"
    assert str(answered(500)) == "HTTP 500"
