from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bace_bridge.formats import PER_CONNECTION, header_name_problem, header_value_problem
from bace_bridge.sinks.webhook.config import WebhookConfig
from bace_bridge.sinks.webhook.message import origin, request_bytes, request_head


def head(url: str, **headers: str) -> list[str]:
    return request_head(url, "1.2", headers).decode().split("\r\n")


def target(url: str) -> str:
    return head(url)[0].removeprefix("POST ").removesuffix(" HTTP/1.1")


@pytest.mark.parametrize(
    "path",
    [
        "/api/trig/triggers/manual/run?sp=%2Ftrig%2Frun&sig=aB%2BcD%2FeF%3D",
        "/a%2Fb%2fc/%E4/%41/%zz/%",
        "/a+b?q=c+d%20e",
        "/a;v=1,2;b?x;y&&z==&=",
        "/x?",
        "/?",
        "/??a?b",
        "/a/../b/./c//d/..",
        "//double",
        "/\"<>\\^`{|}[]'()*!$~:@",
        "/%C3%BC?u=https://user:p@host/%23",
    ],
)
def test_path_and_query_go_out_as_they_are_written(path: str) -> None:
    assert target(f"https://user:pass@example.org:8443{path}") == path
    assert target(f"http://example.org{path}#fragment/?x") == path


@pytest.mark.parametrize(
    ("url", "line"),
    [("http://h", "/"), ("http://h#f", "/"), ("http://h?a=%2F", "/?a=%2F"), ("HTTPS://H?", "/?"), ("http://h/", "/")],
)
def test_an_empty_path_is_a_slash(url: str, line: str) -> None:
    assert target(url) == line


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Example.org:80/", "example.org"),
        ("https://example.org:443/", "example.org"),
        ("http://example.org:443/", "example.org:443"),
        ("http://u:p@example.org:8080/", "example.org:8080"),
        ("http://[::1]:8080/", "[::1]:8080"),
        ("http://[fe80::1%eth0]:8080/", "[fe80::1]:8080"),
        ("https://b\u00fccher.example/", "xn--bcher-kva.example"),
    ],
)
def test_the_host_is_named_as_http_wants_it(url: str, host: str) -> None:
    assert head(url)[1] == f"Host: {host}"
    assert "@" not in str(origin(url))


@pytest.mark.parametrize(
    ("login", "sent"),
    [
        ("user:pass", b"user:pass"),
        ("user", b"user:"),
        (":pass", b":pass"),
        ("u%40x:p%3A%2F", b"u@x:p:/"),
        ("u:p%C3%A4", b"u:p\xc3\xa4"),
        ("u:p%E4", b"u:p\xe4"),
        ("u:\u2603", b"u:\xe2\x98\x83"),
        ("u:p@ss", b"u:p@ss"),
    ],
)
def test_a_login_in_the_url_goes_out_in_its_own_bytes(login: str, sent: bytes) -> None:
    assert f"Authorization: Basic {b64encode(sent).decode()}" in head(f"https://{login}@h/")


def test_no_login_is_no_header() -> None:
    for login in ("", "@", ":@"):
        assert head(f"https://{login}h/")[1:] == [
            "Host: h",
            "Accept: */*",
            "Content-Type: application/cloudevents+json",
            "User-Agent: bace-bridge/1.2",
            "",
        ]


def test_a_configured_header_takes_the_place_of_the_bridge_s() -> None:
    lines = head("http://u:p@h/", ACCEPT="text/plain", authorization="Bearer b")
    assert [line for line in lines if line.lower().startswith(("accept:", "authorization:"))] == [
        "ACCEPT: text/plain", "authorization: Bearer b",
    ]  # fmt: skip


def test_the_body_has_its_length_in_bytes() -> None:
    sent = request_bytes(b"POST / HTTP/1.1\r\n", {"webhook-id": "e"}, "\u00fc".encode())
    assert sent == b"POST / HTTP/1.1\r\nwebhook-id: e\r\nContent-Length: 2\r\n\r\n\xc3\xbc"


