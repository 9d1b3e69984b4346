import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from bace_bridge.config.load import load
from bace_bridge.config.models import Config, warnings
from bace_bridge.config.values import StartFrom
from bace_bridge.errors import ConfigError
from bace_bridge.sinks.mqtt.config import MqttConfig
from bace_bridge.sinks.webhook.config import WebhookConfig

TOKEN = "cloud: {access_token: t0ken}\n"
SECRET = "whsec_" + "A" * 40
BOMB = "a: &a [x]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{before}'] * 10)}]\n" for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Ten to the eighth values, once every alias is written out."""


def load_text(folder: Path, text: str, env: Mapping[str, str] | None = None) -> Config:
    file = folder / "bridge.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, env or {})


def mistakes(folder: Path, text: str, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(folder, text, env)
    return [str(mistake) for mistake in caught.value.mistakes]


@pytest.mark.parametrize("listen", ["8099", '"8099"', "8099.5", "false", '":8099"', "localhost"])
def test_what_listen_takes_is_said_for_a_port_alone(tmp_path: Path, listen: str) -> None:
    (found,) = mistakes(tmp_path, f"{TOKEN}http: {{listen: {listen}}}\n")

    assert found.startswith("http.listen: must be host:port, such as 127.0.0.1:8099 (")


def test_quotes_are_not_the_cure_for_a_list_and_a_section_names_its_keys(tmp_path: Path) -> None:
    found = mistakes(tmp_path, f"{TOKEN}http: {{listen: [1]}}\nstore: {{url: 5}}\ndatatypes: {{6000: Pulse}}\n")

    assert found[:2] == [
        "store.url: must be text (put it in quotes)",
        "http.listen: must be text (a single one, not a list or a section)",
    ]
    assert found[2].startswith("datatypes.6000: must be a section with keys of its own (its keys: category, device")


def test_a_token_is_all_it_takes(tmp_path: Path) -> None:
    config = load_text(tmp_path, TOKEN)
    assert config.cloud.access_token is not None
    assert config.cloud.access_token.get_secret_value() == "t0ken"
    assert config.cloud.url == "https://dashboard.bace-iot.com"
    assert config.watch.session_interval == 10.0
    assert config.watch.start_from == StartFrom("now")
    assert config.store.path == Path("bace-bridge.db")
    assert config.sinks == ()
    assert (config.http.host, config.http.port) == ("127.0.0.1", 8099)


def test_every_mistake_of_every_stage_is_reported_at_once(tmp_path: Path) -> None:
    text = """
cloud:
  url: htp://x
  client_id: ${NOPE}
  client_secret: 12345678
  password_file: nofile
  requests_per_minute: 0
  requests_per_minute: 0
  timeot: 3s
watch: {session_interval: soon}
mqtt:
  - {name: a b, url: "mqtt://h", qos: 7, tls: {insecure: perhaps, ca_file: nope.pem}}
  - {name: a, url: "mqtt://h", keepalive: 250ms}
webhooks:
  - {name: a, url_file: nix, secret: whsec_geheim, headers: {Host: x}}
  - nix
