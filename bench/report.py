"""Figures side by side: medians, and the ratio of the two in one run."""

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """`ours` and `peers` hold a figure a run; `peer` says what was measured beside, `goal` what is to be reached."""

    what: str
    ours: list[float]
    peers: list[float] = field(default_factory=list)
    peer: str = ""
    goal: str = ""
    unit: str = ""

    def line(self) -> str:
        mine = statistics.median(self.ours)
        text = f"{self.what:<52} {shown(mine)}{self.unit:<4}"
        if self.peers:
            theirs = statistics.median(self.peers)
            ratios = [one / other for one, other in zip(self.ours, self.peers, strict=True)]
            text += f" | {self.peer}: {shown(theirs)}{self.unit} | ratio {statistics.median(ratios):.2f}"
        spread = f"{shown(min(self.ours))} to {shown(max(self.ours))}" if len(self.ours) > 1 else ""
        return f"{text}  (goal {self.goal}) {spread}".rstrip() if self.goal else f"{text} {spread}".rstrip()


def shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