def config(**given: object) -> WebhookConfig:
    return WebhookConfig.model_validate({"name": "w", "url": "https://h/x", **given})


def refusal(**given: object) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**given)
    (found,) = caught.value.errors(include_url=False, include_input=False)
    return found["msg"]


@pytest.mark.parametrize(
    "url",
    [
        "https://h/t\u00fcr",
        "https://h/?q=\u2603",
        "https://h/\ufeff",
        "https://us%3Aer:pw@h/",
        "https://ho<st/",
        "https://ho'st/",
        "https://h%41/",
        "https://./",
        "https://a..b/",
        "https://[::1::2]/",
        "https://[v1.x]/",
        "https://a\u00adb/",
        "https://h\\x/",
        "https://h /",
        "https://h/a b",
        "https://h/\x7f",
        "https://h/ ",
        "https://\ud800/",
    ],
)
def test_urls_that_cannot_go_out_as_they_are_written_are_refused(url: str) -> None:
    assert refusal(url=url)


@pytest.mark.parametrize(
    "name", [*sorted(PER_CONNECTION), "Transfer-Encoding", "HOST", "webhook-Signature", "Content-type"]
)
def test_headers_of_the_bridge_and_of_the_connection_are_refused(name: str) -> None:
    assert "bace-bridge sets itself" in refusal(headers={name: "x"})


@pytest.mark.parametrize("name", ["a b", "", "a:", "\u00fc", "a\r\nb", "a\x00", "(a)", ":authority", "a/b"])
def test_names_that_are_none_are_refused(name: str) -> None:
    assert refusal(headers={name: "x"}) == "is not the name of an HTTP header"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a\r\nb", "must be a single line"),
        ("a\rb", "must be a single line"),
        *((f"a{chr(code)}b", f"U+{code:04X}") for code in (0, 1, 8, 0x0B, 0x0C, 0x1B, 0x1F, 0x7F, 0x80, 0x85, 0x9F)),
        ("\ud800", "half a character"),
    ],
)
def test_values_that_no_header_carries_are_refused(value: str, problem: str) -> None:
    assert problem in refusal(headers={"X-A": value})


def test_a_header_is_given_once_whatever_its_case() -> None:
    assert refusal(headers={"X-A": "1", "Authorization": "a", "x-a": "2"}).startswith("holds X-A twice")


@given(st.text(max_size=12), st.text(max_size=30))
def test_what_is_accepted_is_one_line_of_the_request(name: str, value: str) -> None:
    try:
        config(headers={name: value})
    except ValidationError:
        reserved = name.lower() in {*PER_CONNECTION, "content-type"}
        assert reserved or header_name_problem(name) or header_value_problem(value)
        return
    lines = request_head("https://h/", "1.2", {name: value}).split(b"\r\n")
    own = request_head("https://h/", "1.2", {}).split(b"\r\n")
    assert lines.count(f"{name}: {value}".encode()) == 1
    assert len(lines) == len(own) + (name.lower() not in {"accept", "user-agent"})


URLS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["http://", "https://", "HTTP://"]),
        st.sampled_from(["", "u:p@", "u%E4@", "\u2603:@", "a:b:c@"]),
        st.one_of(
            st.sampled_from(["h", "1.2.3.4", "[::1]", "b\u00fccher.example", "h."]),
            st.text(max_size=8),
            st.text(max_size=4).map("[fe80::1%{}]".format),
        ),
        st.sampled_from(["", ":1", ":80", ":443", ":", ":65535", ":0", ":x"]),
        st.one_of(st.sampled_from(["", "/", "?", "/%2F"]), st.text(max_size=12).map("/".__add__)),
    ),
)


@given(URLS)
def test_what_is_accepted_as_a_url_makes_a_request(url: str) -> None:
    try:
        accepted = config(url=url).url.get_secret_value()
    except ValidationError:
        return
    line, host, *_ = request_head(accepted, "1.2", {}).split(b"\r\n")
    assert line.count(b" ") == 2
    assert host.isascii()
    assert origin(accepted).raw_host