httpx: {}
"""
    found = mistakes(tmp_path, text)
    assert [line.split(": ", 1)[0] for line in found] == [
        "cloud.requests_per_minute",
        "cloud.client_id",
        "cloud.password_file",
        "mqtt[0].tls.ca_file",
        "webhooks[0].url_file",
        "cloud.username",
        "webhooks[0].name",
        "mqtt[1].base_topic",
        "cloud.url",
        "cloud.client_secret",
        "cloud.requests_per_minute",
        "cloud.timeot",
        "watch.session_interval",
        "mqtt[0].name",
        "mqtt[0].qos",
        "mqtt[0].tls.insecure",
        "mqtt[1].keepalive",
        "webhooks[0].secret",
        "webhooks[0].headers.Host",
        "webhooks[1]",
        "httpx",
    ]
    assert "cloud.timeot: is not a key that bace-bridge knows (did you mean timeout?)" in found
    assert "watch.session_interval: must be a duration such as 10s, 5m or 7d" in found
    assert "cloud.requests_per_minute: is given twice, on lines 7 and 8 (keep one of the two)" in found
    assert not any("geheim" in line or "12345678" in line for line in found)


@pytest.mark.parametrize(
    ("cloud", "found"),
    [
        ("access_token: t, username: u", "cloud.access_token: cannot be combined with username"),
        ("username: u, client_id: c, client_secret: s", "cloud.password: is missing (or set access_token"),
        ("client_id: c, client_secret: s, password: p", "cloud.username: is missing (or set access_token"),
        ("access_token: ''", "cloud.access_token: is empty"),
    ],
)
def test_the_login_is_a_token_or_the_four_others(tmp_path: Path, cloud: str, found: str) -> None:
    (line,) = mistakes(tmp_path, f"cloud: {{{cloud}}}")
    assert line.startswith(found)


def test_each_missing_key_of_the_login_is_named(tmp_path: Path) -> None:
    found = [line.partition(" (")[0] for line in mistakes(tmp_path, "cloud: {groups: []}")]
    assert found == [f"cloud.{key}: is missing" for key in ("client_id", "client_secret", "username", "password")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is empty (start from a copy of bridge.example.yaml)"),
        ("# nothing\n", "is empty (start from a copy of bridge.example.yaml)"),
        ("- a\n", "must hold sections such as cloud: and mqtt:"),
        ("cloud:\n  url: a: b\n", "line 2, column 9: a ':' is not expected here (check the indentation; "),
        ("cloud:\n  url:a\n  groups: []\n", "line 3, column 9: a ':' is not expected here (check the indentation; "),
        ("cloud:\n  a: b\n c: d\n", "line 3, column 2: is indented unlike the lines above (keys of one section"),
        ("mqtt:\n- a: b\n  - c: d\n", "line 3, column 3: is indented unlike the lines above (keys of one section"),
        ("cloud:\n  password: 'a'b'\n", "line 2, column 16: text follows a closing quote (write ' twice"),
        ("cloud:\n  password: 'ab\n", "line 3, column 1: a quote is not closed"),
        ("mqtt: [{a: b\nhttp: {}\n", "line 2, column 5: a [ or { before this is not closed, or a comma is missing"),
        ("cloud: [\n", "line 2, column 1: expected the node content"),
        ("a: &a [*a]\n", "line 1, column 4: an alias (*) refers to itself"),
        ("cloud: x\n---\nhttp: y\n", "line 2, column 1: but found another document"),
        ("cloud: \x07\n", "holds a control character on line 1 (U+0007)"),
        ("cloud: {password: *geheim}\n", "line 1, column 19: found undefined alias …"),
        (
            "cloud: {password: !geheim x}\n",
            "line 1, column 19: a tag (!) is not allowed: write a plain value",
        ),
        ("!!python/object/apply:os.system ['echo geheim']\n", "line 1, column 1: a tag (!) is not allowed"),
        ("cloud: {!!python/name:geheim a: b}\n", "line 1, column 9: a tag (!) is not allowed: write a plain value"),
        (BOMB, "line 1, column 1: with its aliases (*) it holds more than 20000 values (write out what"),
        ("[" * 1000 + "\n", "is nested too deeply"),
        ("#" * (2**20 + 1), "is larger than 1MiB"),
    ],
)
def test_what_is_no_yaml_is_one_mistake_with_its_place(tmp_path: Path, text: str, found: str) -> None:
    (line,) = mistakes(tmp_path, text)
    assert line.startswith(f"{tmp_path / 'bridge.yaml'}: {found}")
    assert "geheim" not in line


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist \(copy bridge\.example\.yaml"):
        load(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="is larger than 1MiB"):
        load(Path("/dev/zero"), {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"cloud: \xe4\n")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 8\)"):
        load(tmp_path / "latin.yaml", {})


def test_a_key_left_empty_means_its_default(tmp_path: Path) -> None:
    config = load_text(tmp_path, TOKEN + "mqtt:\nhttp:\nwatch:\n  session_interval:\n")
    assert config == load_text(tmp_path, TOKEN)


def test_variables(tmp_path: Path) -> None:
    text = """
