"""What a service of systemd tells its manager: that it is ready, that it lives, that it stops (sd_notify)."""

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import structlog

EXTEND_EVERY = 10.0
"""Seconds between two requests for more time; a start that is as short as usual makes none."""

EXTEND_BY = 60
"""Seconds that are asked for each time."""


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
    if not re.fullmatch(r"[0-9]{1,18}", allowed) or int(allowed) == 0 or (whose and whose != str(os.getpid())):
        return None
    return int(allowed) / 2_000_000


@contextlib.asynccontextmanager
async def long_start(
    notify: Callable[[str], None], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[None]:
    """Asks the manager for more time, over and over, as long as the body takes: a large store may be migrated in it."""

    async def ask() -> None:
        while True:
            await sleep(EXTEND_EVERY)
            notify(f"EXTEND_TIMEOUT_USEC={EXTEND_BY * 1_000_000}\nSTATUS=opening the store")

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
