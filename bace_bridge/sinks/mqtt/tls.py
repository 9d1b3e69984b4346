"""The files of TLS as a context: `check` loads them as `run` does, so both say the same of them."""

import codecs
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import Field

from bace_bridge.config.sections import Section
from bace_bridge.config.values import format_size
from bace_bridge.errors import Mistake

_LARGEST = 4 * 2**20
"""Bytes of a file. A system's bundle of authorities has about 200 kB."""


_FILES = ("ca_file", "cert_file", "key_file")
_BEHIND_A_MARK = codecs.BOM_UTF8 + b"-----BEGIN"


class TlsConfig(Section):
    ca_file: Path | None = Field(default=None, description="CA certificate (PEM) to trust instead of the system's")
    cert_file: Path | None = Field(default=None, description="PEM file of the client's certificate")
    key_file: Path | None = Field(default=None, description="PEM file of the client's key, unencrypted")
    insecure: bool = Field(default=False, description="Do not check the broker's certificate: for trials only")

    @classmethod
    def mistakes_in_files(cls, given: dict[Any, Any]) -> Iterator[Mistake]:
        files = {key: Path(given[key]) for key in _FILES if isinstance(given.get(key), str)}
        if "key_file" in files and "cert_file" not in files:
            return
        for found in tls_problems(cls.model_validate(files)):
            yield Mistake(found.key, found.problem, found.hint)


class TlsFileProblem(Exception):
    """`key` names the file's key in the configuration; the text is for people."""

    def __init__(self, key: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{problem} ({hint})" if hint else problem)
        self.key = key
        self.problem = problem
        self.hint = hint


class _Encrypted(Exception):
    pass


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """Raises TlsFileProblem for whatever is wrong with a file. It asks for no pass phrase, and waits for no pipe."""
    context = _trusting(tls.ca_file)
    if tls.insecure:
        # First: ssl raises ValueError for CERT_NONE while host names are still checked.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file is not None:
        _show_certificate(context, tls.cert_file, tls.key_file)
    return context


def tls_problems(tls: TlsConfig) -> Iterator[TlsFileProblem]:
    """Everything that is wrong with the files: of the authority, and of the client's certificate."""
    try:
        if tls.ca_file is not None:
            _trusting(tls.ca_file)
    except TlsFileProblem as problem:
        yield problem
    try:
        if tls.cert_file is not None:
            _show_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls.cert_file, tls.key_file)
    except TlsFileProblem as problem:
        yield problem


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is not None:
        _check_file("ca_file", ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, ValueError):
        problem = f"{ca_file} holds no certificate in PEM"
        raise TlsFileProblem("ca_file", problem, "-----BEGIN CERTIFICATE-----") from None
    except OSError as error:
        raise TlsFileProblem("ca_file", f"cannot read {ca_file}: {error.strerror}") from None


def _check_file(key: str, path: Path) -> None:
    """OpenSSL would wait for the writer of a pipe, and read a device to its end."""
    try:
        found = path.stat()
    except OSError as error:
        raise TlsFileProblem(key, f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a character that no path holds
        raise TlsFileProblem(key, "must be the path of a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise TlsFileProblem(key, f"{path} is not a regular file")
    if found.st_size > _LARGEST:
        raise TlsFileProblem(key, f"{path} is larger than {format_size(_LARGEST)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsFileProblem(key, f"cannot read {path}: {error.strerror}") from None
    if _BEHIND_A_MARK in content:
        problem = f"{path} has a byte order mark (BOM) before -----BEGIN, which OpenSSL does not find then"
        raise TlsFileProblem(key, problem, "save it as UTF-8 without BOM")


def _show_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    key, path = ("key_file", key_file) if key_file is not None else ("cert_file", cert_file)
    _check_file("cert_file", cert_file)
    _check_file(key, path)
    try:
        # load_cert_chain says the same, `PEM lib`, of a bad certificate and of a bad key.
        ssl.create_default_context(cafile=cert_file)
    except ssl.SSLError:
        raise TlsFileProblem("cert_file", f"{cert_file} holds no certificate in PEM") from None
    except (OSError, ValueError) as error:
        raise TlsFileProblem("cert_file", f"cannot read {cert_file}: {getattr(error, 'strerror', error)}") from None
    try:
        # Without this function OpenSSL asks on the terminal, and a service waits for ever.
        context.load_cert_chain(cert_file, key_file, password=_refuse_to_ask)
    except _Encrypted:
        hint = "decrypt it with openssl pkey, and keep it readable by the service alone"
        raise TlsFileProblem(key, f"{path} is encrypted, and the service cannot ask for a pass phrase", hint) from None
    except ssl.SSLError as error:
        if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}:
            raise TlsFileProblem(key, f"{path} is not the key of the certificate in {cert_file}") from None
        if error.reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}:
            raise TlsFileProblem("cert_file", f"{cert_file} is too weak for this machine's OpenSSL") from None
        hint = "" if key_file is not None else "name the key's file in key_file"
        raise TlsFileProblem(key, f"{path} holds no private key in PEM that can be used", hint) from None
    except (OSError, ValueError) as error:
        raise TlsFileProblem(key, f"cannot read {path}: {getattr(error, 'strerror', error)}") from None


def _refuse_to_ask() -> NoReturn:
    raise _Encrypted