cloud:
  client_id: ${TOKEN}
  client_secret: ${TOKEN}
  username: u
  password: p
  requests_per_minute: ${RPM:-60}
  groups: ["$${x}", "${EMPTY:-d}", "a${A}b"]
mqtt: [{name: m, url: "mqtt://h", qos: "${QOS}"}]
"""
    env = {"TOKEN": "${NOT} ${READ} again: *", "EMPTY": "", "A": "-", "QOS": "2"}
    config = load_text(tmp_path, text, env)
    assert config.cloud.client_secret is not None
    assert config.cloud.client_secret.get_secret_value() == "${NOT} ${READ} again: *"
    assert config.cloud.requests_per_minute == 60
    assert config.cloud.groups == ("${x}", "d", "a-b")
    assert config.sinks_of(MqttConfig)[0].qos == 2


def test_variables_that_are_not_set_are_reported_with_path_and_name(tmp_path: Path) -> None:
    text = TOKEN + 'webhooks: [{name: w, url: "${URL}", secret: ["${A}", "${B"]}]\n'
    assert mistakes(tmp_path, text) == [
        "webhooks[0].url: the environment variable URL is not set (set it, or write ${URL:-default})",
        "webhooks[0].secret[0]: the environment variable A is not set (set it, or write ${A:-default})",
        "webhooks[0].secret[1]: holds ${ without a variable (write ${NAME}, or $${ for a plain ${)",
    ]


def test_secrets_come_from_files_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" t\n\n", encoding="utf-8")
    (tmp_path / "url").write_text("https://h/x\n", encoding="utf-8")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "two").write_text(f"{SECRET}\n{SECRET}BBBB\n", encoding="utf-8")
    (credentials / "one").write_text(f"{SECRET}\r\n", encoding="utf-8")
    text = """
cloud: {client_id: c, client_secret: s, username: u, password_file: password}
webhooks:
  - {name: w, url_file: url, secret_file: "${CREDENTIALS_DIRECTORY}/one"}
  - {name: rotating, url_file: url, secret_file: "${CREDENTIALS_DIRECTORY}/two"}
"""
    config = load_text(tmp_path, text, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert config.cloud.password is not None
    assert config.cloud.password.get_secret_value() == "t"
    one, other = config.sinks_of(WebhookConfig)
    assert one.url.get_secret_value() == "https://h/x"
    assert [secret.get_secret_value() for secret in one.secret or ()] == [SECRET]
    assert [secret.get_secret_value() for secret in other.secret or ()] == [SECRET, SECRET + "BBBB"]


def test_files_that_do_not_give_a_secret(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "bad").write_text("geheim", encoding="utf-8")
    text = """
cloud: {access_token_file: none, access_token: x}
mqtt:
  - {name: m, url: "mqtt://h", username: u, password_file: none}
  - {name: n, url: "mqtt://i", username: u, password_file: empty}
webhooks:
  - {name: w, url_file: bad, secret_file: bad}
  - {name: x, url_file: "https://h/geheim", secret_file: whsec_geheim}
"""
    found = mistakes(tmp_path, text)
    assert found[:3] == [
        "cloud.access_token_file: cannot be combined with access_token (keep one of the two)",
        f"mqtt[0].password_file: cannot read {tmp_path / 'none'}: No such file or directory",
        f"mqtt[1].password_file: {tmp_path / 'empty'} is empty",
    ]
    assert [line.split(":")[0] for line in found[3:]] == [
        "webhooks[1].url_file",
        "webhooks[1].secret_file",
        "webhooks[0].url_file",
        "webhooks[0].secret_file",
    ]
    assert not any("geheim" in line for line in found)


def test_a_file_that_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("x" * (64 * 1024 + 1), encoding="utf-8")
    text = """
