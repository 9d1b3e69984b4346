"""The files of TLS as a context: `check` loads them as `run` does, so both say the same of them."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from bace_bridge.config.mqtt import TlsConfig


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
        _check_regular("ca_file", ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, ValueError):
        problem = f"{ca_file} holds no certificate in PEM"
        raise TlsFileProblem("ca_file", problem, "-----BEGIN CERTIFICATE-----") from None
    except OSError as error:
        raise TlsFileProblem("ca_file", f"cannot read {ca_file}: {error.strerror}") from None


def _check_regular(key: str, path: Path) -> None:
    """OpenSSL would wait for the writer of a pipe, and read a device to its end."""
    try:
        is_regular = path.is_file() or not path.exists()
    except (OSError, ValueError) as error:
        raise TlsFileProblem(key, f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if not is_regular:
        raise TlsFileProblem(key, f"{path} is not a regular file")


def _show_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    key, path = ("key_file", key_file) if key_file is not None else ("cert_file", cert_file)
    _check_regular("cert_file", cert_file)
    _check_regular(key, path)
    try:
        ssl.create_default_context(cafile=cert_file)
    except ssl.SSLError:
        raise TlsFileProblem("cert_file", f"{cert_file} holds no certificate in PEM") from None
    except (OSError, ValueError) as error:
        raise TlsFileProblem("cert_file", f"cannot read {cert_file}: {getattr(error, 'strerror', error)}") from None
    try:
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
