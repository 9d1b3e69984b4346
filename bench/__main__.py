"""`python -m bench [NAME ...] [--runs N]`; all of them without a name."""

import argparse
import asyncio
import logging
import os
from collections.abc import Callable

import structlog

from bench import backlog, deliveries, fanout, outages, processes
from bench.report import Row

BENCHES: dict[str, Callable[[int], list[Row]]] = {
    "events": lambda runs: asyncio.run(deliveries.mqtt_events(runs)),
    "webhooks": lambda runs: asyncio.run(deliveries.webhooks(runs)),
    "fanout": fanout.fanout,
    "drain": processes.drain,
    "idle": processes.idle,
    "latency": processes.latency,
    "isolation": outages.isolation,
    "outage": outages.outage,
    "backlog": backlog.backlog,
}


def bench(name: str) -> str:
    if name not in BENCHES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BENCHES)}")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", type=bench, metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"{os.cpu_count()} cores; medians of {given.runs} interleaved runs; ratios are of one run\n")
    for name in given.names or BENCHES:
        for row in BENCHES[name](given.runs):
            print(row.line(), flush=True)


if __name__ == "__main__":
    main()
