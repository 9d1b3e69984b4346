from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests whose path starts with `prefix` and whose query holds `holding`."""

    prefix: str
    times: int
    status: int | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    holding: str = ""


class Faults:
    """Prepared troubles; of those that fit a request, the first one that was prepared is taken."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def answer(
        self,
        prefix: str,
        *,
        status: int,
        body: str = "",
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        holding: str = "",
    ) -> None:
        """This answer in place of the real one."""
        self._waiting.append(Fault(prefix, times, status=status, body=body, headers=headers or {}, holding=holding))

    def delay(self, prefix: str, seconds: float, *, times: int = 1) -> None:
        """The real answer, so much later."""
        self._waiting.append(Fault(prefix, times, delay=seconds))

    def drop(self, prefix: str, *, times: int = 1) -> None:
        """The connection is cut without an answer.

        aiohttp's client quietly repeats a GET once when a connection that it had kept open is cut.
        """
        self._waiting.append(Fault(prefix, times, cut=True))

    def clear(self) -> None:
        self._waiting.clear()

    def take(self, path: str, query: str = "") -> Fault | None:
        for fault in self._waiting:
            if path.startswith(fault.prefix) and fault.holding in query:
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
                return fault
        return None
