"""How fast a receiver is called at most."""


class Pace:
    """Turns at most so many times a second, evenly: after a long silence there is no burst. 0 sets no limit."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second if per_second > 0 else 0.0
        self._next = 0.0

    def turn(self, now: float) -> float:
        """Takes the next turn; returns the seconds until then. `now` is of a clock that is never set back."""
        at = max(now, self._next)
        self._next = at + self._gap
        return at - now
