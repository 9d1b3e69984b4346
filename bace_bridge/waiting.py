"""What asyncio lacks: pauses that a call ends, work in a thread of its own, name look-ups that hold up nothing."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any, TypeVar

STORE_PAUSE = 2.0
"""Seconds after which what the store could not do is tried again."""


async def pause_until(called: asyncio.Event, seconds: float) -> None:
    """Returns when called, or after so many seconds; a negative number of them is none."""
    # Not `wait_for`: in Python 3.11 it makes a task for each wait, and every loop waits here all the time.
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await called.wait()
    except TimeoutError:
        pass


T = TypeVar("T")

ENDS_WITHIN = 1.0
"""Seconds that a look-up may take once the process ends."""


class Loop(asyncio.SelectorEventLoop):
    """asyncio's loop, but for its look-ups, which share a few threads that its end waits for.

    Here each has a thread of its own, which ends when the system's resolver does. A name that is asked for meanwhile
    waits for the same answer, so one name has one thread, however often it is tried.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked: dict[tuple[object, ...], asyncio.Future[list[Any]]] = {}
        self._ending: asyncio.Future[None] = self.create_future()

    async def getaddrinfo(self, host: bytes | str | None, port: bytes | str | int | None, **how: int) -> list[Any]:
        """As `socket.getaddrinfo`. Raises OSError, or UnicodeError where the host can be no name."""
        question = (host, port, *sorted(how.items()))
        answer = self._asked.get(question)
        if answer is None:
            answer = in_thread(partial(socket.getaddrinfo, host, port, **how), name=f"look-up of {host!r}")
            self._asked[question] = answer
            answer.add_done_callback(partial(self._answered, question))
        # Not `await answer`: who is cancelled here must not cancel the look-up, for which others wait as well.
        await asyncio.wait((answer, self._ending), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((answer,), timeout=ENDS_WITHIN)
        if not answer.done():
            raise socket.gaierror(socket.EAI_AGAIN, "the process ends before the name is resolved")
        return answer.result()

    def hurry(self) -> None:
        """The process ends: from now on a look-up that takes longer than `ENDS_WITHIN` fails."""
        if not self._ending.done():
            self._ending.set_result(None)

    def _answered(self, question: tuple[object, ...], answer: asyncio.Future[list[Any]]) -> None:
        del self._asked[question]
        if not answer.cancelled():
            answer.exception()  # perhaps it is no longer awaited


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on a `Loop`."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


def in_thread(work: Callable[[], T], *, name: str, unwanted: Callable[[T], None] | None = None) -> asyncio.Future[T]:
    """What `work` returns or raises, in a daemon thread: the end of the process does not wait for it.

    `unwanted` gets, in any thread, a result that comes after the wait for it was cancelled.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from here on a cancelled wait leaves it alone

    def run_work() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001  # it is raised again, on the loop
            done.set_exception(error)

    def give_up(awaited: asyncio.Future[T]) -> None:
        if awaited.cancelled() and unwanted is not None:
            done.add_done_callback(lambda late: None if late.exception() else unwanted(late.result()))

    try:
        Thread(target=run_work, name=name, daemon=True).start()
    except RuntimeError as error:  # the limit of threads, the user's or the container's; that passes
        done.set_exception(OSError(str(error)))
    awaited = asyncio.wrap_future(done)
    awaited.add_done_callback(give_up)
    return awaited