cloud: {client_id: a, username: u, client_secret_file: pipe, password_file: large}
mqtt: [{name: m, url: "mqtts://h", tls: {ca_file: /dev/zero, cert_file: large}}]
webhooks: [{name: w, url_file: /dev/zero, secret_file: .}, {name: x, url_file: "a\\0b", secret_file: large}]
"""
    assert mistakes(tmp_path, text) == [
        f"cloud.client_secret_file: {tmp_path / 'pipe'} is not a regular file",
        f"cloud.password_file: {tmp_path / 'large'} is larger than 64KiB",
        "mqtt[0].tls.ca_file: /dev/zero is not a regular file",
        f"mqtt[0].tls.cert_file: {tmp_path / 'large'} holds no certificate in PEM",
        "webhooks[0].url_file: /dev/zero is not a regular file",
        f"webhooks[0].secret_file: cannot read {tmp_path}: Is a directory",
        f"webhooks[1].url_file: {tmp_path}/a\\x00b is not the path of a file",
        f"webhooks[1].secret_file: {tmp_path / 'large'} is larger than 64KiB",
    ]


def test_a_file_of_the_greatest_size_is_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("x" * (64 * 1024), encoding="utf-8")
    (tmp_path / "link").symlink_to("large")
    login = "client_id: c, client_secret: s, username: u"
    password = load_text(tmp_path, f"cloud: {{{login}, password_file: link}}\n").cloud.password
    assert password is not None
    assert len(password.get_secret_value()) == 64 * 1024


def test_files_of_tls_are_read_beside_the_configuration(tmp_path: Path) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=a -out ca.pem"
    subprocess.run([*make.split(), "-keyout", "ca.key"], cwd=tmp_path, check=True, capture_output=True)
    config = load_text(tmp_path, TOKEN + 'mqtt: [{name: m, url: "mqtts://h", tls: {ca_file: ca.pem}}]')
    assert config.sinks_of(MqttConfig)[0].tls.ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("sinks", "found"),
    [
        (
            '[{name: a, url: "mqtt://h"}, {name: a, url: "mqtt://i"}]',
            "mqtt[1].name: 'a' is the name of mqtt[0] as well",
        ),
        (
            '[{name: a, url: "mqtt://h"}, {name: b, url: "mqtt://H:1883/"}]',
            "mqtt[1].base_topic: mqtt[0] has the same base_topic at the same broker",
        ),
        (
            '[{name: a, url: "mqtt://localhost"}, {name: b, url: "mqtt://127.0.0.1"}]',
            "mqtt[1].base_topic: mqtt[0] has the same base_topic at the same broker",
        ),
        (
            '[{name: a, url: "ws://h", client_id: c}, {name: b, url: "ws://h", base_topic: x, client_id: c}]',
            "mqtt[1].client_id: mqtt[0] has the same client_id at the same broker",
        ),
        (
            '[{name: a, url: "mqtt://h", password: p}]',
            "mqtt[0].username: is missing, while a password is given",
        ),
        ("{name: a}", "mqtt: must be a list"),
    ],
)
def test_sinks_that_would_get_in_each_others_way(tmp_path: Path, sinks: str, found: str) -> None:
    (line,) = mistakes(tmp_path, f"{TOKEN}mqtt: {sinks}")
    assert line.startswith(found)


def test_names_are_unique_across_mqtt_and_webhooks(tmp_path: Path) -> None:
    text = f"""
{TOKEN}
mqtt: [{{name: a, url: "mqtt://h"}}]
webhooks: [{{name: a, url: "https://h", secret: {SECRET}}}]
"""
    (line,) = mistakes(tmp_path, text)
    assert line.startswith("webhooks[0].name: 'a' is the name of mqtt[0] as well")


def test_a_typo_in_a_file_key_is_recognised(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "cloud: {access_token: t, acess_token_file: x}")
    assert found == ["cloud.acess_token_file: is not a key that bace-bridge knows (did you mean access_token_file?)"]


def test_every_former_name_of_a_key_is_reported_with_its_present_one(tmp_path: Path) -> None:
    text = f"""
{TOKEN}
watch: {{reconcile_interval: 2m}}
store: {{memory: 30d, session_retention: 90d}}
mqtt: [{{name: m, url: "mqtt://h", in_flight: 5}}, {{name: n, url: "mqtt://i", concurrency: 5}}]
webhooks:
  - {{name: w, url: "https://h/x", secret: {SECRET}, concurrency: lots}}
  - {{name: x, url: "https://h/x", secret: {SECRET}, in_flight: 0}}
