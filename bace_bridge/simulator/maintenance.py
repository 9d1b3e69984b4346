from dataclasses import dataclass

from bace_bridge.simulator.durations import seconds


@dataclass(frozen=True, slots=True)
class Maintenance:
    """The last `lasts` seconds of each `every`, counted from the cloud's beginning: a client starts in peace."""

    lasts: float
    every: float

    @staticmethod
    def parse(written: str) -> "Maintenance":
        """`12s/60s`. Raises ValueError."""
        lasts, _slash, every = written.partition("/")
        found = Maintenance(seconds(lasts), seconds(every))
        if not 0 < found.lasts < found.every:
            raise ValueError("it must last less than the time after which it comes again")
        return found

    def is_on(self, age: float) -> bool:
        """`age`: seconds since the cloud's beginning."""
        return age % self.every >= self.every - self.lasts
