"""Text files as editors leave them, and whatever else may be in one: a text, or a named mistake, and soon."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bace_bridge.config.load import load
from bace_bridge.config.models import Config
from bace_bridge.errors import ConfigError
from bace_bridge.simulator import scenario
from bace_bridge.sinks.webhook.config import WebhookConfig

SECRET = "whsec_" + "A" * 40
OTHER = "whsec_" + "B" * 40
TOKEN = "cloud: {access_token: t}\n"
BOM = b"\xef\xbb\xbf"


def mistakes(folder: Path, content: bytes, env: Mapping[str, str] | None = None) -> list[str]:
    file = folder / "bridge.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file, env or {})
    return [str(one).replace(str(folder), "") for one in caught.value.mistakes]


def with_secrets(folder: Path, password: bytes, signing: bytes = SECRET.encode()) -> Config:
    (folder / "password").write_bytes(password)
    (folder / "signing").write_bytes(signing)
    file = folder / "bridge.yaml"
    file.write_text(
        "cloud: {client_id: a, client_secret: b, username: u, password_file: password}\n"
        "webhooks: [{name: w, url: 'http://h/', secret_file: signing}]\n"
    )
    return load(file, {})


@pytest.mark.parametrize(
    "content",
    [
        b"pass w\xc3\xb6rd",
        b"pass w\xc3\xb6rd\n",
        b"pass w\xc3\xb6rd\r\n",
        b"pass w\xc3\xb6rd\r",
        b"pass w\xc3\xb6rd\n\n\n",
        b"pass w\xc3\xb6rd \t\n",
        b"\r\n \r\npass w\xc3\xb6rd\r\n\r\n",
        BOM + b"pass w\xc3\xb6rd\r\n",
        BOM + b"\n" + BOM + b"pass w\xc3\xb6rd",
    ],
)
def test_a_secret_is_the_same_however_an_editor_saved_it(tmp_path: Path, content: bytes) -> None:
    password = with_secrets(tmp_path, content).cloud.password

    assert password is not None
    assert password.get_secret_value() == "pass wörd"


@pytest.mark.parametrize("between", ["\n", "\r\n", "\r", "\n\n", "\r\n\r\n", "  \n\t\n", "\n\ufeff"])
def test_two_signing_secrets_are_two_whatever_is_between_them(tmp_path: Path, between: str) -> None:
    signing = (
        with_secrets(tmp_path, b"p", f"\ufeff{SECRET}{between}{OTHER}\r\n".encode()).sinks_of(WebhookConfig)[0].secret
    )

    assert [one.get_secret_value() for one in signing or ()] == [SECRET, OTHER]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (BOM + b"\r\n \r\n", "is empty"),
        (b"geheim\0", "holds a control character on line 1 (U+0000)"),
        (b"geheim\n\x1b[A", "holds a control character on line 2 (U+001B)"),
        (b"gehei\xe4m", "is not UTF-8 text (byte 6) (save it as UTF-8)"),
        ("geheim".encode("utf-16"), "is UTF-16 text (save it as UTF-8)"),
        (b"\xfe\xff" + "geheim".encode("utf-16-be"), "is UTF-16 text (save it as UTF-8)"),
        (b"\xed\xa0\x80geheim", "is not UTF-8 text (byte 1)"),
        (b"geheim\r\nzweites", "holds 2 lines, not password alone"),
        (b"geheim" * 2**14, "is larger than 64KiB"),
    ],
)
def test_a_file_that_holds_no_secret_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_secrets(tmp_path, content)

    (line,) = map(str, caught.value.mistakes)
    assert line.startswith(f"cloud.password_file: {tmp_path / 'password'} {problem}")
    assert "geheim" not in line


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"cloud:\n\taccess_token: t\n", "line 2, column 1: a tab; indent with spaces"),
        (b"cloud:\n  \taccess_token: t\n", "line 2, column 3: a tab; indent with spaces"),
        (b"cloud: {}\nmqtt:\n  - name: a\n\turl: b\n", "line 4, column 1: a tab; indent with spaces"),
        (b"cloud:\taccess_token\n", "line 1, column 7: a tab; indent with spaces"),
        (b"\xe2\x80\xa8cloud:\n\ta: t\n", "line 3, column 1: a tab; indent with spaces"),
        (TOKEN.encode("utf-16"), "is UTF-16 text (save it as UTF-8)"),
        (b"cloud: \0\n", "holds a control character on line 1 (U+0000)"),
        (b"x: !!bool perhaps\n", "line 1, column 4: a value that is no bool"),
        (b'x: !!int ""\n', "line 1, column 4: a value that is no int"),
        (b'x: !!float ""\n', "line 1, column 4: a value that is no float"),
        (b"x: 0b_\n", "line 1, column 4: a value that is no int"),
        (b"x: !!timestamp never\n", "line 1, column 4: a tag (!)"),
        (b"x: !!binary geheim\n", "line 1, column 4: a tag (!)"),
        (b"x: !!set {a}\n", "line 1, column 4: a tag (!)"),
        (b"x: " + b"9" * 5000 + b"\n", "line 1, column 4: a number of more than 100 digits"),
        (b"x: 0x" + b"f" * 400 + b"\n", "line 1, column 4: a number of more than 100 digits"),
        (b"x: 1" + b":1" * 400_000 + b"\n", "line 1, column 4: a number of more than 100 digits"),
        (b"x: 1" + b":1" * 400 + b".5\n", "line 1, column 4: a number of more than 100 digits"),
        (b"a: [" + b"a," * 500_000 + b"]\n", "line 1, column 40001: with its aliases (*) it holds more than 20000"),
        (b"- " * 100_000, "is nested too deeply"),
        (b"{a: " * 100_000, "is nested too deeply"),
        (b"? " * 100_000, "is nested too deeply"),
        (b"#" * 10_000_000, "is larger than 1MiB"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_one_mistake_with_its_place(tmp_path: Path, content: bytes, found: str) -> None:
    (line,) = mistakes(tmp_path, content)

    assert line.startswith(f"/bridge.yaml: {found}")


def test_a_configuration_is_the_same_with_marks_and_line_ends_of_windows(tmp_path: Path) -> None:
    file = tmp_path / "bridge.yaml"
    file.write_bytes(TOKEN.encode())
    plain = load(file, {})
    file.write_bytes(BOM + TOKEN.encode().replace(b"\n", b"\r\n") + BOM + b"mqtt: []\r\n")

    assert load(file, {}) == plain


@pytest.mark.parametrize("key", ["client_id", "client_secret", "username", "password"])
def test_half_a_character_is_named_and_two_halves_are_one(tmp_path: Path, key: str) -> None:
    cloud = dict.fromkeys(("client_id", "client_secret", "username", "password"), "x")
    (line,) = mistakes(tmp_path, json.dumps({"cloud": {**cloud, key: "a\ud800"}}).encode())
    assert line.startswith(f"cloud.{key}: holds the character U+D800, which is half a character")

    (tmp_path / "bridge.yaml").write_text(json.dumps({"cloud": {**cloud, "client_id": "😀"}}))
    assert load(tmp_path / "bridge.yaml", {}).cloud.client_id == "😀"


@pytest.mark.parametrize("place", ['"\\ud800": 1', 'http: {"\\ud800": 1}', 'datatypes: {1: {name: "\\udfff"}}'])
def test_half_a_character_is_refused_wherever_it_is(tmp_path: Path, place: str) -> None:
    assert any("half a character" in line for line in mistakes(tmp_path, f"{TOKEN}{place}\n".encode()))


@pytest.mark.parametrize(
    "text", ["${A:-" * 150_000, "${A:-" + "x" * 900_000, "${" * 300_000, "${A" * 300_000, "${A:-$" * 100]
)
def test_variables_that_are_not_closed_are_one_mistake_and_soon(tmp_path: Path, text: str) -> None:
    """Each of them took minutes, or filled the terminal."""
    found = mistakes(tmp_path, f"cloud: {{access_token: '{text}'}}".encode())

    assert found == ["cloud.access_token: holds ${ without a variable (write ${NAME}, or $${ for a plain ${)"]


def test_a_variable_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    text = "cloud: {client_id: a, client_secret: '${S}', username: '${U}', password: '${P:-x}'}"
    bytes_of_latin_1 = "j\udce4ger"
    found = mistakes(tmp_path, text.encode(), {"S": "s", "U": bytes_of_latin_1, "P": bytes_of_latin_1})

    assert found == [
        "cloud.username: the environment variable U is not UTF-8 text",
        "cloud.password: the environment variable P is not UTF-8 text",
    ]


@pytest.mark.parametrize("value", ["t", "t\n", "t\r", "t\r\n", "\ufefft"])
def test_a_variable_has_no_mark_and_no_line_end(tmp_path: Path, value: str) -> None:
    (tmp_path / "bridge.yaml").write_text("cloud: {access_token: '${T}'}")
    token = load(tmp_path / "bridge.yaml", {"T": value}).cloud.access_token

    assert token is not None
    assert token.get_secret_value() == "t"


def test_a_scenario_is_read_in_the_same_way(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_bytes(BOM + b"devices:\r\n- {label: a}\r\n")
    assert [one.label for one in scenario.load(file).devices] == ["a"]
    for content, found in (
        ("devices: []".encode("utf-16"), "is UTF-16 text"),
        (b"devices:\n\t- {label: a}\n", "a tab; indent with spaces"),
        (b'devices: [{label: "\\ud800"}]', r"devices\[0\].label: holds the character U\+D800"),
        (b"devices: !!bool x", "a value that is no bool"),
        (b"[" * 5000, "is nested too deeply"),
        (b"seed: 1\nseed: 2\n", "seed: is given twice"),
    ):
        file.write_bytes(content)
        with pytest.raises(scenario.ScenarioError, match=found):
            scenario.load(file)


odd_bytes = st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
around = st.sampled_from([b"\n", b"\r\n", b"\r", b" ", b"\t", BOM, b"\0"])
odd_yaml = st.text("ab01:-?[]{},&*!|>'\"%@`#\\ud8<=~._\n \t\ufeff\x85\u2028", max_size=60)
odd_tags = st.sampled_from(["bool", "int", "float", "null", "merge", "str", "timestamp", "binary", "set", "omap"])
tagged = st.builds(lambda tag, rest: f"a: !!{tag} {rest}".encode(), odd_tags, odd_yaml)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(around | st.sampled_from([b"pass word", b"p\xc3\xb6"]), max_size=4).map(b"".join) | odd_bytes)
def test_any_bytes_are_a_password_or_a_mistake(tmp_path: Path, content: bytes) -> None:
    with suppress(ConfigError):
        password = with_secrets(tmp_path, content).cloud.password
        assert password is not None
        value = password.get_secret_value()
        assert value
        assert value == value.strip("\ufeff \t\r\n")
        assert "\n" not in value
        assert value.encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(around | st.sampled_from([SECRET.encode(), OTHER.encode()]), max_size=6).map(b"".join) | odd_bytes)
def test_any_bytes_are_signing_secrets_or_a_mistake(tmp_path: Path, content: bytes) -> None:
    with suppress(ConfigError):
        found = with_secrets(tmp_path, b"p", content).sinks_of(WebhookConfig)[0].secret or ()
        assert {one.get_secret_value() for one in found} <= {SECRET, OTHER}
        assert len(found) == content.count(b"whsec_")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500)
@given(odd_yaml.map(str.encode) | odd_bytes | tagged)
def test_any_document_is_a_configuration_or_mistakes_with_words(tmp_path: Path, content: bytes) -> None:
    for line in mistakes(tmp_path, content):
        assert line.isprintable()
        assert "is not valid here" not in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("${}:-AB\\x", max_size=40), st.dictionaries(st.sampled_from("AB"), st.text(max_size=9)))
def test_any_text_with_variables_is_a_text_or_a_mistake(tmp_path: Path, text: str, env: dict[str, str]) -> None:
    (tmp_path / "bridge.yaml").write_text(json.dumps({"cloud": {"access_token": "t", "groups": [text]}}))
    with suppress(ConfigError):
        assert isinstance(load(tmp_path / "bridge.yaml", env).cloud.groups[0], str)