"""
    assert mistakes(tmp_path, text) == [
        "watch.reconcile_interval: is now called recheck_interval",
        "store.memory: is now called session_retention",
        "mqtt[0].in_flight: is now called max_in_flight",
        "mqtt[1].concurrency: is now called max_in_flight",
        "webhooks[0].concurrency: is now called max_in_flight",
        "webhooks[1].in_flight: is now called max_in_flight",
    ]


@pytest.mark.parametrize(
    ("section", "meant"),
    [
        ("watch: {reconcile_intervall: 1m}", "recheck_interval"),
        ("watch: {recheck-interval: 1m}", "recheck_interval"),
        ("store: {memroy: 30d}", "session_retention"),
        ("store: {session_retension: 30d}", "session_retention"),
        ("mqtt: [{name: m, url: 'mqtt://h', inflight: 5}]", "max_in_flight"),
        ("mqtt: [{name: m, url: 'mqtt://h', max_inflight: 5}]", "max_in_flight"),
    ],
)
def test_a_typo_in_a_present_or_a_former_name_hints_at_the_present_one(
    tmp_path: Path, section: str, meant: str
) -> None:
    (line,) = mistakes(tmp_path, TOKEN + section)
    assert line.endswith(f": is not a key that bace-bridge knows (did you mean {meant}?)")


def test_datatypes_are_merged_over_the_known_ones(tmp_path: Path) -> None:
    config = load_text(tmp_path, TOKEN + 'datatypes: {6000: {name: Pulse}, 7: {unit: m}, 6011: {unit: ""}}')
    assert (config.datatypes[6000].name, config.datatypes[6000].unit) == ("Pulse", "bpm")
    assert (config.datatypes[7].name, config.datatypes[7].unit) == (None, "m")
    assert config.datatypes[6011].unit == ""
    assert config.datatypes[6002].unit == "%"


def test_the_store_s_sizes_are_read_and_one_that_is_too_small_is_refused(tmp_path: Path) -> None:
    config = load_text(tmp_path, f"{TOKEN}store: {{max_size: 512MiB, session_retention: 30d}}\n")
    assert (config.store.max_size, config.store.session_retention) == (512 * 2**20, 30 * 86400.0)
    assert mistakes(tmp_path, f"{TOKEN}store: {{max_size: 15MiB}}\n") == ["store.max_size: must be at least 16MiB"]
    assert mistakes(tmp_path, f"{TOKEN}store: {{max_size: large}}\n") == [
        "store.max_size: must be a size such as 512MiB, 2GiB or 500MB"
    ]


@pytest.mark.parametrize("size", ["99999999999999999999999TiB", "257TiB", "9" * 99, "'" + "9" * 4400 + "'"])
def test_a_store_larger_than_sqlite_can_make_is_refused(tmp_path: Path, size: str) -> None:
    found = mistakes(tmp_path, f"{TOKEN}store: {{max_size: {size}}}\n")
    assert found == ["store.max_size: must be at most 256TiB (that is as large as an SQLite file can be)"]
    assert load_text(tmp_path, f"{TOKEN}store: {{max_size: 256TiB}}\n").store.max_size == 2**48


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+14:00", "1969-12-31", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z"]
)
def test_a_start_that_no_clock_can_show_is_a_mistake(tmp_path: Path, time: str) -> None:
    found = mistakes(tmp_path, f"{TOKEN}watch: {{start_from: '{time}'}}\n")
    assert found == ["watch.start_from: must be a time in the years 1970 to 9999 (all for everything)"]


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (".inf", "must be a number, neither .inf nor .nan"),
        (".nan", "must be a number, neither .inf nor .nan"),
        ("fast", "must be a number"),
        ("[1]", "must be a number"),
        ("-1", "must be at least 0"),
    ],
)
def test_a_rate_that_is_none_is_said_in_words(tmp_path: Path, limit: str, found: str) -> None:
    hook = f'webhooks: [{{name: w, url: "https://h/x", secret: {SECRET}, rate_limit: {limit}}}]'
    assert mistakes(tmp_path, TOKEN + hook) == [f"webhooks[0].rate_limit: {found}"]


@pytest.mark.parametrize("name", ["X-A\\nB", "X-A\\u2028B", "X-\\e[31m"])
def test_a_mistake_is_one_line_whatever_its_path_holds(tmp_path: Path, name: str) -> None:
    hook = f'webhooks: [{{name: w, url: "https://h/x", secret: {SECRET}, headers: {{"{name}": v}}}}]'
    (line,) = mistakes(tmp_path, TOKEN + hook)
    assert line.isprintable()
    assert line.endswith(": is not the name of an HTTP header")


@pytest.mark.parametrize("key", ["base_topic", "client_id", "username", "home_assistant.prefix"])
@pytest.mark.parametrize(
    "character", ["\\0", "\\x01", "\\t", "\\n", "\\x7f", "\\x85", "\\ud800", "\\uffff", "\\U0010FFFE"]
)
def test_texts_on_which_brokers_close_the_connection_are_refused(tmp_path: Path, key: str, character: str) -> None:
    (found,) = mistakes(tmp_path, broker(key, f'"x{character}"'))

    assert found.startswith(f"mqtt[0].{key}: holds the character U+")
    assert re.search(r"\((take a|use|remove)", found), "with a hint"
    assert found.isprintable()


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("base_topic", "/".join("a" * 197), "has more than 196 levels"),
        ("base_topic", "a" * 1025, "is longer than 1024 bytes"),
        ("base_topic", "a/", "begins or ends with /"),
        ("base_topic", "a//b", "has an empty level (//)"),
        ("base_topic", " bace", "begins or ends with a space"),
        ("base_topic", "bace\u2003", "begins or ends with a space"),
        ("base_topic", "$SYS", "begins with $"),
        ("base_topic", "a/+/b", "contains + or #"),
        ("client_id", "a" * 65_536, "is longer than 65535 bytes"),
        ("username", "a" * 65_536, "is longer than 65535 bytes"),
        ("name", "a" * 65, "64 at most"),
        ("url", "mqtt://" + "a" * 64, "host cannot be looked up"),
        ("url", "mqtt://a..b", "host cannot be looked up"),
        ("url", "ws://h/" + "a" * 4096, "at most 4096 characters"),
        ("url", "ws://h/\\uffff", "an invalid character"),
    ],
)
def test_texts_that_are_too_long_or_mean_something_else_are_refused(
    tmp_path: Path, key: str, value: str, problem: str
) -> None:
    (found,) = mistakes(tmp_path, broker(key, f'"{value}"'))

    assert found.startswith(f"mqtt[0].{key}: ")
    assert problem in found


@pytest.mark.parametrize(("value", "problem"), [("\\ud800", "half a character"), ("a" * 65_536, "longer than 65535")])
def test_a_password_that_cannot_be_sent_is_refused_and_not_shown(tmp_path: Path, value: str, problem: str) -> None:
    (found,) = mistakes(tmp_path, broker("username", f'u, password: "{value}"'))

    assert found.startswith("mqtt[0].password: ")
    assert problem in found


def test_a_password_of_odd_characters_is_a_password(tmp_path: Path) -> None:
    (sink,) = load_text(tmp_path, broker("username", 'u, password: "\\x01\\t\\uffff"')).sinks_of(MqttConfig)

    assert sink.password is not None
    assert sink.password.get_secret_value() == "\x01\t\uffff"


def test_a_cloud_url_is_one_that_events_can_carry(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, 'cloud: {access_token: t, url: "https://h/\\uffff"}')

    assert found.startswith("cloud.url: must be a URL")


def broker(key: str, value: str) -> str:
    """With one key more; a name or a URL takes the place of the usual one."""
    keys = {"name": "m", "url": '"mqtt://h"'}
    outer, _, inner = key.partition(".")
    keys[outer] = f"{{{inner}: {value}}}" if inner else value
    return TOKEN + "mqtt: [{" + ", ".join(f"{one}: {given}" for one, given in keys.items()) + "}]"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_line_of_a_broker_says_whether_home_assistant_gets_discovery(tmp_path: Path, enabled: bool) -> None:
    broker = f'{{name: home, url: "mqtt://h", home_assistant: {{enabled: {enabled}}}}}'
    (sink,) = load_text(tmp_path, f"{TOKEN}mqtt: [{broker}]\n").sinks_of(MqttConfig)

    expected = "mqtt://h, topics bace/..., MQTT 5, qos 1"
    assert sink.describe() == (f"{expected}, discovery for Home Assistant" if enabled else expected)


@pytest.mark.parametrize(
    ("csv", "mistake"),
    [
        ("{link_base: bridge.example.org}", "csv.link_base: must be a URL"),
        (
            "{link_base: 'ftp://bridge.example.org'}",
            "csv.link_base: must be a URL that begins with https:// or http://",
        ),
        ("{link_base: 'https://me:pass@bridge.example.org'}", "csv.link_base: must not hold a login"),
        ("{link_base: 'https://bridge.example.org/?a'}", "csv.link_base: must not hold ? or #"),
        ("{link_base: 'https://bridge.example.org/#'}", "csv.link_base: must not hold ? or #"),
        ("{link_expires: 10ms}", "csv.link_expires: must be at least 1s"),
        ("{link_bas: x}", "csv.link_bas: is not a key that bace-bridge knows (did you mean link_base?)"),
    ],
)
def test_mistakes_about_csv_links(tmp_path: Path, csv: str, mistake: str) -> None:
    (found,) = mistakes(tmp_path, f"{TOKEN}csv: {csv}\n")
    assert found.startswith(mistake)


def test_links_need_a_listener(tmp_path: Path) -> None:
    links = f"{TOKEN}csv: {{link_base: 'https://bridge.example.org/bace/'}}\n"
    assert load_text(tmp_path, links).csv.link_base == "https://bridge.example.org/bace"
    assert mistakes(tmp_path, links + "http: {listen: ''}\n") == [
        "csv.link_base: no link would open: http.listen is off (set http.listen, or remove this)"
    ]
    assert load_text(tmp_path, f"{TOKEN}csv: {{link_base: ''}}\nhttp: {{listen: ''}}\n").csv.link_base == ""


@pytest.mark.parametrize(
    ("base", "warned"),
    [
        ("https://bridge.example.org", False), ("http://bridge.example.org", True), ("http://93.184.216.34:80", True),
        ("http://192.168.1.5:8099", False), ("http://bridge.lan", False), ("http://localhost:8099", False),
        ("http://[2001:4860:4860::8888]", True), ("http://[fd00::1]:8099", False), ("", False),
    ],
)  # fmt: skip
def test_links_beyond_the_own_network_want_https(tmp_path: Path, base: str, warned: bool) -> None:
    found = warnings(load_text(tmp_path, f"{TOKEN}csv: {{link_base: '{base}'}}\n"), now=0)
    assert any(one.startswith("csv.link_base: ") for one in found) is warned
