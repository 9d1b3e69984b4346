"""Secrets that somebody repeats, however they write them down."""

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from unicodedata import normalize
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bace_bridge.redaction import MASK, Redaction

ODD = "pä ss/\"+&<47\\n'=%2B"
SECRETS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="*") | st.sampled_from("%&\\/+=\"'<;u00 nt#x2B"),
    min_size=4,
    max_size=24,
)


def php_entities(text: str) -> str:
    return "".join(f"&#{ord(char)};" if ord(char) > 126 or char in "&<>\"'" else char for char in text)


WAYS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": json.dumps,
    "JSON as UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON as PHP": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "URL": lambda text: quote(text, safe=""),
    "URL path": quote,
    "URL in small letters": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "form": quote_plus,
    "URL in a URL": lambda text: quote(quote(text, safe=""), safe=""),
    "HTML": html.escape,
    "HTML as PHP": php_entities,
    "JSON in HTML": lambda text: html.escape(json.dumps(text)),
    "Basic": lambda text: "Basic " + b64encode(f"me@example.org:{text}".encode()).decode(),
    "Basic without padding": lambda text: b64encode(f"bridge:{text}".encode()).decode().rstrip("="),
    "UTF-8 taken for Latin-1": lambda text: text.encode().decode("latin-1"),
    "Latin-1 taken for UTF-8": lambda text: text.encode("latin-1", "replace").decode("utf-8", "replace"),
    "ASCII": lambda text: text.encode("ascii", "replace").decode(),
    "decomposed": lambda text: normalize("NFD", text),
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64 for URLs": lambda text: urlsafe_b64encode(f"?{text}~".encode()).decode(),
    "base64 of a form": lambda text: b64encode(f"grant_type=password&password={quote_plus(text)}&x=".encode()).decode(),
}


@pytest.mark.parametrize("secret", ["dem0", "canary-4711", ODD, "näh€😀", "aB%2BcD%2FeF%3D", "x" * 300])
@pytest.mark.parametrize("way", WAYS)
def test_a_secret_is_masked_however_it_is_written(way: str, secret: str) -> None:
    if way == "base64 of a form" and quote_plus(secret) != secret:
        pytest.skip("encoded in base64: seen where it is not encoded within")
    written = WAYS[way](secret)
    said = Redaction([secret])(f"the login {written} is wrong")
    assert said.startswith("the login ")
    assert said.endswith(" is wrong")
    assert MASK in said
    assert len(said) < len("the login  is wrong") + len(MASK) + len("Basic ") + 2 * len("&quot;")


@given(SECRETS, st.sampled_from(sorted(WAYS.keys() - {"base64 of a form"})), st.text(max_size=8), st.text(max_size=8))
def test_what_goes_in_encoded_does_not_come_out(secret: str, way: str, before: str, after: str) -> None:
    written = WAYS[way](secret).strip('"')
    said = Redaction([secret])(f"{before} {written} {after}")
    assert written not in said or written in f"{before} {after}" or written in MASK


@given(st.text(), st.lists(st.text(max_size=6), max_size=3), st.booleans())
def test_any_text_goes_in(text: str, secrets: list[str], cut_off: bool) -> None:
    said = Redaction(secrets)(text, cut_off=cut_off)
    if not any(secrets):
        assert said == text


@pytest.mark.parametrize(
    ("secret", "text", "said"),
    [
        ("a", "a data session has no a", "*** data session has no ***"),
        ("ab", "tab cab abc ab=1 (ab) %61b", "tab cab abc ***=1 (***) ***"),
        ("1", "429 1 21 Basic unauthorized1 and longer words", "429 *** 21 Basic unauthorized1 and longer words"),
        (".", "Not found. See there.", "Not found. See there."),
        ("e", "the end", "the end"),
        ("xyz", "Basic " + b64encode(b"user:xyz").decode(), "Basic ***"),
        ("", "as it is", "as it is"),
        ("data", "a datapoint", "a ***point"),
    ],
)  # fmt: skip
def test_a_short_secret_is_masked_where_it_stands_alone(secret: str, text: str, said: str) -> None:
    assert Redaction([secret])(text) == said


@pytest.mark.parametrize("way", [way for way in WAYS if "form" not in way and "Basic" not in way])
@pytest.mark.parametrize("secret", ["canary-4711-canary", ODD + "/tail-4711"])
def test_of_a_text_that_was_cut_off_no_beginning_of_a_secret_is_left(way: str, secret: str) -> None:
    written = WAYS[way](secret)
    for kept in range(8, len(written)):
        said = Redaction([secret])("the login " + written[:kept], cut_off=True)
        assert "canary-" not in said
        assert written[:8].strip('"') not in said.removeprefix("the login ").removeprefix("Basic "), (kept, said)


def test_tokens_are_learned_and_the_last_ones_are_remembered() -> None:
    redaction = Redaction(["passw0rd"])
    for number in range(1000):
        redaction.learn_token(f"token-{number:04}", None)
    assert redaction("passw0rd token-0999 token-0980 token-0001") == "*** *** *** token-0001"
    assert redaction("also this-one", also=["this-one"]) == "also ***"


def test_the_longer_of_two_secrets_goes_whole() -> None:
    assert Redaction(["pass", "passw0rd", "w0rd-more"])("passw0rd-more, pass") == "***, ***"


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"base64 of a form", "ASCII", "UTF-8 taken for Latin-1"}))
def test_the_signature_of_a_csv_link_is_masked_though_it_is_unknown(way: str) -> None:
    signature = "_TyPchAylWAkMnmBJrLmv2v25drCWgjNkZ1i-riI2Tw"
    written = WAYS[way](f'{{"link": "https://b/csv/86d7?revision=0&expires=1796687079&signature={signature}"}}')
    said = Redaction()(f"got {written} and more")
    assert MASK in said
    assert signature[4:24] not in said
    assert b64encode(signature.encode()).decode()[6:20] not in said
    assert said.startswith("got ")
    assert said.endswith(" and more")
    cut = Redaction().quoted(f"{' ' * 4000}signature={signature}{signature * 9}", 5000)
    assert signature[:20] not in cut
