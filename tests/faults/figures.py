from collections.abc import Iterator, Sequence

import msgspec


class Figures(msgspec.Struct, frozen=True):
    """A run in a line of the table."""

    run: str
    seed: int
    faults: int
    sessions: int
    events: int
    points: int
    lost: int
    order: int
    other: int
    duplicates: dict[str, int]
    at_most: dict[str, int]
    seconds: float
    note: str = ""

    @staticmethod
    def table(rows: Sequence["Figures"]) -> Iterator[str]:
        yield (
            f"{'run':<12}{'seed':>8}{'faults':>8}{'sessions':>10}{'events':>8}{'points':>8}{'lost':>6}{'order':>7}"
            f"{'other':>7}  {'duplicates (at most)':<44}{'seconds':>8}"
        )
        for row in rows:
            twice = ", ".join(
                f"{sink} {count} = {count / max(1, row.faults):.2f} a fault ({row.at_most[sink]})"
                for sink, count in row.duplicates.items()
            )
            yield (
                f"{row.run:<12}{row.seed:>8}{row.faults:>8}{row.sessions:>10}{row.events:>8}{row.points:>8}"
                f"{row.lost:>6}{row.order:>7}{row.other:>7}  {twice:<44}{row.seconds:>8.0f}"
                + (f"  {row.note}" if row.note else "")
            )
