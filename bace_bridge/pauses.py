"""How everything here waits: until something calls, or for a time."""

import asyncio

STORE_PAUSE = 2.0
"""Seconds after which what the store could not do is tried again."""


async def pause_until(called: asyncio.Event, seconds: float) -> None:
    """Returns when called, or after so many seconds; a negative number of them is none."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await called.wait()
    except TimeoutError:
        pass
