"""Requests for one finished data session that is sparse and long, or that has many series: `python -m bench.sparse`.

The real bridge with its default intervals and `start_from: all`, from its start until the session's CSV is ready.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from bench import processes
from bench.fleet import until
from bench.fleet_cloud import Asked
from bench.fleet_figures import KINDS, shown
from bench.fleet_oracle import judge
from bench.fleet_points import Made, Plan
from bench.inbox import inbox

PLANS = {
    "once-an-hour": "940 points in 40 days, one every 61 minutes",
    "one-hour-a-day": "940 points in 40 days, one hour of each",
    "wide": "130 series in 90 minutes",
}


async def measure(kind: str, given: argparse.Namespace) -> str:
    series = given.series if kind == "wide" else 1
    plan = msgspec.convert({"kind": kind, "series": series, "quirks": given.quirk}, Plan)
    written = msgspec.json.encode(plan).decode()
    with tempfile.TemporaryDirectory() as name, processes.cloud(written, module="bench.fleet_cloud") as source:
        async with inbox() as box:
            begun = time.time()
            with processes.bridge(
                Path(name),
                source.about["url"],
                None,
                start_from="all",
                per_minute=given.per_minute,
                webhooks=[box.webhook()],
            ):
                await until(lambda: box.complete == set(source.about["sessions"]), within=given.within)
                seconds = time.time() - begun
                await asyncio.sleep(2)
        requests = [one for one in msgspec.convert(source.ask("requests"), list[Asked]) if one.at < begun + seconds]
        made = msgspec.convert(source.ask("made"), list[Made])
        print((Path(name) / "log").read_text()[:2000], end="", file=sys.stderr)
    verdict = judge(made, box.arrivals)
    kinds = Counter(one.kind for one in requests)
    failed = Counter(f"{one.status} {one.kind}" for one in requests if one.status != 200)
    return (
        f"{PLANS[kind]}: {len(requests)} requests ("
        + ", ".join(f"{kinds[one]} {one}" for one in KINDS)
        + f"), failed: {shown(failed)}; {seconds:.1f} s {'' if box.complete else 'WITHOUT AN END '}"
        f"at {given.per_minute}/min\n    {len(made):,} points, lost {len(verdict.lost)}, twice {len(verdict.doubled)},"
        f" wrong session {len(verdict.misattributed)}, never shown {len(verdict.unknown)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sparse")
    parser.add_argument("names", nargs="*", choices=[[], *PLANS], metavar="NAME", help=", ".join(PLANS))
    parser.add_argument("--series", type=int, default=130, help="of the wide one")
    parser.add_argument("--per-minute", type=int, default=1_000_000, help="cloud.requests_per_minute")
    parser.add_argument("--quirk", action="append", default=[], help="of the simulated cloud; may be given again")
    parser.add_argument("--within", type=float, default=600.0, help="seconds that one may take")
    given = parser.parse_args()
    for name in given.names or PLANS:
        print(asyncio.run(measure(name, given)), flush=True)


if __name__ == "__main__":
    main()
