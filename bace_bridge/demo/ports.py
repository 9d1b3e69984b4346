"""Where the demonstration listens: this machine only, on well-known ports where they are free."""

import socket

HOST = "127.0.0.1"


class DemoFailed(Exception):  # what happened, not a class of errors to build on
    """The demonstration cannot begin; the message says what to do."""


def is_free(port: int) -> bool:
    with socket.socket() as one:
        # As servers do it: a port that a server has only just left is free.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return False
        return True


def any_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        port: int = one.getsockname()[1]
        return port


def ports_to_try(preferred: int) -> list[int]:
    """The preferred one if it is free, and a few others, as another program may be faster."""
    return [*([preferred] if is_free(preferred) else []), any_port(), any_port()]
