"""The files of TLS are loaded by `check`, and named where something is wrong with them."""

import codecs
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bace_bridge.sinks.mqtt.config import MqttConfig, TlsFileProblem, tls_context
from tests.unit.test_config import TOKEN, load_text, mistakes

NO_CERTIFICATE = "{} holds no certificate in PEM"
NO_KEY = "{} holds no private key in PEM that can be used"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tls")
    for name in ("a", "b"):
        new = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.pem"
        openssl(where, f"{new} -subj /CN={name}")
    openssl(where, "pkey -in a.key -aes256 -passout pass:geheim -out encrypted.key")
    openssl(where, "ec -in a.key -aes256 -passout pass:geheim -out encrypted-as-of-old.key")
    openssl(where, "genrsa -out rsa.key 2048")
    (where / "empty").write_text("")
    (where / "text").write_text("hello\n")
    (where / "latin").write_bytes(b"M\xfcller\n" + (where / "a.pem").read_bytes())
    (where / "marked").write_bytes(b"\xef\xbb\xbf" + (where / "a.pem").read_bytes())
    (where / "cut.pem").write_text((where / "a.pem").read_text()[:200])
    (where / "both.pem").write_text((where / "a.pem").read_text() + (where / "a.key").read_text())
    return where


def openssl(where: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=where, check=True, capture_output=True)


@pytest.mark.parametrize(
    "tls",
    [
        {"ca_file": "a.pem"},
        {"cert_file": "a.pem", "key_file": "a.key"},
        {"cert_file": "both.pem"},
        {"ca_file": "latin"},
        {"cert_file": "latin", "key_file": "a.key"},
        {"ca_file": "b.pem", "cert_file": "a.pem", "key_file": "a.key", "insecure": True},
    ],
)
def test_files_that_can_be_used(files: Path, tls: dict[str, object]) -> None:
    assert load_text(files, configured(tls)).sinks_of(MqttConfig)[0].name == "m"


@pytest.mark.parametrize("name", ["empty", "text", "cut.pem", "a.key"])
def test_a_file_of_no_authority(files: Path, name: str) -> None:
    (found,) = mistakes(files, configured({"ca_file": name}))

    assert found.startswith("mqtt[0].tls.ca_file: " + NO_CERTIFICATE.format(files / name))


@pytest.mark.parametrize(
    ("cert", "key", "path", "problem"),
    [
        ("a.pem", "b.key", "key_file", "{} is not the key of the certificate in"),
        ("a.pem", "rsa.key", "key_file", "{} is not the key of the certificate in"),
        ("a.pem", "encrypted.key", "key_file", "{} is encrypted, and the service cannot ask"),
        ("a.pem", "encrypted-as-of-old.key", "key_file", "{} is encrypted, and the service cannot ask"),
        ("a.pem", "empty", "key_file", NO_KEY),
        ("a.pem", "a.pem", "key_file", NO_KEY),
        ("empty", "a.key", "cert_file", NO_CERTIFICATE),
        ("marked", "a.key", "cert_file", "{} has a byte order mark (BOM)"),
        ("a.key", "a.key", "cert_file", NO_CERTIFICATE),
    ],
)
def test_a_certificate_and_a_key_that_cannot_be_used(files: Path, cert: str, key: str, path: str, problem: str) -> None:
    (found,) = mistakes(files, configured({"cert_file": cert, "key_file": key}))

    named = files / (key if path == "key_file" else cert)
    assert found.startswith(f"mqtt[0].tls.{path}: {problem.format(named)}")
    assert "geheim" not in found


def test_a_certificate_alone_needs_its_key_in_the_same_file(files: Path) -> None:
    (found,) = mistakes(files, configured({"cert_file": "a.pem"}))

    assert found.startswith("mqtt[0].tls.cert_file: " + NO_KEY.format(files / "a.pem"))
    assert "key_file" in found


def test_both_files_are_named_at_once(files: Path) -> None:
    found = mistakes(files, configured({"ca_file": "empty", "cert_file": "a.pem", "key_file": "b.key"}))

    assert [one.split(":")[0] for one in found] == ["mqtt[0].tls.ca_file", "mqtt[0].tls.key_file"]


@pytest.mark.parametrize(
    "tls",
    [
        {"ca_file": "none", "cert_file": "none", "key_file": "none"},
        {"ca_file": "text", "cert_file": "text", "key_file": "text"},
        {"ca_file": "text", "cert_file": "a.key", "key_file": "none"},
        {"ca_file": "none", "key_file": "none"},
        {"ca_file": "none", "key_file": "text"},
    ],
)
def test_no_mistake_in_a_file_hides_one_in_another(files: Path, tls: dict[str, object]) -> None:
    found = {one.split(":")[0] for one in mistakes(files, configured(tls))}

    assert found == {"mqtt[0].tls.ca_file", "mqtt[0].tls.cert_file", "mqtt[0].tls.key_file"}


@pytest.mark.parametrize("key", ["ca_file", "cert_file", "key_file"])
def test_a_byte_order_mark_that_openssl_does_not_read_is_named(files: Path, key: str) -> None:
    names = {"ca_file": "a.pem", "cert_file": "a.pem", "key_file": "a.key"}
    content = (files / names[key]).read_bytes()
    (files / "marked").write_bytes(codecs.BOM_UTF8 + content)
    (found,) = mistakes(files, configured({**names, key: "marked"}))

    assert found.startswith(f"mqtt[0].tls.{key}: {files / 'marked'} has a byte order mark (BOM) before -----BEGIN")


@pytest.mark.parametrize("key", ["ca_file", "cert_file", "key_file"])
def test_a_pipe_is_waited_for_neither_by_check_nor_when_it_takes_the_place_of_a_file(
    files: Path, tmp_path: Path, key: str
) -> None:
    """As a broker that is connected to anew finds it. OpenSSL would wait for the pipe's writer for ever."""
    tls: dict[str, object] = {"ca_file": "ca", "cert_file": "cert", "key_file": "key"}
    for name, source in (("ca", "b.pem"), ("cert", "a.pem"), ("key", "a.key")):
        shutil.copy(files / source, tmp_path / name)
    config = load_text(tmp_path, configured(tls)).sinks_of(MqttConfig)[0].tls
    path = getattr(config, key)
    path.unlink()
    os.mkfifo(path)

    with pytest.raises(TlsFileProblem, match="is not a regular file"):
        tls_context(config)
    assert f"mqtt[0].tls.{key}: {path} is not a regular file" in mistakes(tmp_path, configured(tls))


def configured(tls: dict[str, object]) -> str:
    keys = ", ".join(f"{key}: {str(value).lower()}" for key, value in tls.items())
    return TOKEN + f'mqtt: [{{name: m, url: "mqtts://h", tls: {{{keys}}}}}]'
