from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    calls: int
    window: float


@dataclass(frozen=True, slots=True)
class Allowance:
    left: int
    at: int


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    remaining: int
    reset: int
    allowance: Allowance


def judge(limit: RateLimit, before: Allowance | None, now: float) -> Verdict:
    """Yii's rate limiter, with its whole seconds.

    A rejected call saves "nothing left, as of now", so that a client which keeps asking before one whole
    call has been earned again never recovers.
    """
    at = int(now)
    if before is None:
        before = Allowance(limit.calls, at)
    left = min(limit.calls, before.left + int((at - before.at) * limit.calls / limit.window))
    if left < 1:
        return Verdict(allowed=False, remaining=0, reset=int(limit.window), allowance=Allowance(0, at))
    reset = int((limit.calls - left + 1) * limit.window / limit.calls)
    return Verdict(allowed=True, remaining=left - 1, reset=reset, allowance=Allowance(left - 1, at))
