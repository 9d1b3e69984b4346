"""The name of this installation: of a bridge with a store, on a machine."""

import hashlib
import socket
from contextlib import suppress
from pathlib import Path

from bace_bridge.config.models import Config

_MACHINE = Path("/etc/machine-id")


def installation_name(config: Config) -> str:
    """Eight hex digits: the same for the same store's path, machine, host name and account.

    So a store that was lost gets its name again, and finds its own retained topics; in a container as long as its host
    name stays the same.
    """
    machine = ""
    with suppress(OSError, UnicodeDecodeError):
        machine = _MACHINE.read_text("utf-8").strip()
    cloud = config.cloud
    parts = (machine, socket.gethostname(), str(config.store.path.resolve()), cloud.username or cloud.client_id or "")
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
