"""`python -m bench [NAME ...] [--runs N]`: drain, events, webhooks, idle, latency; all without a name."""

import argparse
import asyncio
import logging
import os

import structlog

from bench import deliveries, processes
from bench.report import Row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    names = ["events", "webhooks", "drain", "idle", "latency"]
    parser.add_argument("names", nargs="*", choices=[*names, []], default=names)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"{os.cpu_count()} cores; medians of {given.runs} interleaved runs; ratios are of one run\n")
    for name in given.names:
        for row in measured(name, given.runs):
            print(row.line(), flush=True)


def measured(name: str, runs: int) -> list[Row]:
    if name == "events":
        return asyncio.run(deliveries.mqtt_events(runs))
    if name == "webhooks":
        return asyncio.run(deliveries.webhooks(runs))
    if name == "drain":
        return processes.drain(runs)
    if name == "idle":
        return processes.idle(runs)
    return processes.latency(runs)


main()
