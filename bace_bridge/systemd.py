"""What a service of systemd tells its manager: that it is ready, that it lives, that it stops (sd_notify)."""

import os
import socket
from collections.abc import Mapping

import structlog


def notify(state: str, *, address: str | None) -> None:
    """Sends a state such as `READY=1` to NOTIFY_SOCKET; does nothing where there is no manager to tell.

    It never blocks and never fails: whoever cannot be told will miss the watchdog's sign soon enough.
    """
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), target)
    except OSError as error:
        structlog.get_logger().warning("systemd.not_told", state=state, reason=error.strerror or str(error))


def watchdog_interval(env: Mapping[str, str]) -> float | None:
    """Seconds between two `WATCHDOG=1`, half of what systemd allows; None where no watchdog waits for us."""
    allowed, whose = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not allowed.isdecimal() or int(allowed) == 0 or (whose and whose != str(os.getpid())):
        return None
    return int(allowed) / 2_000_000
