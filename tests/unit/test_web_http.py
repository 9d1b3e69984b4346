"""The head of a request: what it is, or that it is none."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.status.listener import NotHttp, parse_head


@pytest.mark.parametrize(
    ("line", "method", "path"),
    [
        ("GET /healthz HTTP/1.1", "GET", "/healthz"),
        ("GET /healthz HTTP/1.0", "GET", "/healthz"),
        ("HEAD /readyz?verbose=1 HTTP/1.1", "HEAD", "/readyz"),
        ("GET /health%7A HTTP/1.1", "GET", "/healthz"),
        ("GET http://bridge.example:8099/healthz HTTP/1.1", "GET", "/healthz"),
        ("OPTIONS * HTTP/1.1", "OPTIONS", "*"),
        ("GET //healthz HTTP/1.1", "GET", "//healthz"),
    ],
)
def test_the_first_line(line: str, method: str, path: str) -> None:
    request = parse_head(f"{line}\r\nHost: localhost".encode())
    assert (request.method, request.path) == (method, path)


def test_fields_are_found_in_any_case_and_all_of_them() -> None:
    request = parse_head(b"GET / HTTP/1.1\nHOST:a\nhost:  b \nX-Empty:")
    assert request.fields == {"host": ["a", "b"], "x-empty": [""]}


@pytest.mark.parametrize(
    "head",
    [
        b"", b"GET", b"GET /", b"GET / HTTP/2.0", b"GET  / HTTP/1.1", b"GET / / HTTP/1.1", b"G@T / HTTP/1.1",
        b"GET / HTTP/1.1\r\nno colon", b"GET / HTTP/1.1\r\nHost: a\r\n folded", b"GET / HTTP/1.1\r\nHost : a",
        b"GET http://[::1/ HTTP/1.1",
    ],
)  # fmt: skip
def test_what_is_no_request(head: bytes) -> None:
    with pytest.raises(NotHttp):
        parse_head(head)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(b"GET / HTTP/1.1\r\n".__add__)))
def test_any_bytes_are_a_request_or_none(head: bytes) -> None:
    with suppress(NotHttp):
        assert parse_head(head).method.isprintable()
